"""Files copied out of the package under new names train, save and load."""

import dataclasses
import importlib
import json
import re
import sys

import numpy as np
import pytest

from jaxnlp import config as configs
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.source import Record
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.data.text.sources import Files
from jaxnlp.data.tokenizer import Bytes
from jaxnlp.errors import UserError
from jaxnlp.evals.evaluator import EvaluatedModel
from jaxnlp.evals.rankings import RankingEvaluator
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.objectives.causal_lm import CausalLM
from jaxnlp.sharding.functional import make_apply
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.hooks import Samples
from jaxnlp.training.load import load
from jaxnlp.training.loops.supervised import train
from jaxnlp.training.report import report
from jaxnlp.training.run_folder.run_folder import RunFolder
from tests.entry import ROOT
from tests.experiments import small_task


def copied(folder, name: str, source: str, changes: list[tuple[str, str]]):
    """A module of the package copied into the folder under a new name, with text replaced, and imported."""
    text = (ROOT / "jaxnlp" / source).read_text()
    for old, new in changes:
        assert old in text, f"{source}: has no {old!r}"
        text = text.replace(old, new)
    (folder / f"{name}.py").write_text(text)
    return importlib.import_module(name)


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """`models/gpt.py` as `my_model.py`, with a residual branch halved: a one-line change."""
    monkeypatch.syspath_prepend(tmp_path)
    branch = "drop(feed(norm_2(x_BTD)), deterministic=deterministic)"
    yield copied(
        tmp_path,
        "my_model",
        "models/gpt.py",
        [(f"x_BTD + {branch}", f"x_BTD + 0.5 * {branch}"), ("GPTConfig", "MyConfig")],
    )
    sys.modules.pop("my_model")


@pytest.fixture
def objective(tmp_path, monkeypatch):
    """`objectives/causal_lm.py` as `my_objective.py`, with every loss doubled."""
    monkeypatch.syspath_prepend(tmp_path)
    changes = [("class CausalLM", "class MyObjective"), ("return total, jnp.sum", "return 2.0 * total, jnp.sum")]
    yield copied(tmp_path, "my_objective", "objectives/causal_lm.py", changes)
    sys.modules.pop("my_objective")


def test_copied_model_and_objective_files_train_and_read_back(fork, objective, corpus, tmp_path):
    source = Files(train=f"{corpus}/train.txt", validation=f"{corpus}/validation.txt", document="paragraph")
    experiment = Experiment(
        model=fork.MyConfig(max_length=32, num_layers=1, num_heads=2, embed_dim=16),
        data=DataConfig(source=source, tokenizer=Bytes(), seq_len=16, batch_size=8, prefetch_threads=0),
        objective=objective.MyObjective(),
        num_steps=3,
        log_every=1,
        peak_flops=1e12,
    )
    result = train(experiment, tmp_path / "run")
    assert np.isfinite(result.validation["loss"])
    saved = configs.to_dict(result.experiment)
    assert (saved["model"]["class"], saved["objective"]["class"]) == ("my_model:MyConfig", "my_objective:MyObjective")
    again = load(tmp_path / "run")
    assert type(again.saved.experiment.model) is fork.MyConfig
    assert type(again.saved.experiment.objective) is objective.MyObjective
    out = again.generator()(again.params, [[100, 101]], 5)
    assert len(out[0]) <= 5
    # The changes have an effect: the package's model gives other logits and half the loss with the same parameters.
    fields = {f.name: vars(again.saved.experiment.model)[f.name] for f in dataclasses.fields(GPTConfig)}
    tokens = np.arange(10)[None]
    house = make_apply(GPTConfig(**fields).build())
    forked = make_apply(again.saved.experiment.model.build())
    assert not np.allclose(house(again.params, tokens), forked(again.params, tokens))
    batch = {"tokens": tokens, "targets": tokens, "weights": np.ones_like(tokens, np.float32)}
    losses = [loss.loss(house, again.params, batch, None)[0] for loss in (CausalLM(), objective.MyObjective())]
    np.testing.assert_allclose(losses[1], 2 * losses[0], rtol=1e-6)


TASK = """
import dataclasses

import jax.numpy as jnp

from jaxnlp.data.baselines import Baseline
from jaxnlp.data.text.packing import Packed


@dataclasses.dataclass(kw_only=True)
class MyTask(Packed):
    unit = "characters"
    shown: int = 3

    def sample(self, model):
        (batch,) = model.batches(1)
        best_BT = model.run(lambda apply, batch: jnp.argmax(apply(batch["tokens"]), -1), batch)
        return ["", f"my sample: {best_BT[0, : self.shown].tolist()} of {model.store.description}"]

    def baselines(self, model):
        return [Baseline("a monkey at a typewriter", 5.5)]

    def next_commands(self, model, prompt):
        return [("play", "play", "--loud")]
"""


def test_a_task_outside_the_package_gives_its_own_sample_baseline_and_commands(corpus, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_task.py").write_text(TASK)
    source = Files(train=f"{corpus}/train.txt", validation=f"{corpus}/validation.txt", document="paragraph")
    task = importlib.import_module("my_task").MyTask()
    experiment = Experiment(
        model=GPTConfig(max_length=32, num_layers=1, num_heads=2, embed_dim=16),
        data=DataConfig(source=source, tokenizer=Bytes(), task=task, seq_len=16, batch_size=8, prefetch_threads=0),
        hooks=(Samples(every=2),),
        num_steps=2,
        peak_flops=1e12,
    )
    messages = []
    monkeypatch.setattr(RunFolder, "info", lambda self, text: messages.append(text))
    result = train(experiment, tmp_path / "run")
    text = report(result, tmp_path / "run")
    assert "characters:" in text and "nats/character" in text
    assert re.search(r"^  a monkey at a typewriter +5\.5000 ", text, re.M)
    assert f"play --workdir={tmp_path / 'run'} --loud" in text and "generate" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("my sample: [")]
    assert f"\n{line}" in messages  # the hook, at the last step, printed the same
    sys.modules.pop("my_task")


@pytest.fixture
def task(tmp_path, monkeypatch):
    """`data/tasks/sequence_classification.py` as `my_labelled_task.py`, which reads each text backwards."""
    monkeypatch.syspath_prepend(tmp_path)
    texts = "return self.inputs.texts(record)"
    changes = [
        ("SequenceClassificationTask", "MyClassification"),
        (texts, f"{texts[:7]}[t[::-1] for t in {texts[7:]}]"),
    ]
    yield copied(tmp_path, "my_labelled_task", "data/tasks/sequence_classification.py", changes)
    sys.modules.pop("my_labelled_task")


@pytest.fixture
def evaluator(tmp_path, monkeypatch):
    """`evals/rankings.py` as `my_evaluator.py`, which ranks the least likely candidate first."""
    monkeypatch.syspath_prepend(tmp_path)
    score = "results = self.score(ranking, scores, right)"
    negated = "scores = [[-x for x in row] for row in scores]"
    changes = [("RankingEvaluator", "MyEvaluator"), (score, f"{negated}\n        {score}")]
    yield copied(tmp_path, "my_evaluator", "evals/rankings.py", changes)
    sys.modules.pop("my_evaluator")


def test_copied_task_and_evaluator_files_train_evaluate_and_read_back(task, evaluator, tmp_path):
    for split in ("train", "validation"):
        rows = [{"text": f"ab{i}", "label": ("bad", "good")[i % 2]} for i in range(3)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    e = small_task.get_config(str(tmp_path))
    e.data.task, e.evaluators = task.MyClassification(classes=("bad", "good")), (evaluator.MyEvaluator(name="mine"),)
    e.num_steps, e.eval_every, e.checkpoint_every, e.best = 2, 0, 2, "mine/mean_reciprocal_rank:max"
    train(e, tmp_path / "run")
    run = load(tmp_path / "run")
    saved = run.saved.experiment
    assert type(saved.data.task) is task.MyClassification and type(saved.evaluators[0]) is evaluator.MyEvaluator
    model = EvaluatedModel(run.program, run.params, run.saved.tokenizer, run.generator)
    outcome = saved.evaluators[0].evaluate(model)
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["mean_reciprocal_rank"] for row in log if row["kind"] == "mine"] == [
        pytest.approx(outcome.metrics["mean_reciprocal_rank"])
    ]
    # The changes have an effect: the reverse order of candidates, and equal to the package's task on reversed texts.
    house = RankingEvaluator(name="house").evaluate(model)
    ranks = [results.metrics["mean_reciprocal_rank"] for results in (outcome, house)]
    assert sum(ranks) == pytest.approx(1.5)  # of two candidates one has rank 1 and the other 2
    house_task = SequenceClassificationTask(classes=("bad", "good"))
    encode = lambda task, text: task.encode(
        [Record("x", {"text": text, "label": "bad"})], run.saved.tokenizer, 8, print
    )
    (ours,), (theirs,) = encode(saved.data.task, "ab1"), encode(house_task, "1ba")
    np.testing.assert_array_equal(ours.sequences[0].tokens, theirs.sequences[0].tokens)


def test_a_checkpoint_of_a_fork_that_is_gone_says_what_is_missing(fork, corpus, tmp_path):
    configs.save_json(fork.MyConfig(), tmp_path / "c.json")
    module = sys.modules.pop("my_model")
    path = tmp_path / "my_model.py"
    path.rename(tmp_path / "elsewhere.txt")
    importlib.invalidate_caches()
    try:
        with pytest.raises(
            UserError, match=r"'my_model:MyConfig' cannot be imported .*install the package that defines it"
        ):
            configs.load_json(tmp_path / "c.json")
    finally:
        sys.modules["my_model"] = module
