"""Batches are mapped in order; a worker that dies at any moment is a one-line error, and the parent never waits."""

import functools
import os
import signal

import pytest

from jaxnlp.data.text.store import build_store
from jaxnlp.data.tokenizer import ByteTokenizer
from jaxnlp.data.worker_pool import WorkerDied, map_batches
from jaxnlp.errors import UserError

KILLED = "a worker process was killed by SIGKILL, as the system does when memory is short; use fewer workers"


def work(fault, batch):
    if batch == 3:
        fault()
    return batch, b"x" * (batch % 2) * 300_000  # some do not fit in a pipe


def start(fault):
    return functools.partial(work, fault)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_the_middle_of_a_message():
    """Writes the header and a part of a result, as a worker does that is killed while it sends."""
    results = next(fd for fd in range(3, 64) if _is_writable_pipe(fd))
    os.write(results, (1 << 20).to_bytes(4, "big") + b"half")
    killed()


def _is_writable_pipe(fd):
    import fcntl
    import stat

    try:
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
        return writable and stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False


def out_of_memory():
    raise MemoryError


def panicking():
    raise type("PanicException", (BaseException,), {})


def failing():
    raise UserError("the text is not text")


def test_results_are_in_the_order_of_the_batches():
    results = list(map_batches(start, (nothing,), range(20), workers=2))
    assert [number for number, _ in results] == list(range(20))
    assert [len(data) for _, data in results] == [0, 300_000] * 10


def nothing():
    pass


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (killed, KILLED),
        (killed_in_the_middle_of_a_message, KILLED),
        (out_of_memory, "a worker process ran out of memory; use fewer workers"),
        pytest.param(failing, "the text is not text", marks=pytest.mark.slow),
        pytest.param(panicking, "a worker process failed (PanicException", marks=pytest.mark.slow),
        pytest.param(functools.partial(os._exit, 3), "a worker process ended with status 3", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_ends_the_work(fault, message):
    with pytest.raises(WorkerDied) as error:
        list(map_batches(start, (fault,), range(50), workers=2))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_store_whose_worker_dies_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(ByteTokenizer, "to_json", lambda self: {"kind": "bytes", "specials": KillsOnReading()})
    with pytest.raises(UserError, match="killed by SIGKILL"):
        build_store(tmp_path / "s", ["a"], ByteTokenizer(), split="train", source_fingerprint="", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_store_without_workers_that_is_out_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(ByteTokenizer, "encode_batch", lambda self, texts: out_of_memory())
    with pytest.raises(UserError, match="train: out of memory while tokenizing; free memory, or split long texts"):
        build_store(tmp_path / "s", ["a"], ByteTokenizer(), split="train", source_fingerprint="")
    assert list(tmp_path.iterdir()) == []


class KillsOnReading:
    """Kills the process that unpickles it."""

    def __reduce__(self):
        return killed, ()
