"""Hooks and feeds of a run: early stopping, state of hooks, hooks in configs and in calls, custom batches."""

import dataclasses
import json
from typing import ClassVar

import numpy as np
import pytest

import jaxnlp
from jaxnlp.errors import FieldError, UserError
from jaxnlp.evals.evaluator import Evaluator, Outcome
from jaxnlp.evals.loss import LossEvaluator
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.rules import Sharding
from jaxnlp.training.feeds import BatchFeed, Feed
from jaxnlp.training.hooks import EarlyStopping, Evaluate, Hook
from jaxnlp.training.run_folder.best import Best
from jaxnlp.training.run_folder.checkpoint import Reader
from jaxnlp.training.run_folder.metric_log import read_log
from jaxnlp.training.run_folder.run_folder import RunFolder
from tests.experiments import small


@dataclasses.dataclass(kw_only=True)
class Scripted(Evaluator):
    """An evaluator that returns the next number of `scores` at each call."""

    scores: ClassVar[list[float]] = []

    def evaluate(self, model):
        return Outcome({"score": Scripted.scores.pop(0)})


@dataclasses.dataclass(kw_only=True)
class Witness(Hook):
    """Records its calls, and counts them over all processes of a run."""

    tag: str = ""
    seen: ClassVar[list[tuple]] = []
    acts = 0

    def begin(self, loop):
        self.seen.append((self.tag, "begin", loop.run.step))

    def on_metrics(self, loop, step, metrics, ended):
        assert metrics["loss"].shape == (loop.stride,) and np.isfinite(metrics["loss"]).all()
        self.seen.append((self.tag, "metrics", step))

    def act(self, loop):
        assert int(loop.state.step) == loop.run.step
        self.acts += 1
        self.seen.append((self.tag, "act", loop.run.step))

    def end(self, loop):
        self.act(loop)
        self.seen.append((self.tag, "end", self.acts))

    def state(self):
        return {"acts": self.acts}

    def restore(self, saved):
        self.acts = saved["acts"]


@pytest.fixture(autouse=True)
def fresh():
    Scripted.scores.clear()
    Witness.seen.clear()


def experiment(corpus, **fields):
    e = small.get_config(str(corpus))
    e.sharding, e.eval_batches, e.sample_tokens = Sharding(mesh=MeshConfig()), 1, 0
    e.optim.warmup_steps = 0
    return dataclasses.replace(e, **{"eval_every": 0, "checkpoint_every": 0, "keep_last": 1, **fields})


def test_a_run_ends_when_the_best_no_longer_improves_also_when_resumed(corpus, tmp_path, capsys):
    def train(num_steps, scores):
        Scripted.scores[:] = scores
        evaluators, stop = (Scripted(name="scripted", every=1),), EarlyStopping(patience=2)
        fields = {
            "num_steps": num_steps,
            "evaluators": evaluators,
            "early_stopping": stop,
            "best": "scripted/score:max",
        }
        step = jaxnlp.train(experiment(corpus, checkpoint_every=1, **fields), tmp_path).step
        message = "early stopping: scripted/score:max has not improved for 2 evaluations"
        err = capsys.readouterr().err
        assert "has not improved for 3 evaluations" not in err
        return step, message in err, Reader(tmp_path).best()

    assert train(3, [0.1, 0.5, 0.4]) == (3, False, 2)
    assert train(9, [0.3, 0.9]) == (4, True, 2)  # the second without improvement; the first was before the resume
    assert train(9, [0.1]) == (4, True, 2)  # its last step is evaluated again, but not counted again


class ScriptedEvaluations:
    """One score per step."""

    def __init__(self, run, mode, scores):
        self.best, self._run, self._scores = Best("scripted", "score", mode), run, scores

    def score(self):
        return self._scores[self._run.step - 1]


class ScriptedLoop:
    """The part of a loop that early stopping uses."""

    def __init__(self, run, mode, scores):
        self.run, self.evaluations = run, ScriptedEvaluations(run, mode, scores)


NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "costs", "last"),
    [
        ({}, [5, 3, 4, 3.5, 1], 4),
        ({}, [5, 6, 4, 5, 3, 4, 4, 0], 7),  # an improvement resets the count
        ({"patience": 1}, [5, 5, 0], 2),  # an equal score is not an improvement
        ({"min_delta": 0.5}, [5, 4.6, 4.4, 4.2, 4.0, 0], 5),  # compared with the best score, not the previous one
        ({}, [5, None, None, 6, None, 6, None, 0], 6),  # steps without evaluation do not count
        ({"patience": 3}, [NAN, NAN, NAN, 0], 3),
        ({}, [5, 4, 3, 2], 4),
    ],
)
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("resumes", [False, True])
def test_patience(mode, resumes, fields, costs, last, tmp_path):
    scores = [x if x is None or mode == "min" else -x for x in costs]
    stop = EarlyStopping(**{"patience": 2, **fields})
    with RunFolder(tmp_path) as run:
        run.start(len(scores))
        loop = ScriptedLoop(run, mode, scores)
        for _ in run.steps():
            if resumes:  # resumed after every step, from the state saved as JSON
                saved, stop = json.loads(json.dumps(stop.state())), EarlyStopping(**{"patience": 2, **fields})
                if saved:
                    stop.restore(saved)
                stop.begin(loop)
            stop.act(loop)
    assert run.step == last


class Repeated(Feed):
    """Each batch of the split twice."""

    def __init__(self, inner: Feed):
        self.inner, self.count = inner, 0

    def next(self, state):
        assert int(state.step) == self.count
        if self.count % 2 == 0:
            self.newest = self.inner.next(state)
        self.count += 1
        return self.newest

    def state(self):
        return {**self.inner.state(), "count": self.count}

    def restore(self, saved, step):
        assert saved["count"] == step
        self.inner.restore(saved, step)
        self.count = saved["count"]


def test_hooks_and_a_feed_of_ones_own_act_and_keep_their_states(corpus, tmp_path):
    hooks = (Witness(tag="a", every=2, at_end=True), Witness(tag="b", every=3))
    more = (Witness(tag="c", every=4, at_end=True),)
    feeds = []

    def make_feed(setup):
        feeds.append(Repeated(BatchFeed(setup.program, setup.stores["train"], setup.tokenizer)))
        return feeds[-1]

    model = jaxnlp.train(experiment(corpus, num_steps=4, hooks=hooks), tmp_path, hooks=more, make_feed=make_feed)
    by_tag = lambda tag: [event[1:] for event in Witness.seen if event[0] == tag and event[1] != "metrics"]
    assert by_tag("a") == [("begin", 0), ("act", 2), ("act", 4), ("end", 2)]
    assert by_tag("b") == [("begin", 0), ("act", 3)]
    assert by_tag("c") == [("begin", 0), ("act", 4), ("end", 1)]
    assert [event[2] for event in Witness.seen if event[:2] == ("b", "metrics")] == [1, 2, 3, 4]
    assert (feeds[0].count, feeds[0].inner.state()["position"]) == (4, 2 * 8)
    # The config has the hooks, the checkpoint the state of each one, also with several of one class.
    saved = jaxnlp.load(tmp_path).experiment
    assert saved.hooks == model.experiment.hooks == hooks and hooks[0].acts == 0  # the run copies hooks
    Witness.seen.clear()
    longer = dataclasses.replace(saved, num_steps=6)
    jaxnlp.train(longer, tmp_path, hooks=more, make_feed=make_feed)
    assert by_tag("a") == [("begin", 4), ("act", 6), ("end", 3)]
    assert by_tag("b") == [("begin", 4), ("act", 6), ("end", 2)]
    assert by_tag("c") == [("begin", 4), ("act", 6), ("end", 2)]
    assert (feeds[1].count, feeds[1].inner.state()["position"]) == (6, 3 * 8)


def test_hooks_that_cannot_work_are_named(corpus):
    for fields, message in (
        ({"early_stopping": EarlyStopping(patience=0)}, "early_stopping.patience=0: expected a positive number"),
        ({"early_stopping": EarlyStopping(min_delta=-1.0)}, "early_stopping.min_delta=-1.0: expected zero or more"),
        ({"hooks": (EarlyStopping(patience=0),)}, r"hooks\[0\].patience=0: expected a positive number"),
        ({"hooks": (Witness(every=3),), "steps_per_call": 2}, r"hooks\[0\].every=3: not a multiple of steps_per_call"),
        ({"hooks": (Witness(every=-1),)}, r"hooks\[0\].every=-1: expected 0 \(never\) or a positive number"),
        (
            {"hooks": (Evaluate(evaluator=LossEvaluator(name="a", limit=0)),)},
            r"hooks\[0\].evaluator.limit=0: expected 1 or",
        ),
        (
            {"hooks": (Evaluate(evaluator=LossEvaluator(name="validation")),)},
            "hooks=.*validation.*expected names that differ",
        ),
        ({"evaluators": (Scripted(name="train"),)}, "evaluators='train': expected names that differ"),
        (
            {"evaluators": (Scripted(name="validation"),), "eval_every": None},
            "evaluators='validation': expected names that differ",
        ),
        (
            {"best": "full_validation/loss:min"},
            "best='full_validation/loss:min': is measured after the checkpoint .*expected 'validation/loss:min'",
        ),
        ({"best": "other/loss:min"}, "no evaluator 'other'; expected one of validation$"),
        ({"hooks": ("log",)}, "hooks=.*expected tuple"),
    ):
        with pytest.raises(FieldError, match=message):
            jaxnlp.train(experiment(corpus, **{"eval_every": 0, "log_every": 2, "checkpoint_every": 0, **fields}), "no")


def test_a_metric_of_best_that_nothing_measures_is_named_after_the_step_is_saved(corpus, tmp_path):
    Scripted.scores[:] = [np.float32(0.5)]  # a NumPy scalar is logged as a number
    fields = {"evaluators": (Scripted(name="scripted"),), "best": "scripted/f1:max", "num_steps": 1, "eval_every": None}
    with pytest.raises(UserError, match="best='scripted/f1:max': scripted measures no such metric; expected .* score"):
        jaxnlp.train(experiment(corpus, **fields), tmp_path)
    assert Reader(tmp_path).steps() == [1] and Reader(tmp_path).score(1) is None
    assert [row["score"] for row in read_log(tmp_path / "metrics.jsonl") if row["kind"] == "scripted"] == [0.5]


def test_the_evaluator_of_a_hook_of_the_call_has_a_name_of_its_own_and_ranks_checkpoints(corpus, tmp_path):
    Scripted.scores[:] = [0.9, 0.5]
    hooks = [Evaluate(evaluator=Scripted(name="scripted"), every=1)]
    fields = {"num_steps": 2, "checkpoint_every": 1, "eval_every": None}
    jaxnlp.train(experiment(corpus, best="scripted/score:max", **fields), tmp_path / "run", hooks=hooks)
    assert Reader(tmp_path / "run").best() == 1
    Scripted.scores[:] = [0.7]
    jaxnlp.train(None, tmp_path / "run", hooks=hooks)  # it ends again, with the config of the checkpoint
    with pytest.raises(FieldError, match="no evaluator 'scripted'"):
        jaxnlp.train(None, tmp_path / "run")
    twice = experiment(corpus, evaluators=(Scripted(name="scripted"),), **fields)
    for own in (hooks, [Evaluate(evaluator=LossEvaluator(name="validation"))]):
        with pytest.raises(FieldError, match="hooks=.*expected names that differ"):
            jaxnlp.train(twice, tmp_path / "other", hooks=own)


def test_the_position_of_another_feed_is_refused():
    feed = object.__new__(BatchFeed)
    with pytest.raises(UserError, match="step 3 was saved with another feed: .* resume with the same make_feed"):
        feed.restore({"episodes": 7}, 3)


def test_what_is_no_experiment_is_refused(corpus, tmp_path):
    with pytest.raises(UserError, match="train: got GPTConfig; expected an Experiment, as jaxnlp.load_config"):
        jaxnlp.train(experiment(corpus).model, tmp_path)
    with pytest.raises(FieldError, match=r"hooks\[0\]='log': expected a hook of jaxnlp.training.hooks"):
        jaxnlp.train(experiment(corpus), tmp_path, hooks=["log"])
    with pytest.raises(FieldError, match=r"hooks\[0\].every=3: not a multiple of steps_per_call=2"):
        e = experiment(corpus, steps_per_call=2, num_steps=4, log_every=2)
        jaxnlp.train(e, tmp_path, hooks=[Witness(every=3)])
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        jaxnlp.train(None, tmp_path / "new")
