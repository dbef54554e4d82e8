"""Multi-process jobs: start-up, output from process 0, and fail-fast shutdown.

Every entry point supports multi-process jobs. All processes run the same program on their share of the devices. Only
process 0 prints, and only it writes files other than checkpoints. Work that needs no devices runs on process 0 while
the others wait. See docs/guides/tpu_vm.md for the commands.
"""

import contextlib
import errno
import functools
import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from jaxnlp.errors import UserError
from jaxnlp.failure_detection import FailureDetector, connect
from jaxnlp.uncaught import explained, show

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("coordinator_address", "num_processes", "process_id")
SETTINGS = ("distributed", *FLAGS, "join_timeout", "heartbeat_timeout")
KUBERNETES_INDEX = "JOB_COMPLETION_INDEX"
ALL, FIRST, ONE = "all", "first", "one"
"""Which processes run an entry point: every process; process 0, while the others wait; only single-process jobs."""
LAUNCHERS = {
    "Slurm": "SLURM_NTASKS",
    "Open MPI": "OMPI_COMM_WORLD_SIZE",
}  # variable with the number of started processes


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the multi-process flags of every entry point."""
    if "distributed" in values:
        return
    text = "Run as one process of a multi-process job started by a TPU pod, Slurm, Open MPI or Kubernetes."
    flags.DEFINE_bool("distributed", False, text, flag_values=values)
    text = "host:port of process 0, for jobs without such a launcher. Needs --num_processes and --process_id."
    flags.DEFINE_string("coordinator_address", None, text, flag_values=values)
    flags.DEFINE_integer(
        "num_processes", None, "Number of processes of the job, with --coordinator_address.", flag_values=values
    )
    flags.DEFINE_integer(
        "process_id", None, "Index of this process, from 0, with --coordinator_address.", flag_values=values
    )
    text = "Seconds to wait until all processes have joined the job."
    flags.DEFINE_integer("join_timeout", 300, text, flag_values=values, lower_bound=1)
    text = "Seconds without a heartbeat after which a process is considered dead."
    flags.DEFINE_integer("heartbeat_timeout", 60, text, flag_values=values, lower_bound=1)


def first() -> bool:
    """Whether this is process 0, which writes files."""
    import jax

    return jax.process_index() == 0


def all_gather(tree: Any) -> Any:
    """All-gathers sharded arrays to every process (collective call). With one process: returned unchanged."""
    import jax
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else tree


@contextlib.contextmanager
def joined(argv: Sequence[str], by: str = ALL) -> Iterator[bool]:
    """Context in which this process is part of a multi-process job, if there is one. An exception ends all processes.

    Yields whether this process has work to do. Every process leaves the context with SystemExit, whether it had work or
    not, and then waits for the others.

    Args:
        argv: the command line; flags of other modules are ignored.
        by: which processes do the work: ALL, FIRST or ONE.

    Raises:
        UserError: incomplete settings, a job that cannot be joined, or several processes with by=ONE.
    """
    failure_detector = join(argv, by)
    if failure_detector is None:
        yield True
        return
    try:
        with _output_of_first(is_first=failure_detector.index == 0):
            try:
                if by == FIRST:
                    with by_first() as has_work:
                        yield has_work
                else:
                    yield True
            except SystemExit as e:
                failure_detector.done()
                raise e
    except BaseException as e:
        status, line = explained(e)
        if status is None:  # the process exits by itself
            raise
        text = line.removeprefix("error: ").strip() or type(e).__name__
        failure_detector.fail(text, status, functools.partial(show, e, line))


@contextlib.contextmanager
def by_first() -> Iterator[bool]:
    """Context in which process 0 runs as a single-process job on its CPU. Yields whether this is process 0.

    Must be entered before JAX initialises its devices: a multi-host accelerator starts on all hosts or on none. Writes
    of process 0 in this context do not wait for the other processes.
    """
    import jax
    from jax._src.distributed import global_state as job  # has no public name

    if job.num_processes == 1 or job.process_id:
        yield job.num_processes == 1
        return
    saved = job.client, job.service, job.num_processes
    job.client, job.service, job.num_processes = None, None, 1
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", None)
    try:
        yield True
    finally:
        job.client, job.service, job.num_processes = saved


@contextlib.contextmanager
def _output_of_first(is_first: bool) -> Iterator[None]:
    """Context that discards the output of all processes but the first, and what Gloo prints on stdout."""
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "w"))
        out = null
        sys.stdout.flush()
        stdout_copy = os.dup(1)
        stack.callback(os.close, stdout_copy)
        stack.callback(os.dup2, stdout_copy, 1)
        if is_first:
            is_terminal = os.isatty(stdout_copy)
            kind: dict[str, Any] = {
                "buffering": 1 if is_terminal else -1,
                "encoding": sys.stdout.encoding,
                "closefd": False,
            }
            out = stack.enter_context(open(stdout_copy, "w", **kind))
        else:
            stack.enter_context(contextlib.redirect_stderr(null))
        os.dup2(null.fileno(), 1)
        stack.enter_context(contextlib.redirect_stdout(out))
        yield


def join(argv: Sequence[str], by: str = ALL) -> FailureDetector | None:
    """Joins the job that the flags or the environment describe; None for a single-process job.

    Raises:
        UserError: see `joined`.
    """
    values = flags.FlagValues()
    define_flags(values)
    try:
        values(list(argv), known_only=True)
    except flags.Error as e:
        raise UserError(str(e)) from None
    address = explicit(values)
    if address is None and not values["distributed"].value:
        for launcher, name in LAUNCHERS.items():
            if int(os.environ.get(name) or 1) > 1:
                jobs = f"{launcher} started {os.environ[name]} processes ({name}), which run as independent jobs"
                print(f"note: {jobs}; set --distributed to run them as one job", file=sys.stderr)
        return None
    if by == ONE:
        raise UserError(
            "--distributed: this entry point supports one process only; start it once, without the multi-process flags"
        )
    _initialize(address, values)
    from jax._src.distributed import global_state  # the key-value store has no public name; Orbax uses it too

    index, count, client = global_state.process_id, global_state.num_processes, global_state.client
    if count == 1:
        return None
    host = (global_state.coordinator_address or "").rsplit(":", 1)[0].strip("[]")
    return connect(index, count, client, host)


def explicit(values: flags.FlagValues) -> tuple[str, int, int] | None:
    """(address of process 0, number of processes, index of this process) from the flags, or else from `VARIABLES`.

    None if neither gives the last two; with --distributed, JAX then detects the launcher.

    Raises:
        UserError: some of the three are missing or invalid.
    """
    settings = {f"--{name}": values[name].value for name in FLAGS}
    if all(value is None for value in settings.values()):
        settings = {name: os.environ.get(name) for name in VARIABLES}
        if settings["JAX_PROCESS_ID"] is None and settings["JAX_NUM_PROCESSES"] is not None:
            settings["JAX_PROCESS_ID"] = os.environ.get(KUBERNETES_INDEX)  # index of a pod in an indexed Kubernetes Job
        if settings["JAX_NUM_PROCESSES"] is None and settings["JAX_PROCESS_ID"] is None:
            return None  # JAX detects the launcher
    missing = [name for name, value in settings.items() if value is None]
    if missing:
        present = ", ".join(f"{name}={value}" for name, value in settings.items() if value is not None)
        raise UserError(f"{', '.join(missing)}: not set, but {present}; set all three for each process, or none")
    (address_name, address), (count_name, count), (index_name, index) = settings.items()
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"{address_name}={address}: expected host:port of process 0, such as 10.0.0.2:8476")
    for name, value in ((count_name, count), (index_name, index)):
        if not str(value).isdecimal():
            raise UserError(f"{name}={value}: expected an integer from 0")
    num_processes, process_index = int(str(count)), int(str(index))
    if not 0 <= process_index < num_processes:
        expected = f"expected an integer from 0 to {num_processes - 1}, as {count_name}={num_processes}"
        raise UserError(f"{index_name}={process_index}: {expected}")
    return str(address), num_processes, process_index


def _initialize(settings: tuple[str, int, int] | None, values: flags.FlagValues) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # applies to CPUs only
    jax.config.update(
        "jax_enable_preemption_service", False
    )  # it would intercept SIGTERM, and the process would not end
    seconds, heartbeat = (int(values[name].value or 1) for name in ("join_timeout", "heartbeat_timeout"))
    # JAX's own timeout crashes the process. The timer fires first and prints a one-line message.
    wait: dict[str, Any] = {"initialization_timeout": 2 * seconds, "heartbeat_timeout_seconds": heartbeat}
    at = f" at {settings[0]} (process {settings[2]} of {settings[1]})" if settings else ""
    timer = threading.Timer(seconds, _too_late, (f"some processes have not joined{at} after {seconds} s",))
    timer.daemon = True
    timer.start()
    try:
        with warnings.catch_warnings(record=True) as caught:
            if settings is None:
                _check_detected_port(seconds)
                jax.distributed.initialize(**wait)
            else:  # JAX's detection would give a Slurm task only one of its GPUs
                _check_port(settings[0], settings[2])
                jax.distributed.initialize(*settings, cluster_detection_method="deactivate", **wait)
    except UserError:
        raise
    except (ValueError, RuntimeError, OSError) as e:
        reasons = [str(e).strip() or type(e).__name__, *(str(w.message) for w in caught)]
        raise UserError(
            f"--distributed: cannot join the other processes{at} ({' '.join(' '.join(reasons).split())[:600]}). "
            "On a TPU pod and under Slurm or Open MPI no further flags are needed; otherwise set "
            "--coordinator_address, --num_processes and --process_id for each process"
        ) from None
    finally:
        timer.cancel()


def _check_detected_port(seconds: int) -> None:
    """`_check_port` for the address that JAX finds out from the launcher. What cannot be found out, JAX reports."""
    from jax._src.clusters import ClusterEnv  # has no public name

    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        address, _, index, _ = ClusterEnv.auto_detect_unset_distributed_params(address, None, None, [], None, seconds)
    except Exception:
        return
    if address is not None and index is not None:
        _check_port(address, index)


def _check_port(address: str, index: int) -> None:
    """Raises UserError if process 0 cannot listen at its port.

    JAX's coordinator ends the process with a segmentation fault if the port is taken. If another coordinator has it,
    both listen at it (SO_REUSEPORT), and the processes of two jobs reach either of them.
    """
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or address
    port = bind.rpartition(":")[2]
    if index != 0 or not port.isdecimal():
        return
    dual = socket.has_dualstack_ipv6()
    try:
        with socket.create_server(
            ("", int(port)), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual
        ):
            return
    except OSError as e:
        taken = e.errno == errno.EADDRINUSE
        holder = "; end the process that listens at it, such as process 0 of an earlier run, or" if taken else ";"
        raise UserError(
            f"--coordinator_address={address}: process 0 cannot listen at port {port} ({os.strerror(e.errno or 0)})"
            f"{holder} choose another port for all processes"
        ) from None


def _too_late(reason: str) -> None:
    print(
        f"error: --distributed: {reason}; start all processes within --join_timeout, on machines "
        "that can reach process 0's port",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)
