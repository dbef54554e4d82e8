"""Detects that a process of a multi-process job has ended, and ends the others.

A collective waits for every process, even for one that has died. JAX's own heartbeats notice a dead process only after
a timeout, and then abort without giving the reason. Therefore each process keeps a TCP connection to process 0. The
operating system closes the connection when the process ends for any reason, and a process that fails first sends its
error. Process 0 forwards the message to the others. A background thread listens, so that a blocked main thread does not
matter.

Messages are lines of JSON: {"bye": true}, or the fields of an `Ending`.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

KEY = "jaxnlp/failure_detection"
CONNECT_SECONDS = 15.0
GRACE = 0.5  # seconds for the message about a dead process to arrive before the errors that its death causes
LINGER = 5.0  # seconds that process 0, which runs the coordination service, waits for the others to end
DONE_MILLISECONDS = 7 * 24 * 3600 * 1000  # others may still be working, such as process 0 writing a file
GONE_SECONDS = 30  # until an unreachable machine (power or network failure) is considered dead
AGAIN = "restart all processes with the same command; a training run resumes from its newest checkpoint"


@dataclasses.dataclass(frozen=True)
class Ending:
    """Why the job ends: the first process that ended, its error (None: it was killed) and its exit status."""

    process: int
    text: str | None = None
    code: int = 1


class FailureDetector:
    """Ends all processes when one fails. Connects process 0 with every other process.

    Args:
        index, count: index of this process, and number of processes.
        links: process at the other end -> socket. store: client of JAX's coordination service.
    """

    def __init__(self, index: int, count: int, links: dict[int, socket.socket], store: Any):
        self.index, self.count = index, count
        self._links, self._store = links, store
        self._stderr = sys.stderr
        self._left: set[int] = set()  # processes that have announced that they end
        self._ending = threading.Lock()  # acquired by the thread that ends this process
        self._failing = threading.Event()  # set when the main thread is about to end this process
        self._heard: Ending | None = None
        self._news, self._alone = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, name="failure_detector", daemon=True).start()

    def done(self) -> None:
        """Waits until all processes have finished their work. From then on, one that ends does not end the others."""
        self._store.wait_at_barrier(f"{KEY}/done", DONE_MILLISECONDS)
        self._say({"bye": True})

    def fail(self, text: str, code: int, show: Callable[[], Any]) -> NoReturn:
        """Ends this process and all others.

        Args:
            text: the error, reported by the other processes. code: exit status.
            show: prints the error in this process; not called if process 0 reported the same error.
        """
        self._failing.set()
        time.sleep(GRACE)
        self._ending.acquire()  # does not return if the other thread ends this process
        self._say(dataclasses.asdict(Ending(self.index, text, code)))
        if self.index:
            self._news.wait(4 * GRACE)
        if self.index == 0 or self._heard is None or self._heard.text != text:
            with contextlib.suppress(OSError):  # standard error may be a file on a full disk
                show()
        self._exit(code)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for process, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, (process, bytearray()))
            while selector.get_map():
                for key, _ in selector.select():
                    process, buffer = key.data
                    data = _receive(key.fileobj)
                    buffer += data
                    *lines, incomplete = bytes(buffer).split(b"\n")
                    buffer[:] = incomplete
                    for line in lines:
                        self._hear(process, json.loads(line))
                    if not data:
                        selector.unregister(key.fileobj)
                        if process not in self._left:
                            self._end_by(Ending(process))
        self._alone.set()

    def _hear(self, process: int, message: dict[str, Any]) -> None:
        self._left.add(process)
        if "bye" not in message:
            self._end_by(Ending(**message))

    def _end_by(self, ending: Ending) -> None:
        if self._heard is None:
            self._heard = ending
            self._news.set()
            if ending.process == 0 and ending.text is None:
                self._follow(ending)  # immediately: JAX's client has lost its service too, and aborts
            threading.Thread(target=self._follow, args=(ending,), daemon=True).start()

    def _follow(self, ending: Ending) -> None:
        """Ends this process because another process has ended."""
        if ending.text is not None:  # if all fail with the same error, process 0 prints it once
            if self.index == 0:
                time.sleep(2 * GRACE)
            if self._failing.is_set():
                return
        if not self._ending.acquire(blocking=False):
            return
        self._say(dataclasses.asdict(ending))
        if ending.text is None:
            process = f"process {ending.process} of {self.count} has died"
            message = f"{process} (killed, out of memory, or machine failure), so this process ends; {AGAIN}"
        else:
            message = f"process {ending.process} of {self.count} failed: {ending.text}; so this process ends"
        with contextlib.suppress(OSError):
            print(f"\nerror: {' '.join(message.split())}", file=self._stderr, flush=True)
        self._exit(ending.code)

    def _say(self, message: dict[str, Any]) -> None:
        """Sends a message to process 0, or from process 0 to all others."""
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.sendall(json.dumps(message).encode() + b"\n")

    def _exit(self, code: int) -> NoReturn:
        """Exits without shutting down JAX's coordination service, which would wait for the other processes."""
        for stream in (sys.stdout, self._stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        if self.index == 0:
            self._alone.wait(LINGER)
        os._exit(code)


def connect(index: int, count: int, store: Any, host: str) -> FailureDetector:
    """Opens the connections (collective call). A process without a connection is covered by JAX's heartbeats only.

    Args:
        index, count: index of this process, and number of processes.
        store: client of JAX's coordination service.
        host: address of process 0.
    """
    if index == 0:
        return FailureDetector(0, count, _accept(count, store), store)
    port, secret = store.blocking_key_value_get(KEY, int(CONNECT_SECONDS * 1000)).split()
    try:
        link = _lasting(socket.create_connection((host, int(port)), CONNECT_SECONDS))
        link.sendall(f"{secret} {index}\n".encode())
    except OSError:
        return FailureDetector(index, count, {}, store)
    return FailureDetector(index, count, {0: link}, store)


def _accept(count: int, store: Any) -> dict[int, socket.socket]:
    """Accepts the connections of the other processes at process 0: process -> socket."""
    links: dict[int, socket.socket] = {}
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    dual = family == socket.AF_INET6
    with socket.create_server(("", 0), family=family, backlog=count, dualstack_ipv6=dual) as server:
        secret, end = secrets.token_hex(16), time.monotonic() + CONNECT_SECONDS
        store.key_value_set(KEY, f"{server.getsockname()[1]} {secret}")
        while len(links) < count - 1 and (seconds_left := end - time.monotonic()) > 0:
            server.settimeout(seconds_left)
            with contextlib.suppress(OSError, ValueError):
                link = _lasting(server.accept()[0])
                link.settimeout(CONNECT_SECONDS)
                received_secret, process = link.makefile().readline().split()
                if secrets.compare_digest(received_secret, secret):
                    link.settimeout(None)
                    links[int(process)] = link
    missing = sorted(set(range(1, count)) - set(links))
    if missing:
        processes = ", ".join(map(str, missing))
        print(
            f"note: no connection from process {processes}; its failure is detected only by JAX's heartbeats",
            file=sys.stderr,
        )
    return links


def _lasting(link: socket.socket) -> socket.socket:
    """Enables TCP keep-alive, so that the kernel notices a machine that disappeared without closing its connections."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", GONE_SECONDS // 3), ("TCP_KEEPINTVL", GONE_SECONDS // 6), ("TCP_KEEPCNT", 4)):
        if name in vars(socket):  # not on every platform
            link.setsockopt(socket.IPPROTO_TCP, vars(socket)[name], value)
    return link


def _receive(link: Any) -> bytes:
    try:
        return link.recv(4096)
    except OSError:
        return b""
