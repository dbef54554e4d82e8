"""Naive data parallelism and DDP: bytes equal the formulas, and training equals one device's."""

import re

import jax
import numpy as np
import pytest

from jaxnlp.sharding.data_parallel import Traffic, central_bytes, ring_bytes
from tests.entry import run

DEVICES, ROWS, LENGTH = 4, 8, 16


@pytest.fixture(scope="module")
def comparison(corpus, tmp_path_factory):
    """The entry point's output, and where its picture is."""
    out = tmp_path_factory.mktemp("traffic") / "new" / "traffic.png"
    config = (f"--config=tests/experiments/small.py:{corpus}", "--config.model.tie_embeddings=False")
    # With LLVM's optimizations, which tests disable: without them products round differently, by about 1e-5 here.
    flags = (*config, f"--devices={DEVICES}", f"--out={out}")
    done = run("experiments.figures.data_parallel", *flags, env={"XLA_FLAGS": ""})
    assert done.code == 0, done.err
    return done.out, out


def moved(text: str) -> list[list[tuple[int, int]]]:
    """(sent, received) of each device, by column: parameters, batch, outputs, outputs' gradients, gradients, DDP."""
    rows = [re.findall(r"([\d,]+) / ([\d,]+)", line) for line in text.splitlines()]
    table = [[(number(a), number(b)) for a, b in row] for row in rows if len(row) == 6]
    assert len(table) == DEVICES
    return [list(column) for column in zip(*table, strict=True)]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_bytes_moved_are_the_formulas(comparison):
    text, _ = comparison
    size = number(re.search(r"parameters: ([\d,]+) bytes", text)[1])
    parameters, batch, outputs, pulled, gradients, ddp = moved(text)
    shares = [((DEVICES - 1) * size, 0)] + [(0, size)] * (DEVICES - 1)
    assert parameters == shares and gradients == [(b, a) for a, b in shares]
    both = [sum(p) + sum(g) for p, g in zip(parameters, gradients, strict=True)]
    assert both == central_bytes(size, DEVICES) == [6 * size, 2 * size, 2 * size, 2 * size]
    assert batch[0][0] == sum(received for _, received in batch[1:]) > 0
    rows = ROWS // DEVICES * LENGTH * 4  # float32 logits of a device's rows, a whole number of vocabularies
    assert pulled == [(b, a) for a, b in outputs] and outputs[1][0] % rows == 0 and outputs[1][0] > 256 * rows
    assert outputs[0] == (0, 3 * outputs[1][0])
    assert size * 2 * 3 // 4 == ring_bytes(size, DEVICES)
    for sent, received in ddp:  # the gradients and a few scalars
        assert sent == received and 0 <= sent - ring_bytes(size, DEVICES) <= 64


def test_both_train_as_one_device(comparison):
    text, out = comparison
    naive, ddp, start = map(float, re.search(r"naive ([\d.e-]+), DDP ([\d.e-]+); .* ([\d.e-]+)$", text, re.M).groups())
    assert naive < 1e-5 and ddp < 1e-5 and start > 0.01
    losses = [[float(x) for x in line.split(": ")[1].split(", ")] for line in text.splitlines() if "losses, " in line]
    assert len(losses) == 3 and all(len(way) == 3 for way in losses)
    np.testing.assert_allclose(losses, [losses[0]] * 3, rtol=1e-5)
    assert out.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_what_stays_where_it_is_moves_no_bytes():
    devices = jax.devices()[:3]
    traffic = Traffic(devices)
    x = {"w": jax.device_put(np.zeros((3, 5), np.float32), devices[1])}
    assert traffic.move("w", x, devices[1])["w"].devices() == {devices[1]} and traffic.sent == {}
    assert traffic.move("w", x, devices[2])["w"].devices() == {devices[2]}
    traffic.move("w", x, devices[0])
    assert traffic.sent == {"w": [0, 120, 0]} and traffic.received == {"w": [60, 0, 60]}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--devices=1"], "--devices=1 --steps=3: expected at least two devices and one step"),
        (["--out=x.pdf"], "--out=x.pdf: expected a file name that ends in .png"),
        (["--devices=3"], "data.batch_size=8: "),
        (["--devices=2", "--config.model.dropout_rate=0.1"], "model.dropout_rate=0.1: "),
    ],
)
def test_bad_input_is_one_line(corpus, args, message):
    done = run("experiments.figures.data_parallel", f"--config=tests/experiments/small.py:{corpus}", *args)
    assert done.code == 2, done.out
    lines = done.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.err
