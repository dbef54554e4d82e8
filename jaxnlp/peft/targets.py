"""Discovery and selection of PEFT targets: the submodules that a model calls, with their input and output shapes.

The model is traced once on abstract inputs. A kernel's shape alone does not determine which of its axes (heads, kv,
embed) are inputs, so they are inferred from the shapes of the call.
"""

import dataclasses
import difflib
import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.typing import DTypeLike

from jaxnlp.errors import UserError
from jaxnlp.nn.interceptors import ModuleCall, intercept_calls
from jaxnlp.sharding.functional import abstract_params
from jaxnlp.trees import get_at

KERNEL, TABLE = "kernel", "embedding"


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of the model. shape, axes: complete, including the leading axes of stacked layers."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    dtype: DTypeLike


@dataclasses.dataclass(frozen=True)
class Target:
    """A submodule that the model calls.

    path: of its parameters in the model's tree. kind: name of its class. parameters: its own, without submodules.
    stack: shape of the leading axes of stacked layers, () or (L,); stack_axes: their logical names.
    inputs, outputs: shapes of the first argument and of the (first) result; None if that is not an array.
    others: its other called methods, e.g. "logits" of an embedding table that is also the output projection.
    fields: fields of the module, e.g. num_heads. calls: number of calls of `__call__`.
    """

    path: tuple[str, ...]
    kind: str
    parameters: dict[str, Parameter]
    stack: tuple[int, ...]
    stack_axes: tuple[str | None, ...]
    inputs: tuple[int, ...] | None
    outputs: tuple[int, ...] | None
    others: tuple[str, ...] = ()
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    calls: int = 1

    @property
    def name(self) -> str:
        return "/".join(self.path)

    @property
    def layers(self) -> int:
        return len(self.stack)

    @property
    def num_in(self) -> int | None:
        """Number of input axes of the kernel; None if the call does not contract the input's last axes with it."""
        kernel = self.parameters.get(KERNEL)
        if kernel is None or self.inputs is None or self.outputs is None:
            return None
        shape = kernel.shape[self.layers :]
        for n in range(1, len(shape)):
            lead = self.inputs[: len(self.inputs) - n]
            if self.inputs == (*lead, *shape[:n]) and self.outputs == (*lead, *shape[n:]):
                return n
        return None

    @property
    def is_table(self) -> bool:
        """Whether the call is a table lookup, by its shapes: one vector of the table's width for each input element."""
        table = self.parameters.get(TABLE)
        if table is None or self.inputs is None or self.outputs is None:
            return False
        return self.outputs == (*self.inputs, table.shape[-1]) and len(table.shape) == self.layers + 2

    @property
    def size(self) -> int:
        return sum(math.prod(p.shape) for p in self.parameters.values())


def find_targets(module: nn.Module, *inputs: Any) -> list[Target]:
    """Every submodule that the model calls, in call order.

    Args:
        inputs: abstract or real example inputs, e.g. those of `ModelConfig.example_inputs`.
    """
    shapes, axes = abstract_params(module, *inputs)
    by_path: dict[tuple[str, ...], Target] = {}
    others: dict[tuple[str, ...], dict[str, None]] = {}

    def record(call: ModuleCall, next_fun: Callable, args: tuple, kwargs: dict) -> Any:
        out = next_fun(*args, **kwargs)
        if call.method == "__call__" and call.path in by_path:
            by_path[call.path] = dataclasses.replace(by_path[call.path], calls=by_path[call.path].calls + 1)
        elif call.method == "__call__" and call.path:
            by_path[call.path] = _target(call, args, out, shapes, axes)
        elif call.method != "__call__":
            others.setdefault(call.path, {})[call.method] = None
        return out

    # A new lambda on every call: JAX would not retrace a cached function, and nothing would be intercepted.
    with intercept_calls(record):
        jax.eval_shape(lambda *args: module.init(jax.random.key(0), *args), *inputs)
    return [dataclasses.replace(t, others=tuple(others.get(path, ()))) for path, t in by_path.items()]


def _target(call: ModuleCall, args: tuple, out: Any, shapes: Any, axes: Any) -> Target:
    result = out[0] if isinstance(out, tuple) else out
    module_shapes, names = get_at(shapes, call.path) or {}, get_at(axes, call.path) or {}
    parameters = {
        name: Parameter(x.shape, names[name], x.dtype)
        for name, x in module_shapes.items()
        if not isinstance(x, Mapping)
    }
    stack, stack_axes = _stacked(module_shapes, names, nn.meta.unbox(call.module.variables.get("params", {})))
    shape = _shape(args[0] if args else None)
    fields = call.fields()
    kind = type(call.module).__name__
    return Target(call.path, kind, parameters, stack, stack_axes, shape, _shape(result), fields=fields)


def _stacked(full: Any, names: Any, called: Any) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
    """(shape, names) of the leading axes that parameters have in the model's tree but not inside the call."""
    for name, x in called.items():
        if isinstance(x, Mapping):
            if jax.tree.leaves(x):
                return _stacked(full[name], names[name], x)
        else:
            count = len(full[name].shape) - len(x.shape)
            return full[name].shape[:count], names[name][:count]
    return (), ()


def _shape(x: Any) -> tuple[int, ...] | None:
    return tuple(x.shape) if isinstance(x, (jax.Array, np.ndarray)) else None


def choose(
    targets: list[Target], patterns: tuple[str, ...], serves: Callable[[Target], bool], expected: str, field: str
) -> list[Target]:
    """The targets that match one of the patterns, in the order of `targets`.

    Args:
        patterns: patterns of paths, e.g. "*/query" or "blocks/*/out". A pattern without "/" matches the last name.
        serves: whether the method supports a target. expected: description of supported targets, for
            messages.
        field: name of the config field of the patterns, for messages.

    Raises:
        UserError: a pattern matches nothing, only unsupported modules, or an unsupported kernel or table. The message
            suggests the closest paths.
    """
    chosen: dict[tuple[str, ...], Target] = {}
    possible = [t for t in targets if serves(t)]
    for pattern in patterns:
        matched = [t for t in targets if matches(t.name, pattern)]
        supported = [t for t in matched if serves(t)]
        names = sorted({t.name for t in possible})
        if not matched:
            close = difflib.get_close_matches(pattern, [*sorted({t.path[-1] for t in possible}), *names], 1, 0.5)
            suggestion = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(
                f"{field}={pattern!r}: no module of the model has this name{suggestion} ({_listed(names, expected)})"
            )
        unsupported = (
            [t for t in matched if t not in supported and set(t.parameters) & {KERNEL, TABLE}] if supported else matched
        )
        if unsupported:
            target = unsupported[0]
            raise UserError(
                f"{field}={pattern!r}: {target.name} ({target.kind}) is not {expected}, which this method needs; "
                f"{_listed(names, expected)}"
            )
        chosen |= {t.path: t for t in supported}
    return [t for t in targets if t.path in chosen]


def matches(name: str, pattern: str) -> bool:
    """Whether a path matches a glob pattern. A pattern without "/" is matched against the last name of the path."""
    return fnmatch.fnmatchcase(name if "/" in pattern else name.rsplit("/", 1)[-1], pattern)


def _listed(names: list[str], expected: str) -> str:
    if not names:
        return f"this model has no module that is {expected}"
    listed = ", ".join(names[:12]) + (f", and {len(names) - 12} more" if len(names) > 12 else "")
    return f"available: {listed}"
