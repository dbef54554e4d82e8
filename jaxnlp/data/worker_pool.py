"""Worker processes that map batches in order, and whose death is an error at once.

Each worker has pipes of its own, of which nobody else holds an end. So when a worker dies, even in the middle of a
message, its pipe ends, and the parent never waits for it. (`concurrent.futures` shares one pipe among all workers: the
parent then waits for the rest of the message, forever.) When the parent dies, the workers end for the same reason.
"""

import collections
import contextlib
import itertools
import multiprocessing
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any

from jaxnlp.errors import UserError, reason

QUEUED = 2  # batches that a worker has: one at work and one that waits
REMEDY = "use fewer workers (--workers) or free memory, and run the same command again; nothing half-written is left"


class WorkerDied(UserError):
    """A worker process ended before its work was done."""


def map_batches(
    start: Callable[..., Callable[[Any], Any]], args: tuple, batches: Iterable[Any], workers: int
) -> Iterator[Any]:
    """Yields the result of each batch, in order. A bounded number of batches is in flight.

    Args:
        start: a function of a module, called once in each worker with `args`; it returns the function of a batch.
        workers: number of processes, 1 or more.

    Raises:
        WorkerDied: a worker was killed, ran out of memory, or raised an error.
    """
    pool: list[_Worker] = []
    try:
        for _ in range(workers):
            pool.append(_Worker(start, args))
        yield from _run(pool, iter(batches))
    finally:
        for worker in pool:
            worker.end()


class _Worker:
    """A process, the pipes to and from it, and the numbers of its batches."""

    def __init__(self, start: Callable[..., Any], args: tuple):
        context = multiprocessing.get_context("spawn")
        tasks, self.tasks = context.Pipe(duplex=False)
        self.results, results = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(start, args, tasks, results), daemon=True)
        # Ctrl-C at a terminal reaches all processes. The parent ends the workers, which inherit that they ignore it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        except OSError as e:  # too many processes, or too little memory
            raise WorkerDied(f"a worker process cannot be started ({e.strerror}); {REMEDY}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        tasks.close()
        results.close()
        self.batches: collections.deque[int] = collections.deque()

    def send(self, number: int, batch: Any) -> None:
        try:
            self.tasks.send(batch)
        except OSError:  # its pipe is closed
            raise self.death() from None
        self.batches.append(number)

    def receive(self) -> tuple[int, Any]:
        """The number and the result of its oldest batch."""
        try:
            result, error, trace = self.results.recv()
        except (EOFError, OSError):
            raise self.death() from None
        if error:
            raise WorkerDied(error) from (RuntimeError(trace) if trace else None)
        return self.batches.popleft(), result

    def death(self) -> WorkerDied:
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            end = f"was killed by {signal.Signals(-code).name}"
            end += ", as the system does when memory is short" if code == -signal.SIGKILL else ""
        else:
            end = f"ended with status {code}"
        return WorkerDied(f"a worker process {end}; {REMEDY}")

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.tasks.close()
        self.results.close()


def _run(pool: list[_Worker], batches: Iterator[Any]) -> Iterator[Any]:
    """Keeps every worker busy, and yields the results in the order of the batches."""
    numbers, next_number, done = itertools.count(), 0, {}
    by_pipe: dict[Any, _Worker] = {worker.results: worker for worker in pool}  # an idle worker may die as well
    while True:
        for worker in sorted(pool, key=lambda worker: len(worker.batches)):
            room = 2 * QUEUED * len(pool) - len(done) - sum(len(worker.batches) for worker in pool)
            for batch in itertools.islice(batches, min(room, QUEUED - len(worker.batches))):
                worker.send(next(numbers), batch)
        if not any(worker.batches for worker in pool):
            return
        for pipe in connection.wait(list(by_pipe)):
            number, done[number] = by_pipe[pipe].receive()
        while next_number in done:
            yield done.pop(next_number)
            next_number += 1


def _work(start: Callable[..., Any], args: tuple, tasks: connection.Connection, results: connection.Connection) -> None:
    """The main function of a worker. Ends when its parent has ended."""
    inbox: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(tasks, inbox), daemon=True).start()
    error = trace = None
    try:
        function = start(*args)
        while batch := inbox.get():
            results.send((function(*batch), None, None))
    except MemoryError:
        error = f"a worker process ran out of memory; {REMEDY}"
    except UserError as e:
        error = str(e)
    except BrokenPipeError:
        return
    except BaseException as e:  # a panic of a library in Rust is not an Exception
        error, trace = f"a worker process failed ({reason(e)}); nothing half-written is left", traceback.format_exc()
    with contextlib.suppress(BrokenPipeError):
        results.send((None, error, trace))


def _receive(tasks: connection.Connection, inbox: "queue.SimpleQueue[list[Any]]") -> None:
    """Empties the pipe while the worker works, so that the parent does not wait to send."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            inbox.put([tasks.recv()])
    inbox.put([])
