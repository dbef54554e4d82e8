"""Every entry point has --help, every config builds, and every bad input gives a one-line error."""

import json
import os
import re
import stat

import pytest

from jaxnlp import cli
from jaxnlp import config as configs
from tests.entry import ROOT, run

ENTRIES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in [*(ROOT / "experiments").glob("*.py"), *(ROOT / "experiments").rglob("__main__.py")]
    if p.name != "__init__.py"
)
CONFIGS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.py") if p.name != "__init__.py")
SMALL = ROOT / "tests" / "experiments" / "small.py"


def test_there_are_entry_points_and_configs():
    assert {"experiments.train", "experiments.generate", "experiments.evaluate", "experiments.tokenize"} <= set(ENTRIES)
    assert "configs/gpt/tiny.py" in CONFIGS


@pytest.mark.parametrize("module", ENTRIES)
def test_help(module):
    done = run(module, "--help")
    assert done.code == 0, done.err
    assert f"python -m {module.removesuffix('.__main__')}" in done.out and "Flags:" in done.out and "--" in done.out
    assert done.err == ""


@pytest.mark.parametrize("config", [pytest.param(c, marks=() if "/tiny" in c else pytest.mark.slow) for c in CONFIGS])
def test_every_config_builds_and_dry_runs(config):
    done = run("experiments.train", f"--config={config}", "--dry_run")
    assert done.code == 0, done.err
    for words in (
        "parameter",
        "logical axes",
        "mesh axes",
        "bytes/device",
        "FLOPs per token",
        "memory on each device (estimate)",
    ):
        assert words in done.out
    assert re.search(r"embed/embedding +\d+x\d+ +vocab, embed", done.out)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_loads(config):
    configs.check(cli.load(config))


def test_a_dry_run_shows_the_sharding_it_resolves(corpus, tmp_path):
    (tmp_path / "split.py").write_text(
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('small', {str(SMALL)!r})\n"
        "small = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(small)\n"
        "from jaxnlp.sharding.mesh import MeshConfig\nfrom jaxnlp.sharding.rules import FSDP, Sharding\n"
        f"def get_config(variant=''):\n    e = small.get_config({str(corpus)!r})\n"
        "    e.sharding = Sharding(mesh=MeshConfig(data=2, fsdp=4), params=FSDP)\n    return e\n"
    )
    done = run("experiments.train", f"--config={tmp_path / 'split.py'}", "--dry_run", env={"JAX_NUM_CPU_DEVICES": "8"})
    assert done.code == 0, done.err
    assert re.search(r"block_0/mlp/up/kernel +16x64 +embed, mlp +fsdp, - +1,024\n", done.out)
    assert "mesh: data=2 x fsdp=4 (8 cpu devices)" in done.out


# Files in {folder} of BAD_INPUTS.
BAD_FILES = {
    "empty.txt": b"",
    "binary.txt": b"\x89PNG\xff\x00" * 50,
    "field.jsonl": b'{"body": "text"}\n',
    "broken.py": b"def get_config(variant=''):\n    return 1 +\n",
    "raises.py": b"import no_such_module\n",
    "late.py": b"def get_config(variant=''):\n    import no_such_module\n",
    "other.py": b"x = 1\n",
    "dict.py": b"def get_config(variant=''):\n    return {'steps': 3}\n",
    "file": b"not a folder",
    "bad.json": b"{",
}

# By entry point and name: the flags, and a part of the error. {folder} is a folder with BAD_FILES, {small} the flag of
# a valid config and {workdir} the flag of a folder that does not exist.
BAD_INPUTS: dict[str, dict[str, tuple[str, str]]] = {
    "experiments.train": {
        "missing config": (
            "--config=configs/gpt/tny.py {workdir}",
            "--config=configs/gpt/tny.py: no such file; did you mean 'configs/gpt/tiny.py'?",
        ),
        "syntax error": ("--config={folder}/broken.py {workdir}", "the file cannot be loaded (line 2: SyntaxError"),
        "import error": (
            "--config={folder}/raises.py {workdir}",
            "the file cannot be loaded (line 1: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        "no get_config": ("--config={folder}/other.py {workdir}", "the file does not define get_config()"),
        "unknown variant": (
            "--config=configs/gpt/gpt2.py:huge {workdir}",
            "gpt2.py:huge: no such variant; expected small, medium, large, xl, or one with -gpu or -tpu",
        ),
        "a variant of none": (
            "--config=configs/gpt/tiny.py:foo {workdir}",
            "--config=configs/gpt/tiny.py:foo: the config has no variants; expected --config=configs/gpt/tiny.py",
        ),
        "import error inside": ("--config={folder}/late.py {workdir}", "failed: ModuleNotFoundError"),
        "not an experiment": (
            "--config={folder}/dict.py {workdir}",
            "get_config returned a dict; expected an Experiment",
        ),
        "one dash": ("-config=nope.py {workdir}", "--config=nope.py: no such file"),
        "alone": ("{small} {workdir} --distributed", "--distributed: cannot join the other processes"),
        "cache in a file": (
            "{small} {workdir} --config.data.cache_dir={folder}/file",
            "cannot be written (Not a directory)",
        ),
        "bad json": ("--config_json={folder}/bad.json {workdir}", "bad.json: invalid JSON"),
        "two configs": ("{small} --config_json=x.json {workdir}", "--config and --config_json: both are set"),
        "unknown field": (
            "{small} {workdir} --config.model.num_layer=2",
            "--config.model.num_layer: GPTConfig has no field 'num_layer'; did you mean 'num_layers'?",
        ),
        "field of a number": (
            "{small} {workdir} --config.num_steps.x=2",
            "--config.num_steps.x: num_steps is 12 and has no fields",
        ),
        "wrong type": ("{small} {workdir} --config.num_steps=ten", "--config.num_steps=ten: invalid literal for int"),
        "not a whole number": (
            "{small} {workdir} --config.num_steps=1.5",
            "--config.num_steps=1.5: invalid literal for int",
        ),
        "zero steps": ("{small} {workdir} --config.num_steps=0", "num_steps=0: expected a positive number"),
        "negative number": (
            "{small} {workdir} --config.data.batch_size=-8",
            "data.batch_size=-8: expected a positive number",
        ),
        "heads": (
            "{small} {workdir} --config.model.num_heads=3",
            "model.num_heads=3: does not divide embed_dim=16; use 2",
        ),
        "vocabulary": (
            "{small} {workdir} --config.model.vocab_size=100",
            "model.vocab_size=100: the tokenizer has 257 tokens",
        ),
        "mesh": ("{small} {workdir} --config.sharding.mesh.data=3", "sharding.mesh: data=3 needs 3 devices, got 1"),
        "misspelt flag": ("{small} --wokdir=x", "--wokdir: no such flag; did you mean 'workdir'?"),
        "stray argument": ("{small} {workdir} num_steps=3", "'num_steps=3': not a flag; expected --name=value"),
        "no workdir": ("{small}", "--workdir: not given"),
        "nothing": ("{workdir}", "no checkpoint to resume from; give a config with --config=FILE"),
        "override alone": (
            "{workdir} --config.num_steps=3",
            "--config.num_steps=3: no config to override; set it with --config=FILE",
        ),
        "bucket": ("{small} --workdir=gs://bucket/run", "expected a local path; mount the bucket"),
        "workdir in a file": ("{small} --workdir={folder}/file/run", "cannot be written (Not a directory)"),
        "workdir is a file": ("{small} --workdir={folder}/file", "cannot be written (File exists)"),
        "profile": ("{small} {workdir} --profile_steps=5:2", "--profile_steps=5:2: expected first:last"),
        "missing corpus": (
            "{small} {workdir} --config.data.source.train={folder}/nope.txt",
            "nope.txt': no such file, and no file matches",
        ),
        "empty file": (
            "{small} {workdir} --config.data.source.train={folder}/empty.txt",
            "empty.txt': the file is empty",
        ),
        "binary file": (
            "{small} {workdir} --config.data.source.train={folder}/binary.txt",
            "binary.txt: not UTF-8 text",
        ),
        "no UTF-8 in the sample": (
            "{small} {workdir} --config.sample_prompt=caf\udce9",
            "sample_prompt='caf\\udce9': not valid text (byte 0xe9 at character 3",
        ),
        "no UTF-8 in the folder": ("{small} {workdir}\udce9", "--workdir='"),
        "wrong field": (
            "{small} {workdir} --config.data.source.train={folder}/field.jsonl",
            "data.source.field='text': ",
        ),
    },
    "experiments.generate": {
        "huge seed": ("{workdir} --seed=1099511627776", "--seed=1099511627776: expected an integer"),  # 2**40
        "no UTF-8 in a prompt": ("{workdir} --prompt=caf\udce9", "--prompt='caf\\udce9': not valid text (byte 0xe9"),
        "no UTF-8 in a stop string": ("{workdir} --prompt=x --stop=\udce9", "--stop='\\udce9': not valid text"),
        "no temperature": ("{workdir} --temperature=nan", "temperature=nan: expected 0"),
        "no run": ("--workdir={folder}/none", "no checkpoint here; train one with"),
        "no workdir to generate": ("", "--workdir: not given"),
        "bad sampling": ("{workdir} --top_p=2", "top_p=2.0: expected a probability"),
    },
    "experiments.evaluate": {
        "no run to evaluate": ("--workdir={folder}/none", "no checkpoint here; train one with"),
    },
    "experiments.tokenize": {
        "bad format": ("{small} --out=x --format=csv", "--format=csv: value should be one of"),
        "bad split": ("{small} --out={folder}/x --splits=dev", "split='dev': expected one of train, validation, test"),
    },
}
if os.geteuid() != 0:  # root can read everything
    BAD_INPUTS["experiments.train"]["unreadable folder"] = (
        "{small} {workdir} --config.data.source.train={folder}/locked",
        "cannot be read; check its",
    )
ENTRY_OF = {name: module for module, inputs in BAD_INPUTS.items() for name in inputs}


@pytest.fixture(scope="module")
def flags(corpus, tmp_path_factory) -> dict[str, str]:
    """The values of the placeholders in BAD_INPUTS."""
    folder = tmp_path_factory.mktemp("bad")
    for name, content in BAD_FILES.items():
        (folder / name).write_bytes(content)
    (folder / "locked").mkdir(mode=stat.S_IWUSR)
    return {"folder": str(folder), "small": f"--config={SMALL}:{corpus}", "workdir": f"--workdir={folder / 'run'}"}


@pytest.mark.parametrize("name", ENTRY_OF)
def test_bad_input_is_one_clear_line_and_no_stack_trace(flags, name):
    arguments, words = BAD_INPUTS[ENTRY_OF[name]][name]
    done = run(ENTRY_OF[name], *(argument.format_map(flags) for argument in arguments.split()))
    assert done.code not in (0, None), done.out
    assert "Traceback" not in done.err and "Traceback" not in done.out
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and words in lines[0], done.err


def test_an_unreadable_folder(tmp_path, monkeypatch):
    """Root can read every folder, so `os.access` is replaced."""
    from jaxnlp.data.text.sources import Files
    from jaxnlp.errors import UserError

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be read; check its permissions"):
        list(Files(train=str(tmp_path)).documents("train"))


@pytest.mark.parametrize("format", ["memmap", "array_record"])
def test_a_tokenized_corpus_trains_the_same_run(corpus, tmp_path, format):
    small = f"--config={SMALL}:{corpus}"
    made = run(
        "experiments.tokenize", small, f"--out={tmp_path / 'tokens'}", f"--format={format}", "--splits=train,validation"
    )
    assert made.code == 0, made.err
    assert "train:" in made.out and "Tokens(path=" in made.out
    (tmp_path / "tokens.py").write_text(
        SMALL.read_text()
        + "\n\nsmall = get_config\n\n\ndef get_config(path):\n    from jaxnlp.data.pipeline import Tokens\n\n"
        "    e = small('')\n    e.data.source = Tokens(path=path)\n    return e\n"
    )
    losses = []
    for config, name in ((small, "text"), (f"--config={tmp_path / 'tokens.py'}:{tmp_path / 'tokens'}", "tokens")):
        done = run("experiments.train", config, f"--workdir={tmp_path / name}", "--config.sample_tokens=0")
        assert done.code == 0, done.err
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows])
    assert losses[0] == losses[1]
    again = run("experiments.tokenize", small, f"--out={tmp_path / 'tokens'}")
    assert again.code == 2 and "already contains a corpus" in again.err


def test_config_prints_and_compares(tmp_path):
    shown = run("experiments.config", "--config=configs/gpt/tiny.py", "--config.model.num_layers=7")
    assert "model.num_layers = 7" in shown.out
    (tmp_path / "a.json").write_text(run("experiments.config", "--config=configs/gpt/tiny.py", "--json").out)
    args = (
        "--config=configs/gpt/tiny.py",
        "--config.num_steps=300",
        *("--config.eval_batches", "None"),
        f"--against={tmp_path / 'a.json'}",
    )
    done = run("experiments.config", *args)
    assert re.search(r"^num_steps +\d+ -> 300$", done.out, re.M) and re.search(
        r"^eval_batches +\d+ -> None$", done.out, re.M
    )
    assert (
        run("experiments.config", f"--config_json={tmp_path / 'a.json'}", f"--against={tmp_path / 'a.json'}").out
        == "no difference\n"
    )
