"""The entry points that draw figures and fill masks, and their errors."""

import pathlib

import pytest

from tests.entry import run

CONFIGS = {"gpt": "tests/experiments/small.py", "bert": "tests/experiments/small_bert.py"}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """The folders of a GPT run and a BERT run of four steps each."""
    folder = tmp_path_factory.mktemp("runs")
    for name, config in CONFIGS.items():
        lengths = ("--config.num_steps=4", "--config.sample_tokens=0")
        done = run("experiments.train", f"--config={config}:{corpus}", f"--workdir={folder / name}", *lengths)
        assert done.code == 0, done.err
        assert f"python -m experiments.attention_map --workdir={folder / name}" in done.out
        assert ("experiments.fill_mask" in done.out) == (name == "bert")
    return folder


def is_png(path: pathlib.Path) -> bool:
    return path.read_bytes().startswith(PNG)


def test_an_attention_map_from_a_run(runs, tmp_path):
    done = run("experiments.attention_map", f"--workdir={runs / 'gpt'}", "--text=def f")
    assert done.code == 0, done.err
    assert f"written: {runs / 'gpt' / 'attention_map.png'}" in done.out and is_png(runs / "gpt" / "attention_map.png")
    assert "attention, 6 x 6 tokens" in done.out and "the token before" in done.out
    out = tmp_path / "new" / "pair.png"
    args = (f"--workdir={runs / 'bert'}", "--text=a", "--target=b", "--heads=1", "--layers=0", f"--out={out}")
    done = run("experiments.attention_map", *args)
    assert done.code == 0, done.err
    assert is_png(out) and "attention, 5 x 5 tokens" in done.out and "head 0" not in done.out


def test_masked_words_from_a_run(runs):
    done = run("experiments.fill_mask", f"--workdir={runs / 'bert'}", "--text=de[MASK] f[MASK]", "--top=2")
    assert done.code == 0, done.err
    assert done.out.count("%") == 4 and "mask 2" in done.out


def test_an_architecture_from_a_config(tmp_path):
    out = tmp_path / "new" / "gpt.png"
    done = run("experiments.figures.architecture", "--config=configs/gpt/gpt2.py:xl", f"--out={out}")
    assert done.code == 0, done.err
    assert done.out == f"written: {out} (1,557,686,400 parameters)\n" and is_png(out)


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        ("attention_map", ["--text=a"], "--workdir: not given"),
        ("attention_map", ["--workdir=GPT"], "--text: not given"),
        ("attention_map", ["--workdir=GPT", "--text=a", "--layers=one"], "--layers=one: expected numbers from 0"),
        ("attention_map", ["--workdir=GPT", "--text=a", "--layers=3"], "--layers=3: the model has 0 to 0"),
        (
            "attention_map",
            ["--workdir=GPT", "--text=a", "--parts=cross"],
            "--parts=cross: no such part; expected one of attention",
        ),
        ("attention_map", ["--workdir=GPT", "--text=a", "--heads=0,7"], "--heads=7: the model has 0 to 1"),
        (
            "attention_map",
            ["--workdir=GPT", "--text=a", "--target=b"],
            "target: not supported for a decoder-only model",
        ),
        ("attention_map", ["--workdir=GPT", f"--text={'a' * 64}"], "text: has 65 tokens; model.max_length is 64"),
        (
            "attention_map",
            ["--workdir=GPT", "--text=a", "--out=x.pdf"],
            "--out=x.pdf: expected a file name that ends in .png",
        ),
        (
            "attention_map",
            ["--workdir=GPT", "--text=a", "--out=setup.py/x.png"],
            "setup.py/x.png: cannot be written",
        ),
        ("attention_map", ["--workdir=none", "--text=a"], "--workdir=none: no checkpoint here"),
        ("fill_mask", ["--workdir=BERT", "--text=a"], "contains no [MASK]; put it in place of a word to predict"),
        ("fill_mask", ["--workdir=GPT", "--text=[MASK]"], "GPTConfig: the model has no masked-word head"),
        ("fill_mask", ["--workdir=BERT"], "--text: not given"),
        ("figures.architecture", ["--out=x.png"], "--config: not given"),
        (
            "figures.architecture",
            ["--config=configs/gpt/tiny.py"],
            "--out=None: expected a file name that ends in .png",
        ),
        (
            "figures.architecture",
            ["--config=configs/gpt/tiny.py", "--out=setup.py/x.png"],
            "setup.py/x.png: cannot be written",
        ),
    ],
)
def test_bad_input_is_one_line(runs, module, args, message):
    args = [a.replace("=GPT", f"={runs / 'gpt'}").replace("=BERT", f"={runs / 'bert'}") for a in args]
    done = run(f"experiments.{module}", *args)
    assert done.code == 2, done.out
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], done.err
