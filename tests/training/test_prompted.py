"""What a prompt reads from a run's data: the ids of its text, and the positions of its vectors in a template."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxnlp.data.pipeline import DataConfig, TrainBatches, open_split
from jaxnlp.data.records import Records
from jaxnlp.data.tasks.layout import DecoderLayout, Template
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.data.tokenizer import Bytes
from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.heads import ModelWithHead, SequenceClassificationHead
from jaxnlp.objectives.sequence_classification import SequenceClassification
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.prompt import PROMPT, Prompt, PTuning
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.run_folder import resume
from jaxnlp.training.setup import prepare
from jaxnlp.training.step.program import build
from jaxnlp.trees import set_at

from .test_tuned import untuned


def test_a_run_makes_ids_of_a_prompts_text(corpus):
    def prepared(tuning):
        e = untuned(corpus, peft=tuning)
        return prepare(dataclasses.replace(e, data=dataclasses.replace(e.data, attend_across_documents=True)))[0]

    e, wanted = prepared(Prompt(length=5, text="def")), prepared(Prompt(length=5, init="ids", ids=tuple(b"def")))
    actual, other = (build(experiment, jax.devices()[:1]).init().params["embed"][PROMPT] for experiment in (e, wanted))
    np.testing.assert_array_equal(actual, other)
    assert not resume.changes(e, prepare(e)[0])
    changed = dataclasses.replace(e, peft=Prompt(length=5, text="class", ids=tuple(b"def")))
    with pytest.raises(UserError, match="peft.text: the checkpoint has 'def' and the config has 'class'"):
        resume.changes(e, prepare(changed)[0])


@pytest.fixture
def task(tmp_path) -> Experiment:
    rows = [{"text": text, "label": label} for text, label in (("yes", "good"), ("no", "bad")) for _ in range(4)]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    layout = DecoderLayout()
    return Experiment(
        model=ModelWithHead(
            body=GPTConfig(num_layers=1, num_heads=2, embed_dim=8, max_length=16),
            head=SequenceClassificationHead(num_classes=2),
        ),
        data=DataConfig(
            source=Records(train=f"{tmp_path}/train.jsonl", validation=f"{tmp_path}/validation.jsonl"),
            tokenizer=Bytes(special_tokens=(layout.start, layout.delimiter, layout.extract, "<prompt>")),
            task=SequenceClassificationTask(layout=Template(text="<prompt>{text}?<prompt><prompt>", layout=layout)),
            seq_len=12,
            batch_size=4,
            prefetch_threads=0,
        ),
        objective=SequenceClassification(),
        peft=PTuning(length=3, encoder="lstm", hidden_dim=4),
    )


def test_vectors_stand_where_the_template_has_their_places(task):
    e, tokenizer = prepare(task)
    assert isinstance(e.peft, PTuning) and e.peft.placeholder == tokenizer.special_id("<prompt>")
    program = build(e, jax.devices()[:1])
    batch = next(TrainBatches(open_split(e.data, "train", tokenizer), e.data, tokenizer=tokenizer))
    state = program.init()
    assert program.tuning is not None
    params = program.tuning.expanded(state.all_params)
    also = ("token_type_ids", "segment_ids", "pool_positions")
    logits = lambda params, batch: program.apply(params, batch["tokens"], **{n: batch[n] for n in also})["logits"]
    prompted = logits(params, program.shard_batch(batch))
    words = [5, 6, 7]  # their embeddings as the prompt equal these words in the text
    table = params["trunk"]["embed"]["embedding"]
    tokens = batch["tokens"].copy()
    tokens[tokens == e.peft.placeholder] = words * len(tokens)
    as_words = logits(set_at(params, ("trunk", "embed", PROMPT), table[np.array(words)]), batch)
    np.testing.assert_allclose(as_words, logits(params, {**batch, "tokens": tokens}), rtol=1e-5, atol=1e-6)
    assert float(np.abs(as_words - prompted).max()) > 1e-6
    batch["tokens"][1, 0, 1] = 5
    with pytest.raises(UserError, match="row 1 of a batch has this token 2 times; expected peft.length=3"):
        program.shard_batch(batch)
    with pytest.raises(UserError, match="row 1 of a batch"):
        program.shard_batches([batch])


def test_a_template_and_a_method_that_do_not_fit_are_told(task):
    for tuning, message in (
        (LoRA(), r"data.task.layout.text=.* <prompt> marks a soft prompt; expected peft=PTuning\(length=3\)"),
        (Prompt(length=4), "data.task.layout.text=.* has <prompt> 3 times, and peft.length=4"),
    ):
        with pytest.raises(FieldError, match=message):
            dataclasses.replace(task, peft=tuning).check()
    plain = Template(text="{text}?", layout=DecoderLayout())
    data = dataclasses.replace(task.data, task=SequenceClassificationTask(layout=plain))
    assert prepare(dataclasses.replace(task, data=data, peft=Prompt(length=2)))[0].peft == Prompt(length=2)
