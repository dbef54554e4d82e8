"""Maps the parameters of a pretrained model to those of another model by path, with layers scanned or not.

Scanned layers are one parameter `blocks/x` with a leading layer axis. Others are `block_0/x`, `block_1/x`, ...
See `nn/stack.py`.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from jaxnlp.errors import UserError

Shapes = dict[str, tuple[int, ...]]
HEADS = ("masked_lm", "next_sentence", "pooler", "head")
"""Names of heads, as the first name of a path in the body. Their parameters may be missing or unexpected."""


@dataclasses.dataclass(frozen=True)
class ParamSource:
    """The source of a parameter.

    sources: paths in the pretrained model. stacked: each source is one layer, and they are stacked. layer: the layer to
    take from a single source with stacked layers; None takes all of it. extended: the source is shorter than the
    parameter along `axis` (the vocabulary).
    """

    sources: tuple[str, ...]
    stacked: bool = False
    layer: int | None = None
    extended: bool = False
    axis: int = 0


@dataclasses.dataclass(frozen=True)
class ParamMapping:
    """loaded: the source of each loaded parameter. unexpected: paths of the source that no parameter uses.
    rows: for each extended parameter, its number of rows in the source."""

    loaded: dict[str, ParamSource]
    unexpected: list[str]
    rows: dict[str, int]


def map_params(
    source: Shapes,
    target: Shapes,
    axes: dict[str, Any],
    *,
    prefixes: tuple[str, str],
    same_head: bool,
    allowed: Callable[[str], bool],
    dropped: Callable[[str], bool],
    name: str,
) -> ParamMapping:
    """Finds the source of each parameter of the target.

    Args:
        source, target: shapes by path. axes: logical axes of the target's parameters.
        prefixes: path prefixes of the body in the source and in the target.
        same_head: whether the parameters beside the bodies have the same meaning, so that they are loaded too.
        allowed, dropped: whether a path, besides those of heads, may be missing or unexpected.
        name: the source's, for messages.

    Raises:
        UserError: naming the first parameter of another shape, or the first missing or unexpected one of a body.
    """
    source_prefix, target_prefix = prefixes
    loaded: dict[str, ParamSource] = {}
    rows: dict[str, int] = {}
    for path, shape in target.items():
        is_head = not path.startswith(target_prefix)
        if is_head and not (same_head and path in source):
            continue
        piece = (
            ParamSource((path,))
            if is_head
            else _find(f"{source_prefix}{path.removeprefix(target_prefix)}", shape, source)
        )
        if piece is None:
            continue
        source_shape = _shape(piece, source)
        if source_shape != shape:
            piece = _extended(piece, path, source_shape, shape, axes[path], name)
            rows[path] = source_shape[piece.axis]
        loaded[path] = piece
    used = [(path, piece.layer) for piece in loaded.values() for path in piece.sources]
    unexpected = [path for path, shape in source.items() if not _is_used(path, shape, used)]
    _check(sorted(set(target) - set(loaded)), target_prefix, allowed, f"is not in {name}", "init_from.missing_ok")
    _check(sorted(unexpected), source_prefix, dropped, f"of {name} is not in this model", "init_from.unexpected_ok")
    return ParamMapping(loaded, unexpected, rows)


def _find(path: str, shape: tuple[int, ...], source: Shapes) -> ParamSource | None:
    if path in source:
        return ParamSource((path,))
    if scanned := re.fullmatch(r"(.*/)?blocks/(.*)", path):
        prefix, suffix = scanned[1] or "", scanned[2]
        layers = tuple(f"{prefix}block_{i}/{suffix}" for i in range(shape[0]))
        return ParamSource(layers, stacked=True) if all(layer in source for layer in layers) else None
    if single := re.fullmatch(r"(.*/)?block_(\d+)/(.*)", path):
        stacked_path, layer = f"{single[1] or ''}blocks/{single[3]}", int(single[2])
        return (
            ParamSource((stacked_path,), layer=layer)
            if stacked_path in source and layer < source[stacked_path][0]
            else None
        )
    return None


def _shape(piece: ParamSource, source: Shapes) -> tuple[int, ...]:
    shape = source[piece.sources[0]]
    if piece.stacked:
        return (len(piece.sources), *shape)
    return shape if piece.layer is None else shape[1:]


def _extended(piece: ParamSource, path: str, source_shape: tuple, shape: tuple, axes: tuple, name: str) -> ParamSource:
    differ = [i for i, (a, b) in enumerate(zip(source_shape, shape, strict=False)) if a != b]
    if len(source_shape) == len(shape) and len(differ) == 1 and axes[differ[0]] == "vocab":
        axis = differ[0]
        if source_shape[axis] < shape[axis]:
            return dataclasses.replace(piece, extended=True, axis=axis)
    raise UserError(
        f"{path}: its shape in {name} is {_by(source_shape)} and in this model {_by(shape)}; "
        "take the config of that model with pretrained.model(path)"
    )


def _is_used(path: str, shape: tuple[int, ...], used: list[tuple[str, int | None]]) -> bool:
    """Whether a parameter of the source is used: with all of its layers, if it is taken layer by layer."""
    layers = {layer for source, layer in used if source == path}
    return None in layers or (bool(layers) and layers == set(range(shape[0])))


def _check(paths: list[str], prefix: str, allowed: Callable[[str], bool], problem: str, field: str) -> None:
    def is_allowed(path: str) -> bool:
        name = path.removeprefix(prefix)
        return not path.startswith(prefix) or name.partition("/")[0] in HEADS or allowed(path)

    wrong = [path for path in paths if not is_allowed(path)]
    if wrong:
        others = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(
            f"{wrong[0]}{others} {problem}, so the pretrained body would be only partly loaded; take the config of "
            f"that model with pretrained.model(path), or allow it with {field}=({wrong[0]!r},)"
        )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
