"""Fine-tuning from the command line: pretrain, initialise from that run, evaluate, predict; and errors."""

import json

import pytest

from jaxnlp.training.run_folder.checkpoint import Reader
from tests.entry import ROOT, run

BERT, TUNE, GPT = (ROOT / "configs" / name for name in ("bert/tiny_pretrain.py", "bert/finetune.py", "gpt/finetune.py"))
TRUNK = ("num_layers=1", "num_heads=2", "embed_dim=16")
SHORT = (
    "num_steps=4",
    "data.batch_size=4",
    "optim.warmup_steps=1",
    "log_every=1",
    "eval_every=2",
    "checkpoint_every=2",
)


def train(config, workdir, *overrides, variant=""):
    spec = f"{config}:{variant}" if variant else str(config)
    flags = (f"--config.{o}" for o in (*SHORT, "eval_batches=2", "peak_flops=1e12", *overrides))
    return run("experiments.train", f"--config={spec}", f"--workdir={workdir}", *flags)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The config file of a small task initialised from RUN, task.py:RUN; and its data."""
    folder = tmp_path_factory.mktemp("task")
    texts = {"good": "yes yes yes", "bad": "no no no"}
    rows = [{"text": f"{texts[label]} {i}", "label": label} for i in range(40) for label in texts]
    for name, part in (("train", rows[:60]), ("validation", rows[60:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (folder / "task.py").write_text(f"""
from jaxnlp.data.pretrained_tokenizer import PretrainedTokenizer
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.records import Records
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.models.heads import ModelWithHead, SequenceClassificationHead
from jaxnlp.objectives.sequence_classification import SequenceClassification
from jaxnlp.optim import OptimConfig
from jaxnlp.training.init import pretrained
from jaxnlp.training.experiment import Experiment

def get_config(run):
    return Experiment(
        model=ModelWithHead(
            body=pretrained.model(run, heads=("pooler",)), head=SequenceClassificationHead(num_classes=2)
        ),
        init_from=pretrained.Pretrained(path=run),
        data=DataConfig(
            source=Records(train={str(folder / "train.jsonl")!r}, validation={str(folder / "validation.jsonl")!r}),
            tokenizer=PretrainedTokenizer(path=run),
            task=SequenceClassificationTask(),
            seq_len=48,
            prefetch_threads=0,
        ),
        objective=SequenceClassification(),
        optim=OptimConfig(learning_rate=1e-2),
    )
""")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained") / "bert"
    model = (f"model.{field}" for field in TRUNK)
    done = train(BERT, workdir, *model, "data.seq_len=32", "sample_tokens=0", "data.tokenizer.vocab_size=512")
    assert done.code == 0, done.err
    return workdir


@pytest.fixture(scope="module")
def tuned(task, pretrained):
    done = train(
        task / "task.py",
        task / "run",
        "num_steps=60",
        "data.batch_size=8",
        "eval_every=0",
        "checkpoint_every=30",
        variant=pretrained,
    )
    assert done.code == 0, done.err
    return task / "run", done


def test_a_run_begins_from_another_and_says_what_it_took(tuned, pretrained):
    workdir, done = tuned
    assert f"initialised from {pretrained}, step 4:" in done.err
    assert "missing    2: head/bias, head/kernel" in done.err
    assert "unexpected 7: masked_lm/bias" in done.err and "next_sentence/kernel" in done.err
    report = json.loads((workdir / "init.json").read_text())
    assert report["missing"] == ["head/bias", "head/kernel"] and "trunk/embed/embedding" in report["loaded"]
    assert len(report["unexpected"]) == 7 and report["numbers"][0] < report["numbers"][1]


def test_its_report_has_a_baseline_and_examples(tuned):
    _, done = tuned
    for words in (
        "validation split, 20 records, 20 examples:",
        "always the most frequent answer          0.6931      50.00%",
        "f1 macro",
        "validation examples, the reference and the model's answer:",
        "label good",
        "experiments.evaluate --workdir=",
    ):
        assert words in done.out, words


def test_it_has_learnt_and_is_evaluated_as_any_run(tuned):
    done = run("experiments.evaluate", f"--workdir={tuned[0]}", "--json")
    assert done.code == 0, done.err
    metrics = json.loads(done.out)
    assert metrics["tokens"] == 20 and metrics["accuracy"] == 1.0 and metrics["loss"] < 0.5


def test_a_resumed_run_has_its_own_parameters_and_names_its_classes(tuned, task):
    workdir, _ = tuned
    saved = Reader(workdir).read(60).experiment
    assert saved.data.task.classes == ("bad", "good")
    done = run("experiments.train", f"--workdir={workdir}", "--config.num_steps=62", "--config.init_from.path=gone")
    assert done.code == 0, done.err
    assert "resuming at step 60 of 62" in done.err and "initialised from" not in done.err
    assert Reader(workdir).steps()[-1] == 62


def test_predict(tuned, task, tmp_path):
    workdir, _ = tuned
    done = run("experiments.predict", f"--workdir={workdir}", "--text=yes yes yes 3")
    assert done.code == 0, done.err
    (row,) = map(json.loads, done.out.splitlines())
    assert row["text"].startswith("yes") and row["prediction"]["label"] == "good"
    assert sum(row["prediction"]["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    records = [{"text": "no no no 7"}, {"id": 7, "text": "yes yes yes 8", "label": "unknown"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    done = run(
        "experiments.predict", f"--workdir={workdir}", f"--input={tmp_path}/in.jsonl", f"--out={tmp_path}/out.jsonl"
    )
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [r["prediction"]["label"] for r in rows] == ["bad", "good"]
    assert rows[1]["id"] == 7 and rows[1]["label"] == "unknown"
    assert "2 records" in done.err
    for args, words in (
        ([], "--input, --text: expected exactly one of them"),
        ([f"--input={tmp_path}/none.jsonl"], "none.jsonl"),
        ([f"--text={'long ' * 60}"], "data.seq_len=48"),
        (["--input=x", "--text=x"], "--input, --text: expected exactly one of them"),
    ):
        done = run("experiments.predict", f"--workdir={workdir}", *args)
        assert done.code == 2 and words in done.err and done.err.count("\n") == 1, done.err


def test_what_cannot_begin_is_one_line(task, pretrained, tmp_path):
    bad = f"--config.data.source.train={tmp_path / 'bad.jsonl'}"
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "good"}\n{"text": "b", "label": "ugly"}\n')
    for variant, flag, words in (
        (tmp_path / "none", "--config.num_steps=4", "no such folder; train one with"),
        (task, "--config.num_steps=4", "has neither a checkpoint of a run"),
        (
            pretrained,
            "--config.model.head.num_classes=3",
            "model.head.num_classes=3: data.task has 2 classes (bad, good)",
        ),
        (pretrained, "--config.model.body.embed_dim=32", "and in this model"),
        (pretrained, "--config.model.body.num_layers=2", "trunk/block_1/attention/key/bias (and 15 more) is not in"),
        (pretrained, "--config.data.seq_len=6", "data.seq_len=6:"),
        (
            pretrained,
            bad,
            "validation.jsonl:2 has the label 'bad', which is not one of the classes; expected one of good, ugly",
        ),
    ):
        done = run("experiments.train", f"--config={task / 'task.py'}:{variant}", f"--workdir={tmp_path / 'run'}", flag)
        assert done.code == 2 and words in done.err, (words, done.err)
        assert done.err.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in done.err


@pytest.mark.slow
@pytest.mark.parametrize("config, task_name", [(TUNE, "span_extraction"), (GPT, "similarity")])
def test_the_configs_train(tmp_path, config, task_name):
    model = (f"model.body.{field}" for field in TRUNK)
    done = train(
        config, tmp_path / "run", *model, "data.tokenizer.vocab_size=512", "data.seq_len=384", variant=task_name
    )
    assert done.code == 0, done.err
    assert "always the most frequent answer" in done.out and "accuracy" in done.out


def test_an_unknown_task_is_named(tmp_path):
    bert = "expected sequence_classification, entailment, multiple_choice, token_classification, span_extraction"
    for config, words in ((TUNE, bert), (GPT, "expected sequence_classification, entailment, similarity")):
        done = run("experiments.train", f"--config={config}:sentiment", "--dry_run")
        assert done.code == 2 and f"finetune.py:sentiment: no such task; {words}" in done.err
