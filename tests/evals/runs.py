"""Small runs with evaluators, also as a config file: --config=tests/evals/runs.py:FOLDER,NAME, with `write`'s data."""

import dataclasses
import json
import pathlib

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.records import Records
from jaxnlp.data.tasks.multiple_choice import MultipleChoiceTask
from jaxnlp.data.tasks.span_extraction import SpanExtractionTask
from jaxnlp.data.tasks.text_pairs import TextPairs
from jaxnlp.data.tasks.token_classification import TokenClassificationTask
from jaxnlp.data.text.packing import Packed
from jaxnlp.data.text.sources import Files
from jaxnlp.data.tokenizer import Bytes
from jaxnlp.evals.evaluator import Evaluator
from jaxnlp.evals.generations import GenerationEvaluator
from jaxnlp.evals.predictions import PredictionEvaluator
from jaxnlp.evals.rankings import RankingEvaluator
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.heads import ModelWithHead, MultipleChoiceHead, SpanExtractionHead, TokenClassificationHead
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.objectives.causal_lm import CausalLM
from jaxnlp.objectives.multiple_choice import MultipleChoice
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.objectives.span_extraction import SpanExtraction
from jaxnlp.objectives.token_classification import TokenClassification
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment

QA = {"question": "where?", "context": "in a b", "answers": {"text": ["b"], "answer_start": [5]}}
NONE = {"question": "who?", "context": "a b", "answers": {"text": [], "answer_start": []}}
TAGS = {"words": ["Ann", "is", "in", "Ulm"], "tags": ["B-PER", "O", "O", "B-LOC"]}
PAIR = {"source": "a b c d", "target": "d c b a"}
CHOICE = {"context": "a", "options": ["b", "c", "d"], "label": 2}
RANKED = [{"context": "a" * i, "options": ["b", "c" * i, "dd"], "label": i % 3} for i in range(1, 6)]
ROWS = {  # of the validation split; the train split has the first two
    "span": [QA, NONE, QA],
    "tags": [TAGS] * 3,
    "pairs": [PAIR] * 3,
    "choice": [CHOICE] * 5,
    "ranked": RANKED,
    "answers": [{"source": "abcd ", "target": "dcba"}] * 3,
}
HEADED = {
    "span": (SpanExtractionTask(), SpanExtractionHead(), SpanExtraction()),
    "tags": (TokenClassificationTask(), TokenClassificationHead(num_classes=3), TokenClassification()),
    "choice": (MultipleChoiceTask(num_options=3), MultipleChoiceHead(), MultipleChoice()),
}
EVALUATORS: dict[str, Evaluator] = {
    "span": PredictionEvaluator(name="squad", bootstrap_samples=10),
    "tags": PredictionEvaluator(name="ner"),
    "pairs": GenerationEvaluator(name="translation"),
    "choice": RankingEvaluator(name="ranks"),
    "ranked": RankingEvaluator(name="next", task=MultipleChoiceTask(num_options=3)),
    "answers": GenerationEvaluator(name="answers", task=TextPairs(), max_new_tokens=4),
}


def write(folder: pathlib.Path, name: str, copies: int = 1) -> None:
    """Writes the splits of a run, the validation split with the records `copies` times."""
    for split, rows in (("train", ROWS[name][:2]), ("validation", ROWS[name] * copies)):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / f"{split}.txt").write_text("\n".join("abcd dcba" * 9 for _ in range(9)))


def get_config(variant: str) -> Experiment:
    folder, name = variant.split(",")
    source = Records(train=f"{folder}/train.jsonl", validation=f"{folder}/validation.jsonl")
    if name in ("ranked", "answers"):  # a language model reads text, and its evaluator records
        evaluator = dataclasses.replace(EVALUATORS[name], source=source)
        source = Files(train=f"{folder}/train.txt", validation=f"{folder}/validation.txt")
        model = GPTConfig(max_length=24, num_layers=1, num_heads=2, embed_dim=16)
        task, objective = Packed(), CausalLM()
    elif name == "pairs":
        evaluator, task, objective = EVALUATORS[name], TextPairs(target_len=12), Seq2Seq()
        model = TransformerConfig(
            max_length=24, num_layers=1, num_decoder_layers=1, num_heads=2, embed_dim=16, mlp_dim=16
        )
    else:
        evaluator, (task, head, objective) = EVALUATORS[name], HEADED[name]
        heads = ("pooler",) if name == "choice" else ()
        body = BertConfig(max_length=24, num_layers=1, num_heads=2, embed_dim=16, heads=heads)
        model = ModelWithHead(body=body, head=head)
    tokenizer = Bytes(special_tokens=("[CLS]", "[SEP]"))
    return Experiment(
        model=model,
        data=DataConfig(source=source, tokenizer=tokenizer, task=task, seq_len=24, batch_size=8, prefetch_threads=0),
        objective=objective,
        optim=OptimConfig(warmup_steps=0, learning_rate=2e-2),
        evaluators=(evaluator,),
        num_steps=2,
        eval_every=1,
        checkpoint_every=1,
        sample_tokens=0,
        peak_flops=1e12,
    )
