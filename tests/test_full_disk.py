"""A write that the disk has no room for is one line; what was there is unchanged, and nothing half-written stays."""

import contextlib
import resource
import struct

import flax.linen as nn
import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxnlp import config as configs
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.store import build_store
from jaxnlp.data.tokenizer import ByteTokenizer
from jaxnlp.errors import UserError
from jaxnlp.figures import files as figures
from jaxnlp.interop import huggingface
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.training.run_folder import metric_log
from jaxnlp.training.run_folder.event_file import EventFile


@contextlib.contextmanager
def room(num_bytes):
    """The largest size of a file within the block; a longer write fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def store(format):
    def write(folder, size):
        texts = ["text " * size] * 20
        options = {"split": "train", "source_fingerprint": "", "format": format}
        build_store(folder / "store", texts, ByteTokenizer(), **options)

    return write


def figure(folder, size):
    noise = np.random.default_rng(0).random((min(size, 99), 99))
    drawn = Figure(figsize=(4, 4), dpi=100)
    drawn.subplots().imshow(noise)
    figures.save_png(drawn, folder / "figure.png")


def checkpoint(folder, vocab_size, size):
    config = GPTConfig(num_layers=1, num_heads=1, embed_dim=8, max_length=8, vocab_size=vocab_size)
    shapes = jax.eval_shape(config.build().init, jax.random.key(0), *config.example_inputs(1, 2))["params"]
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), nn.unbox(shapes))
    huggingface.save(folder / "model", config, params, other_files={"other.json": "x" * size})


def config_json(folder, size):
    configs.save_json(DataConfig(cache_dir="x" * size), folder / "config.json")


WRITERS = {"memmap": store("memmap"), "array_record": store("array_record"), "figure": figure, "config": config_json}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(tmp_path, name):
    WRITERS[name](tmp_path, 10)
    before = contents(tmp_path)
    assert before
    with (
        room(4096),
        pytest.raises(UserError, match=r"cannot be written .File too large.; .*free disk") as error,
    ):
        WRITERS[name](tmp_path, 8000)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_a_checkpoint_is_written_with_all_its_files_or_not_at_all(tmp_path):
    checkpoint(tmp_path, 300, 10)
    before = contents(tmp_path)
    limit = len(before["model/model.safetensors"])
    with room(limit - 1), pytest.raises(UserError, match=r"cannot be written \(.*; existing files are unchanged"):
        checkpoint(tmp_path, 300, 10)
    with room(limit), pytest.raises(UserError, match=r"cannot be written \(File too large\); existing"):
        checkpoint(tmp_path, 300, limit + 1)
    assert contents(tmp_path) == before


def test_the_log_of_a_run(tmp_path):
    log = metric_log.MetricLog(tmp_path)
    with (
        room(1000),
        pytest.raises(UserError, match="metrics.jsonl: cannot be written .File too large.; checkpoints"),
    ):
        for step in range(100):
            log.write(step, "train", {"loss": 1.0, "learning_rate": 1.0, "grad_norm": 1.0})
    log.close()
    rows = metric_log.read_log(tmp_path / metric_log.LOG)
    assert [row["step"] for row in rows] == list(range(len(rows))) and 0 < len(rows) < 100
    with room(100), pytest.raises(UserError, match="curves.png: cannot be written"):
        metric_log.plot(tmp_path, "nats/token")
    with room(100), pytest.raises(UserError, match="metrics.jsonl: cannot be written"):
        metric_log.MetricLog(tmp_path, step=50)
    assert metric_log.read_log(tmp_path / metric_log.LOG) == rows
    assert not (tmp_path / metric_log.CURVES).exists()


def test_event_files_are_tensorboards(tmp_path):
    """Framing, checksums and messages are those of tensorboardX's own writer."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    (tmp_path / "theirs").mkdir()
    theirs = EventsWriter(str(tmp_path / "theirs" / "events"))
    theirs.write_event(Event(step=3, session_log=SessionLog(status=SessionLog.START)))
    theirs.write_event(Event(step=3, summary=scalar("train/loss", 0.5)))
    theirs.close()
    ours = EventFile(tmp_path / "ours", first_step=3)
    ours.add_scalars({"train/loss": 0.5}, step=3)
    (path,) = (tmp_path / "ours").iterdir()
    parsed = events(path)  # before it is closed
    ours.close()
    (their_path,) = (tmp_path / "theirs").iterdir()
    assert parsed == events(their_path) and len(parsed) == 3


def events(path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data, parsed = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        event, data = data[12 : 12 + size], data[12 + size :]
        assert struct.unpack("<I", data[:4])[0] == masked_crc32c(event)
        parsed.append(Event.FromString(event))
        parsed[-1].wall_time, data = 0.0, data[4:]
    return parsed


def test_a_figure_larger_than_pillow_and_matplotlib_allow_is_drawn_smaller(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(figures, "MAX_PIXELS", 300)  # matplotlib's own is 2^16
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    figures.save_png(Figure(figsize=(6, 2), dpi=100), tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    assert struct.unpack(">II", data[16:24]) == (300, 100)
