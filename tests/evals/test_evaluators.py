"""Evaluators in training and by command: SQuAD's EM and F1, seqeval's F1, BLEU and ranks, also as `best`."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxnlp
from jaxnlp import config as configs
from jaxnlp.data.records import Records
from jaxnlp.data.source import Record
from jaxnlp.data.tasks.multiple_choice import MultipleChoiceTask
from jaxnlp.data.text.sources import Files, PythonStdlib
from jaxnlp.errors import FieldError, UserError
from jaxnlp.evals.defaults import choose
from jaxnlp.evals.evaluator import EvaluatedModel, find, row_of
from jaxnlp.evals.file_source import file_source
from jaxnlp.evals.loss import LossEvaluator
from jaxnlp.evals.predictions import PredictionEvaluator
from jaxnlp.evals.rankings import RankingEvaluator
from jaxnlp.metrics.generation import bleu, chrf
from jaxnlp.metrics.question_answering import squad
from jaxnlp.metrics.tagging import entities
from jaxnlp.training.load import load
from jaxnlp.training.loops.evaluations import BestCheckpoint
from jaxnlp.training.loops.supervised import train
from jaxnlp.training.report import report
from jaxnlp.training.run_folder.checkpoint import Reader
from jaxnlp.training.setup import prepare
from jaxnlp.training.step.program import build
from tests.entry import ROOT, run
from tests.evals import runs
from tests.jobs import job
from tests.training import meshed


def experiment(folder, name, copies=1, **fields):
    runs.write(folder, name, copies)
    return dataclasses.replace(runs.get_config(f"{folder},{name}"), **fields)


def evaluated(loaded):
    return EvaluatedModel(loaded.program, loaded.params, loaded.saved.tokenizer, loaded.generator)


def logged(folder, kind):
    """The rows of an evaluator in a run's log, by step."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row for row in rows if row["kind"] == kind}


METRICS = {  # the metric that is `best`, the steps to learn it, and all metrics
    "span": ("f1", 24, {"exact_match", "f1", "f1_low", "f1_high"}),
    "tags": ("f1", 4, {"accuracy", "precision", "recall", "f1"}),
    "pairs": ("bleu", 60, {"bleu", "chrf", "exact_match"}),
    "answers": ("chrf", 40, {"bleu", "chrf", "exact_match"}),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_run_is_measured_and_keeps_the_best_by_a_metric(name, tmp_path):
    metric, steps, wanted = METRICS[name]
    e = experiment(tmp_path, name, num_steps=steps, eval_every=steps // 4, checkpoint_every=steps // 4, keep_last=1)
    (evaluator,) = e.evaluators
    e.best, e.eval_batches = f"{evaluator.name}/{metric}:max", 1
    result = train(e, tmp_path / "run")
    rows = logged(tmp_path / "run", evaluator.name)
    scores = {step: row[metric] for step, row in rows.items()}
    assert [*rows] == [steps // 4 * i for i in range(1, 5)] and wanted <= set(rows[steps])
    assert max(scores.values()) > min(scores.values())  # otherwise all checkpoints would tie
    best = Reader(tmp_path / "run").best()
    ranked_by, score = Reader(tmp_path / "run").score(best) or (None, None)
    assert str(ranked_by) == e.best and scores[best] == max(scores.values()) == pytest.approx(score)
    assert result.best == BestCheckpoint(f"{evaluator.name}/{metric}", best, pytest.approx(scores[best]))
    assert result.evaluations[evaluator.name].step == steps
    assert result.evaluations[evaluator.name].metrics[metric] == scores[steps]
    lines = report(result, tmp_path / "run").splitlines()
    described = f"{evaluator.name} (validation split{' of Records' if evaluator.source else ''}, step {steps}): "
    (line,) = [line for line in lines if line.startswith(described)]
    assert all(f"{name.replace('_', ' ')} {rows[steps][name]:.4g}" in line for name in wanted)
    assert f"best {evaluator.name}/{metric} {scores[best]:.4g} at step {best} (--checkpoint=best)" in lines
    outcome = evaluator.evaluate(evaluated(load(tmp_path / "run", "best")))
    assert outcome.metrics[metric] == pytest.approx(scores[best])
    assert len(outcome.rows) == 3  # the last batch is padded, and each record is counted once
    predictions, references = ([row[key] for row in outcome.rows] for key in ("prediction", "reference"))
    direct = {
        "span": lambda: squad([p["answer"] for p in predictions], [r["answers"] for r in references]),
        "tags": lambda: entities([p["tags"] for p in predictions], [r["tags"] for r in references]),
        "pairs": lambda: bleu([p["text"] for p in predictions], [r["text"] for r in references]),
        "answers": lambda: chrf([p["text"] for p in predictions], [r["text"] for r in references]),
    }[name]()
    assert direct[metric] == outcome.metrics[metric]
    assert configs.from_dict(configs.to_dict(result.experiment)).evaluators == (evaluator,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["span", "pairs", "choice", "ranked", "answers"])
def test_two_processes_count_every_example_once(name, tmp_path):
    runs.write(tmp_path, name, copies=4)  # in more than one batch of 8, the last one padded
    workdir = f"--workdir={tmp_path / 'run'}"
    job(2, "experiments.train", f"--config={ROOT}/tests/evals/runs.py:{tmp_path},{name}", workdir)
    (evaluator,) = runs.get_config(f"{tmp_path},{name}").evaluators
    outcome = evaluator.evaluate(evaluated(load(tmp_path / "run")))  # in this process
    count = 4 * len(runs.ROWS[name])
    assert len(outcome.rows) == count
    log = logged(tmp_path / "run", evaluator.name)
    assert {name: log[2][name] for name in outcome.metrics} == pytest.approx(outcome.metrics, abs=1e-5)
    files = [f"--out={tmp_path / 'scores.json'}", f"--predictions={tmp_path / 'said.jsonl'}"]
    pair = job(2, "experiments.evaluate", workdir, *files)
    assert f"{evaluator.name}/" in pair[0].out and not pair[1].out
    scores = json.loads((tmp_path / "scores.json").read_text())
    for metric, value in outcome.metrics.items():
        assert scores[f"{evaluator.name}/{metric}"] == pytest.approx(value, abs=1e-5)
    if name not in ("ranked", "answers"):  # its loss counts text tokens
        examples = {"pairs": count * (len("d c b a") + 1)}.get(name, count)
        assert scores["tokens"] == examples
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in rows] == json.loads(json.dumps([row["reference"] for row in outcome.rows]))


def test_the_command_evaluates_on_a_file_and_writes_predictions(tmp_path):
    train(experiment(tmp_path, "tags"), tmp_path / "run")
    (tmp_path / "new.jsonl").write_text("\n".join([json.dumps({**runs.TAGS, "evaluator": "Eve"})] * 5))
    files = [f"--{flag}={tmp_path / name}" for flag, name in (("input", "new.jsonl"), ("predictions", "said.jsonl"))]
    done = run("experiments.evaluate", f"--workdir={tmp_path / 'run'}", *files, f"--out={tmp_path / 'scores.json'}")
    assert done.code == 0, done.err
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {"loss", "ner/f1", "ner/accuracy"} <= set(scores) and scores["tokens"] == 20
    model = jaxnlp.load(tmp_path / "run")
    metrics, few = model.evaluate(), PredictionEvaluator(name="few", limit=2)
    assert {"loss", "ner/f1", "ner/accuracy"} <= set(metrics)
    assert model.evaluate(evaluators=["ner"]) == {k: x for k, x in metrics.items() if k.startswith("ner/")}
    assert set(model.evaluate("train", evaluators=[few])) == {f"few/{k}" for k in METRICS["tags"][2]}
    with pytest.raises(UserError, match="no evaluator 'squad'"):
        model.evaluate(evaluators=["squad"])
    assert scores["evaluators"]["ner"] == {"split": "test", "source": str(tmp_path / "new.jsonl")}
    assert "perplexity" not in scores and "nats/word" in done.out and "ner/f1" in done.out and "loss" in done.out
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and rows[0]["reference"] == {"tags": runs.TAGS["tags"]}
    assert len(rows[0]["prediction"]["tags"]) == 4 and rows[0]["evaluator"] == "ner"
    assert rows[0]["record_evaluator"] == "Eve"
    flags = ["--evaluators=loss,tests.evals.test_evaluators:made", f"--predictions={tmp_path / 'few.jsonl'}", "--json"]
    done = run("experiments.evaluate", f"--workdir={tmp_path / 'run'}", *flags)
    assert "made/f1" in json.loads(done.out) and len((tmp_path / "few.jsonl").read_text().splitlines()) == 2, done.err
    flags = ["--evaluators=loss", f"--predictions={tmp_path / 'none.jsonl'}"]
    done = run("experiments.evaluate", f"--workdir={tmp_path / 'run'}", *flags)
    assert done.code == 0 and "none.jsonl is empty: loss predicts no records" in done.err, done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metrics", "references"),
    [
        ("ranked", {"accuracy", "mean_reciprocal_rank", "recall_at_1"}, [1, 2]),
        ("answers", {"bleu", "chrf", "exact_match"}, [{"text": "dcba"}] * 2),
    ],
)
def test_an_evaluator_of_records_reads_a_file_named_on_the_command_line_of_a_run_on_text(
    name, metrics, references, tmp_path
):
    e = experiment(tmp_path, name)
    train(e, tmp_path / "run")
    evaluator = e.evaluators[0].name
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, runs.ROWS[name][:2])))
    rows_flag = f"--predictions={tmp_path / 'said.jsonl'}"
    flags = [f"--input={tmp_path / 'new.jsonl'}", f"--evaluators={evaluator}", rows_flag]
    done = run("experiments.evaluate", f"--workdir={tmp_path / 'run'}", *flags, "--json")
    assert done.code == 0, done.err
    assert {f"{evaluator}/{metric}" for metric in metrics} <= set(json.loads(done.out))
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [row["reference"] for row in rows] == references
    unknown = run("experiments.evaluate", f"--workdir={tmp_path / 'run'}", "--evaluators=squad")
    wanted = f"no evaluator 'squad'; expected module:name, or one of loss, {evaluator}"
    assert unknown.code == 2 and wanted in unknown.err, unknown.err


LINES = Files(train="a", validation="b", document="line", field="body")
PAGES = Records(train="a", test="b", group="page")


@pytest.mark.parametrize(
    ("own", "of_run", "of_records", "wanted"),
    [
        (LINES, Files(train="c"), False, dataclasses.replace(LINES, train="new", validation="", test="new")),
        (None, LINES, False, dataclasses.replace(LINES, train="new", validation="", test="new")),
        (PAGES, LINES, True, Records(train="new", test="new", group="page")),
        (LINES, PAGES, True, Records(train="new", test="new", group="page")),
        (None, PAGES, False, Files(train="new", test="new")),
        (None, PythonStdlib(), False, Files(train="new", test="new")),
    ],
)
def test_a_file_is_read_as_those_of_the_source_that_it_replaces(own, of_run, of_records, wanted):
    assert file_source("new", of_records, (own, of_run)) == wanted


def test_candidates_are_ranked_and_a_loss_has_data_of_its_own(tmp_path):
    train(experiment(tmp_path, "choice"), tmp_path / "run")
    model = evaluated(load(tmp_path / "run"))
    (tmp_path / "other.jsonl").write_text(json.dumps({**runs.CHOICE, "label": 0}) + "\n" + json.dumps(runs.CHOICE))
    other = Records(train=str(tmp_path / "other.jsonl"), validation=str(tmp_path / "other.jsonl"))
    ranks = RankingEvaluator(name="ranks", source=other).run(model)
    assert 1 / 3 <= ranks["mean_reciprocal_rank"] <= 1 and ranks["accuracy"] in (0.0, 0.5, 1.0)
    assert LossEvaluator(name="other", source=other).run(model)["tokens"] == 2
    assert LossEvaluator(name="own").run(model)["tokens"] == 5
    assert len(PredictionEvaluator(name="few", limit=3).evaluate(model).rows) == 3
    more = PredictionEvaluator(name="more", metrics=("jaxnlp.metrics.classification:classification",)).run(model)
    assert "f1_macro" in more


def test_a_language_model_on_a_mesh_ranks_while_it_trains(corpus, tmp_path):
    rows = runs.RANKED
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Records(train=f"{tmp_path}/rows.jsonl", validation=f"{tmp_path}/rows.jsonl")
    e = meshed.get_config(f"{corpus},TP,data=4,tensor=2")
    e.num_steps, e.optim.warmup_steps, e.eval_every, e.checkpoint_every = 2, 0, 1, 1
    e.evaluators = (RankingEvaluator(name="next", source=source, task=MultipleChoiceTask(num_options=3)),)
    e.best = "next/mean_reciprocal_rank:max"
    model = jaxnlp.train(e, tmp_path / "run")
    scores = {step: row["mean_reciprocal_rank"] for step, row in logged(tmp_path / "run", "next").items()}
    assert scores[Reader(tmp_path / "run").best()] == max(scores.values()) and set(scores) == {1, 2}
    outcome = e.evaluators[0].evaluate(evaluated(model.loaded))
    assert outcome.metrics["mean_reciprocal_rank"] == pytest.approx(scores[2]) and len(outcome.rows) == 5
    wanted = model.score(
        [row["context"] for row in rows for _ in range(3)], [" " + x for r in rows for x in r["options"]]
    )
    np.testing.assert_allclose([x for row in outcome.rows for x in row["prediction"]["scores"]], wanted, rtol=1e-5)


def test_wrong_evaluators_are_named(tmp_path):
    for fields, message in (
        ({"best": "squad/f1:max", "evaluators": ()}, "best='squad/f1:max': no evaluator 'squad'"),
        ({"evaluators": (LossEvaluator(name="validation"),)}, "evaluators='validation': expected names that differ"),
        ({"evaluators": (LossEvaluator(name="loss"),)}, r"evaluators\[0\].name='loss': expected a name other than"),
        ({"evaluators": (LossEvaluator(name="a/b"),)}, r"evaluators\[0\].name='a/b': expected a name without / and :"),
    ):
        with pytest.raises(FieldError, match=message):
            configs.check(experiment(tmp_path, "span", **fields))
    with pytest.raises(UserError, match="no evaluator 'b'; expected module:name, or one of a"):
        find([LossEvaluator(name="a")], ["b"], "evaluators")


SIZES = RankingEvaluator(name="sizes", limit=2)
BAD = LossEvaluator(name="bad", limit=0)


def made():
    return PredictionEvaluator(name="made", limit=2)


def test_an_evaluator_is_named_by_module_and_name():
    own = [LossEvaluator(name="loss"), LossEvaluator(name="own")]
    assert find(own, [f"{__name__}:SIZES", "own", f"{__name__}:made"], "x") == [SIZES, own[1], made()]
    for names, message in (
        (["no.module:f"], r"x='no.module:f': cannot be imported \(No module named 'no'\); expected module:name"),
        ([f"{__name__}:none"], "x=.*:none': cannot be imported .*; expected module:name"),
        ([f"{__name__}:ROOT"], "x=.*is PosixPath; expected an Evaluator, or a function without arguments that"),
        ([f"{__name__}:experiment"], "x=.*is function; expected an Evaluator, or a function without arguments that"),
        ([f"{__name__}:LossEvaluator"], "x=.*is the class LossEvaluator; expected an Evaluator, or a function"),
        ([f"{__name__}:BAD"], "BAD.limit=0: expected 1 or more"),
        (["own", "own"], "x='own,own': 'own' is listed twice"),
    ):
        with pytest.raises(FieldError, match=message):
            find(own, names, "x")
    with pytest.raises(FieldError, match="its name 'sizes' is that of another evaluator; rename it, as 'my_sizes'"):
        find([*own, SIZES], [f"{__name__}:SIZES"], "x")


def test_a_records_own_fields_are_in_its_row_too():
    fields = {"text": "a", "prediction": 1, "record_prediction": 2, "reference": 3}
    row = row_of(Record("r:1", fields), "p", "r")
    assert row == {
        "text": "a",
        "record_record_prediction": 1,
        "record_prediction": 2,
        "record_reference": 3,
        "prediction": "p",
        "reference": "r",
    }


def test_a_split_without_targets_is_named_with_its_evaluator(tmp_path):
    e, tokenizer = prepare(experiment(tmp_path, "tags"))
    program = build(e, jax.devices()[:1])
    nothing = dataclasses.replace(program, eval_step=lambda params, batch: {"loss": 0.0, "weight": 0.0})
    model = EvaluatedModel(nothing, None, tokenizer, lambda: None)
    with pytest.raises(UserError, match="evaluator 'mine', validation split: the sum of the targets' weights is 0"):
        LossEvaluator(name="mine").evaluate(model)


def test_a_run_that_never_evaluates_the_loss_is_not_evaluated_on_it_by_default(tmp_path):
    e = experiment(tmp_path, "span", eval_every=None)
    assert choose(e) == list(e.evaluators) and [evaluator.name for evaluator in choose(e, ["loss"])] == ["loss"]
    e.evaluators = ()
    assert [evaluator.name for evaluator in choose(e)] == ["predictions"]
    with pytest.raises(UserError, match="eval_every=None, and the run has no evaluators"):
        choose(e, predictions=False)
