"""The figure of a sharding table: the entry point and its errors."""

import pytest

from tests.entry import run

CONFIG = "--config=configs/gpt/gpt2.py:small"


def test_a_picture_of_each_table(tmp_path):
    for preset in ("TP_SP", "DDP"):
        out = tmp_path / "new" / f"{preset}.png"
        done = run("experiments.figures.split", CONFIG, f"--preset={preset}", f"--out={out}")
        assert done.code == 0, done.err
        assert done.out == f"written: {out}\n" and out.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out=x.png"], "--config: not given"),
        ([CONFIG], "--out=None: expected a file name that ends in .png"),
        ([CONFIG, "--out=x.png", "--ways=1"], "--ways=1: expected at least two devices"),
        ([CONFIG, "--out=x.png", "--preset=ZERO4"], "--preset=ZERO4: no such preset; did you mean 'ZERO"),
        ([CONFIG, "--out=x.png", "--preset=PP"], "PP: splits layers but no matrix; draw its schedule with"),
        ([CONFIG, "--out=x.png", "--preset=TP", "--ways=5"], "attention/query/kernel: heads=12 does not divide over"),
        (["--config=configs/elmo/tiny.py", "--out=x.png"], "has no block of attention and a feed-forward layer"),
    ],
)
def test_bad_input_is_one_line(args, message):
    done = run("experiments.figures.split", *args)
    assert done.code == 2, done.out
    lines = done.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.err
