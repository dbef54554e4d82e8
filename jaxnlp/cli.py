"""The command line of every entry point: flags, configs, and one-line error messages."""

import dataclasses
import inspect
import logging as std_logging
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from jaxnlp import config as configs
from jaxnlp import distributed
from jaxnlp.errors import UserError, check_text
from jaxnlp.paths import expanded, local
from jaxnlp.uncaught import one_line_errors

PATHS = ("config", "config_json", "out", "source", "input", "predictions", "against")
FROM_JSON = str(pathlib.Path(__file__).with_name("config_json.py"))


def define_config() -> Any:
    """Defines --config and --config_json; returns the flag holder whose value is the config object."""
    from ml_collections import config_flags

    flags.DEFINE_string("config_json", None, "A resolved config, such as the config.json of a run. Replaces --config.")
    return config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file with a function get_config(variant): FILE.py or FILE.py:VARIANT, for example configs/gpt/tiny.py. "
        "Override a field with --config.FIELD=VALUE, for example --config.model.num_layers=4.",
        lock_config=False,
    )


def run(main: Callable[[], int | None], doc: str | None, by: str = distributed.ALL) -> None:
    """Parses the flags, runs `main` and exits. An error is one line on stderr, with the exit status of `uncaught`.

    Args:
        main: the entry point; its return value is the exit status.
        doc: module docstring, printed by --help.
        by: which processes of a multi-process job run it (`distributed.py`): ALL; FIRST: process 0, while the others
            wait; ONE: multi-process jobs are rejected.
    """
    argv = list(sys.argv)
    distributed.define_flags()
    with one_line_errors():
        if any(a in ("--help", "-h", "-help", "--h") for a in argv[1:]):
            print((doc or "").strip(), end="\n\n")
            print("Flags:")
            print(flags.FLAGS.module_help(sys.modules["__main__"].__name__).strip() or "  none")
            print(_shared_help())
            sys.exit(0)
        _quiet()
        with distributed.joined(
            argv, by
        ) as has_work:  # before other flags are parsed, so that an invalid flag ends all processes
            if not has_work:
                sys.exit(0)
            app.run(lambda _: _run(main), argv=argv, flags_parser=_parse)


def _quiet() -> None:
    """Silences library messages about failures that also reach us as an exception, reported in one line.

    After a failed save, Orbax logs from each of its threads, asyncio logs each array whose exception was never
    retrieved, and TensorStore's late callbacks print a traceback because their event loop is closed.
    """
    std_logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)
    std_logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
    warnings.filterwarnings("ignore", message="coroutine 'async_serialize", category=RuntimeWarning)
    sys.unraisablehook = _unraisable


def _unraisable(event: Any) -> None:
    if str(event.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(event)


def _run(main: Callable[[], int | None]) -> int | None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    return main()


def _shared_help() -> str:
    names = [name for name in ("config", "config_json", *distributed.SETTINGS) if name in flags.FLAGS]
    return "\n".join(f"  --{name}: {flags.FLAGS[name].help}" for name in names)


def _parse(argv: Sequence[str]) -> list[str]:
    """absl's flag parser, with configs checked first. Raises UserError with a one-line message."""
    try:
        argv, set_to_none = _translate(list(argv))
        remaining = flags.FLAGS(argv)
        for dotted in set_to_none:
            configs.set_path(flags.FLAGS["config"].value, dotted, None)
    except flags.UnrecognizedFlagError as e:
        names = [n for n in flags.FLAGS if not n.startswith("config.")]
        raise UserError(
            f"--{e.flagname}: no such flag{configs.did_you_mean(e.flagname.split('.')[0], names)}"
        ) from None
    except flags.Error as e:
        raise UserError(str(e)) from None
    if len(remaining) > 1:
        raise UserError(f"{remaining[1]!r}: not a flag; expected --name=value (see --help)")
    _check_texts()
    return remaining


def _check_texts() -> None:
    """Raises UserError for a flag's text that is not UTF-8. A path may be: it is the name of a file."""
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if name not in PATHS and not name.startswith("config."):
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    check_text(f"--{name}", text)


def _translate(argv: list[str]) -> tuple[list[str], list[str]]:
    """Translates --config_json=X to --config, and checks the config file and the paths of overrides.

    Returns (arguments for absl, paths to set to None), because absl has no syntax for None.
    """
    if "config" not in flags.FLAGS:
        return argv, []
    argv = _join_values(argv)
    configured = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    json_paths = [a.split("=", 1)[1] for a in argv if a.startswith("--config_json=")]
    if configured and json_paths:
        raise UserError("--config and --config_json: both are set; expected only one of them")
    overrides = [a for a in argv if a.startswith("--config.")]
    if not configured and not json_paths:
        if not overrides:
            return argv, []
        json_paths = [path for path in _run_configs(argv) if local(path).is_file()]
        if not json_paths:
            raise UserError(f"{overrides[0]}: no config to override; set it with --config=FILE")
    spec = expanded(configured[-1]) if configured else f"{FROM_JSON}:{json_paths[-1]}"
    config = load(spec)
    for override in overrides:
        configs.check_path(config, override.split("=", 1)[0].removeprefix("--config."))
    set_to_none = [a for a in overrides if a.endswith("=None")]
    remaining = [a for a in argv[1:] if not a.startswith(("--config=", "--config_json=")) and a not in set_to_none]
    return [argv[0], f"--config={spec}", *remaining], [
        a.removeprefix("--config.").removesuffix("=None") for a in set_to_none
    ]


def _run_configs(argv: list[str]) -> list[str]:
    """The config.json of the run in --workdir, which overrides without --config apply to."""
    return [f"{a.split('=', 1)[1]}/config.json" for a in argv if a.startswith("--workdir=")]


def _join_values(argv: list[str]) -> list[str]:
    """Joins `--name value` to `--name=value`, for the flags that this module reads, and for a field set to None."""
    out: list[str] = []
    for a in argv:
        if re.match(r"-[a-z]", a):  # absl accepts a single dash
            a = f"-{a}"
        if out and (out[-1] in ("--config", "--config_json", "--workdir") or (a == "None" and _is_field(out[-1]))):
            out[-1] += f"={a}"
        else:
            out.append(a)
    return out


def _is_field(argument: str) -> bool:
    return argument.startswith("--config.") and "=" not in argument


def load(spec: str) -> Any:
    """Loads the config of "file.py", "file.py:variant" or "file.json". Raises UserError if it cannot be loaded."""
    path, _, variant = spec.partition(":")
    path = expanded(path)
    if path.lower().endswith(".json"):
        return configs.load_json(path)
    if not pathlib.Path(path).is_file():
        config_files = [str(p) for p in pathlib.Path("configs").rglob("*.py") if p.name != "__init__.py"]
        raise UserError(
            f"--config={spec}: no such file{configs.did_you_mean(path, config_files) if config_files else ''}"
        )
    scope: dict[str, Any] = {"__name__": "config_file", "__file__": path}
    try:
        exec(compile(pathlib.Path(path).read_text(), path, "exec"), scope)
        get_config = scope["get_config"]
    except KeyError:
        raise UserError(f"--config={spec}: the file does not define get_config()") from None
    except Exception as e:
        frame = traceback.extract_tb(e.__traceback__)[-1] if e.__traceback__ else None
        line = e.lineno if isinstance(e, SyntaxError) else frame.lineno if frame else "?"
        raise UserError(f"--config={spec}: the file cannot be loaded (line {line}: {type(e).__name__}: {e})") from None
    try:
        if variant and not inspect.signature(get_config).parameters:
            raise UserError(f"--config={spec}: the config has no variants; expected --config={path}")
        config = get_config(variant) if variant else get_config()
    except UserError:
        raise
    except Exception as e:
        raise UserError(f"--config={spec}: get_config({variant!r}) failed: {type(e).__name__}: {e}") from None
    if not dataclasses.is_dataclass(config):
        raise UserError(
            f"--config={spec}: get_config returned a {type(config).__name__}; expected an Experiment "
            "(from jaxnlp.training.experiment)"
        )
    return config
