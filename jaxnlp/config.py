"""Checks, saves, loads and compares config objects.

A config is a tree of plain dataclasses. In JSON each object carries its class as "module:Name", so a config that is
defined in a fork can be loaded as long as its module can be imported.
"""

import dataclasses
import difflib
import importlib
import operator
import pathlib
import types
import typing
from collections.abc import Iterator
from typing import Any

from jaxnlp import strict_json
from jaxnlp.errors import FieldError, UserError, reading, reason
from jaxnlp.paths import local
from jaxnlp.renamed import current_class, current_fields
from jaxnlp.scratch import replacing

CLASS = "class"


@typing.runtime_checkable
class Checked(typing.Protocol):
    """Protocol of a config object with a `check()` that raises FieldError for the first invalid field.

    An object without constraints beyond its fields' types does not need this method.
    """

    def check(self) -> None: ...


def field_values(config: Any, *names: str) -> dict[str, Any]:
    """Field name -> value of a dataclass, for all fields or for the named attributes."""
    names = names or tuple(f.name for f in dataclasses.fields(config))
    return {name: getattr(config, name) for name in names}  # the names are the dataclass's own fields


def check(config: Any, path: str = "") -> None:
    """Checks every field's type and calls each object's own `check()`, innermost first.

    Raises:
        FieldError: with the full path of the field, its value and what was expected.
    """
    check_types(config, path)
    for name, value in field_values(config).items():
        if dataclasses.is_dataclass(value):
            check(value, f"{path}{name}.")
    if isinstance(config, Checked):
        try:
            config.check()
        except FieldError as e:
            raise FieldError(f"{path}{e.field}", e.value, e.expected) from None
        except UserError:
            raise
        except Exception as e:  # a value inside a dict or a tuple has another type than the check expects
            holder = f"{path.rstrip('.') or 'the config'}: {type(config).__name__}()"
            raise UserError(f"{holder} has a field with an invalid value ({reason(e)})") from e


def check_types(config: Any, path: str = "") -> None:
    """Raises FieldError for the first field of the object itself whose value does not have the annotated type.

    A field's metadata may describe the expected value for the message: {"expected": "LoRA(rank=8), or None"}.
    """
    hints = typing.get_type_hints(type(config))
    values = field_values(config)
    for field in dataclasses.fields(config):
        value, hint = values[field.name], hints[field.name]
        if not _fits(value, hint):
            expected = f"expected {field.metadata.get('expected') or _type_name(hint)}, got {type(value).__name__}"
            remedy = f"; write ({value!r},)" if _fits((value,), hint) else ""  # a single value for a tuple field
            raise FieldError(f"{path}{field.name}", value, expected + remedy)


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any or hint is object:
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, h) for h in typing.get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    origin = typing.get_origin(hint) or hint
    if origin is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple and typing.get_args(hint)[1:] == (Ellipsis,):
        return isinstance(value, tuple) and all(_fits(v, typing.get_args(hint)[0]) for v in value)
    return isinstance(value, origin)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def to_dict(config: Any) -> Any:
    """A config as JSON values: dataclasses become dicts with their class, tuples become lists.

    Raises:
        UserError: a value that JSON cannot represent.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        name = f"{type(config).__module__}:{type(config).__qualname__}"
        fields = {field: to_dict(value) for field, value in field_values(config).items()}
        return {CLASS: name, **fields}
    if isinstance(config, dict):
        return {str(k): to_dict(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(v) for v in config]
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    raise UserError(
        f"config: {config!r} ({type(config).__name__}) cannot be written as JSON; "
        "expected dataclasses, dicts, lists, numbers, strings or None"
    )


def from_dict(data: Any, path: str = "") -> Any:
    """The config from the output of `to_dict`. Missing fields take their defaults, and lists become tuples.

    Raises:
        UserError: a class cannot be imported, is not a dataclass or lacks a field.
    """
    if isinstance(data, list):
        return tuple(from_dict(v, f"{path}[{i}]") for i, v in enumerate(data))
    if not isinstance(data, dict):
        return data
    if CLASS not in data:
        return {k: from_dict(v, f"{path}.{k}") for k, v in data.items()}
    class_name = current_class(str(data[CLASS]))
    cls = _import(class_name, path or "the config")
    names = [f"{base.__module__}:{base.__qualname__}" for base in cls.__mro__]
    data = current_fields(names, {name: value for name, value in data.items() if name != CLASS})
    field_names = [f.name for f in dataclasses.fields(cls)]
    for name in data:
        if name not in field_names:
            raise UserError(
                f"{path}.{name}: {cls.__name__} has no such field{did_you_mean(name, field_names)}".lstrip(".")
            )
    try:
        return cls(**{k: from_dict(v, f"{path}.{k}".lstrip(".")) for k, v in data.items()})
    except UserError:
        raise
    except Exception as e:  # of its __post_init__
        raise UserError(f"{path or 'the config'}: {cls.__name__} cannot be built ({reason(e)})") from None


def _import(name: str, path: str) -> type:
    module, _, qualname = str(name).partition(":")
    try:
        cls: Any = operator.attrgetter(qualname)(importlib.import_module(module))
    except Exception as e:  # the module may raise anything
        raise UserError(
            f"{path}: its class {name!r} cannot be imported ({e}); "
            "install the package that defines it, or add it to PYTHONPATH"
        ) from None
    if not dataclasses.is_dataclass(cls):
        raise UserError(f"{path}: its class {name!r} is not a dataclass")
    return typing.cast(type, cls)


def save_json(config: Any, path: pathlib.Path) -> None:
    """Writes a config as JSON atomically. Raises UserError if it cannot be written."""
    with replacing(path, "free disk space, or choose another folder") as new:
        new.write_text(strict_json.dumps(to_dict(config), indent=2) + "\n")


def load_json(path: str | pathlib.Path) -> Any:
    """Reads a config from a JSON file. Raises UserError if the file cannot be read or is not a config."""
    path = local(path)
    try:
        data = strict_json.loads(path.read_text())
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); expected a config saved as JSON") from None
    except (ValueError, RecursionError) as e:  # not JSON, or not UTF-8
        raise UserError(f"{path}: invalid JSON ({e})") from None
    if not isinstance(data, dict) or CLASS not in data:
        raise UserError(
            f"{path}: not a config; expected a JSON object with a field {CLASS!r}, such as runs/tiny/config.json"
        )
    with reading(path, "not a config, or damaged"):
        return from_dict(data)


def flatten(config: Any, path: str = "", modules: bool = False) -> Iterator[tuple[str, Any]]:
    """Yields (path, value) of every leaf, as ('model.num_layers', 4). An object's class is a leaf at its own path.

    Args:
        modules: whether classes have their modules, as 'jaxnlp.models.gpt:GPTConfig()' for 'GPTConfig()'.
    """
    data = to_dict(config) if dataclasses.is_dataclass(config) else config
    if isinstance(data, dict):
        if path and CLASS in data:
            yield path, f"{data[CLASS] if modules else data[CLASS].partition(':')[2]}()"
        for name, value in data.items():
            if name != CLASS:
                yield from flatten(value, f"{path}.{name}" if path else name, modules)
    else:
        yield path, data


def diff(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """The leaves in which two configs differ: (path, old value, new value). A missing leaf is "-".

    Classes of one name in two modules, such as a model and its fork, differ and are shown with their modules.
    """
    full = [dict(flatten(config, modules=True)) for config in (old, new)]
    short = [dict(flatten(config)) for config in (old, new)]
    changes = []
    for path in {**full[0], **full[1]}:
        before, after = (side.get(path, "-") for side in full)
        if before != after:
            names = [side.get(path, "-") for side in short]
            changes.append((path, before, after) if names[0] == names[1] else (path, *names))
    return changes


def did_you_mean(name: str, options: list[str]) -> str:
    """The end of an error message: '; did you mean X?', or '; expected one of ...' if no option is similar."""
    matches = difflib.get_close_matches(name, options, 1, 0.5)
    return f"; did you mean {matches[0]!r}?" if matches else f"; expected one of {', '.join(options)}"


def check_path(config: Any, dotted: str) -> None:
    """Raises UserError unless `dotted` ("model.num_layers") names a field of the config."""
    holder, parents = config, ""
    for part in dotted.split("."):
        if not dataclasses.is_dataclass(holder):
            raise UserError(f"--config.{dotted}: {parents} is {holder!r} and has no fields")
        values = field_values(holder)
        field_names = list(values)
        if part not in values:
            raise UserError(
                f"--config.{dotted}: {type(holder).__name__} has no field {part!r}{did_you_mean(part, field_names)}"
            )
        holder, parents = values[part], f"{parents}.{part}".lstrip(".")


def set_path(config: Any, dotted: str, value: Any) -> None:
    """Sets the field named by `dotted` ("model.num_layers")."""
    *holders, name = dotted.split(".")
    for part in holders:
        config = field_values(config)[part]
    setattr(config, name, value)
