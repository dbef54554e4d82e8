"""Matches the names of tensors in a checkpoint to those in a family's table, as transformers does when it loads one.

- LayerNorms of older files have `gamma` and `beta` (the original BERT checkpoints).
- The prefix of the model without its head, as `bert.`, may be present or absent, for each tensor.
- A tied parameter may be stored only under the name of a copy, as `lm_head.weight` without `wte.weight`.
"""

import dataclasses
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from jaxnlp.errors import UserError
from jaxnlp.interop.tensors import Tensor

RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # "legacy" in transformers


def bare_names(names: Iterable[str], prefixes: Sequence[str]) -> set[str]:
    """The names with today's spelling and without the prefix, by which a family recognises a model's heads."""
    return {_without_prefix(_respelled(name), prefixes) for name in names}


def table_names(
    names: Iterable[str], tensors: Collection[Tensor], copies: Mapping[str, str], prefixes: Sequence[str]
) -> dict[str, str]:
    """{name in the checkpoint: name in the table}. A name that matches nothing has today's spelling.

    Args:
        tensors, copies, prefixes: a family's, for this model.
    """
    expected = {tensor.name for tensor in tensors}
    known = lambda name: name in expected or any(re.fullmatch(pattern, name) for pattern in copies)
    by_name = {}
    for name in names:
        new = _respelled(name)
        spellings = (new, _without_prefix(new, prefixes), *(prefix + new for prefix in prefixes))
        by_name[name] = next(filter(known, spellings), new)
    return by_name


def stored(
    tensors: Iterable[Tensor], rows: Mapping[str, str], copies: Mapping[str, str], skipped: Callable[[str], bool]
) -> list[Tensor]:
    """The tensors with the names that they have in the checkpoint. Those that it lacks have the table's names.

    Args:
        rows: from `table_names`. copies: {pattern: path of the parameter}. skipped: whether the user ignores a name.

    Raises:
        UserError: two tensors of the checkpoint have one name in the table.
    """
    by_row: dict[str, str] = {}
    for name in sorted(rows, key=skipped):
        other = by_row.setdefault(rows[name], name)
        if other != name and not skipped(name):
            raise UserError(f"tensors {other} and {name} are the same parameter; skip one with {ignoring(name)}")
    return [dataclasses.replace(tensor, name=_stored_name(tensor, by_row, copies)) for tensor in tensors]


def _stored_name(tensor: Tensor, by_row: Mapping[str, str], copies: Mapping[str, str]) -> str:
    if tensor.name in by_row:
        return by_row[tensor.name]
    patterns = [pattern for pattern, path in copies.items() if (path,) == tensor.paths]
    copied = (name for name in by_row if any(re.fullmatch(pattern, name) for pattern in patterns))
    return by_row.get(next(copied, ""), tensor.name)


def _respelled(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def _without_prefix(name: str, prefixes: Sequence[str]) -> str:
    prefix = next(filter(name.startswith, prefixes), "")
    return name.removeprefix(prefix)


def ignoring(name: str) -> str:
    """How to leave out a tensor, for error messages: the argument of `load` and `Pretrained`, and the flag."""
    return f"ignore=[{name!r}], or --ignore={shlex.quote(name)} of experiments.import"
