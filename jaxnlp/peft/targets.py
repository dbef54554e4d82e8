"""Where a tuning method can act: the submodules a model calls, with the shapes that go in and out.

The model is traced once on shapes. Shapes alone do not say which axes of a kernel (heads, kv, embed) are inputs; the
call does.
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

from jaxnlp.errors import UserError
from jaxnlp.nn.interceptors import ModuleCall, intercept_calls
from jaxnlp.sharding.functional import abstract_params
from jaxnlp.trees import get_at

KERNEL, TABLE = "kernel", "embedding"


@dataclasses.dataclass(frozen=True)
class Parameter:
    """shape, axes: whole, that is with those of stacked layers in front."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True)
class Target:
    """A submodule that is called.

    path: where its parameters are in the model's. kind: name of its class. parameters: its own.
    stack: shape of the axes of stacked layers that its parameters have in front, () or (L,); stack_axes: their names.
    inputs, outputs: shapes of the first argument and of the (first) result; None where that is no array.
    others: its other methods that are called, as "logits" of a table that is the output map too.
    fields: of the module, as num_heads. calls: how often it is called.
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
        """How many axes of the kernel are inputs; None where its call is no product of the last axes with a kernel."""
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
        """Whether its call reads rows of a table: integers in, a vector for each out."""
        table = self.parameters.get(TABLE)
        if table is None or self.inputs is None or self.outputs is None:
            return False
        return self.outputs == (*self.inputs, table.shape[-1]) and len(table.shape) == self.layers + 2

    @property
    def size(self) -> int:
        return sum(math.prod(p.shape) for p in self.parameters.values())


def find_targets(module: nn.Module, *inputs: Any) -> list[Target]:
    """Every submodule that the model calls, in the order of its calls.

    Args:
        inputs: abstract or real example inputs, as `ModelConfig.example_inputs` gives.
    """
    shapes, axes = abstract_params(module, *inputs)
    found: dict[tuple[str, ...], Target] = {}
    others: dict[tuple[str, ...], dict[str, None]] = {}

    def see(call: ModuleCall, next_fun: Callable, args: tuple, kwargs: dict) -> Any:
        out = next_fun(*args, **kwargs)
        if call.method == "__call__" and call.path in found:
            found[call.path] = dataclasses.replace(found[call.path], calls=found[call.path].calls + 1)
        elif call.method == "__call__" and call.path:
            found[call.path] = _target(call, args, out, shapes, axes)
        elif call.method != "__call__":
            others.setdefault(call.path, {})[call.method] = None
        return out

    # A new function, or JAX would not trace again what it has traced without asking.
    with intercept_calls(see):
        jax.eval_shape(lambda *args: module.init(jax.random.key(0), *args), *inputs)
    return [dataclasses.replace(t, others=tuple(others.get(path, ()))) for path, t in found.items()]


def _target(call: ModuleCall, args: tuple, out: Any, shapes: Any, axes: Any) -> Target:
    first = out[0] if isinstance(out, tuple) else out
    whole, names = get_at(shapes, call.path) or {}, get_at(axes, call.path) or {}
    own = {name: Parameter(x.shape, names[name], x.dtype) for name, x in whole.items() if not isinstance(x, Mapping)}
    stack, stack_axes = _stacked(whole, names, nn.meta.unbox(call.module.variables.get("params", {})))
    shape = _shape(args[0] if args else None)
    fields = call.fields()
    kind = type(call.module).__name__
    return Target(call.path, kind, own, stack, stack_axes, shape, _shape(first), fields=fields)


def _stacked(whole: Any, names: Any, inner: Any) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
    """(shape, names) of the axes that parameters have in front of what the call sees of them."""
    for name, x in inner.items():
        if isinstance(x, Mapping):
            if jax.tree.leaves(x):
                return _stacked(whole[name], names[name], x)
        else:
            count = len(whole[name].shape) - len(x.shape)
            return whole[name].shape[:count], names[name][:count]
    return (), ()


def _shape(x: Any) -> tuple[int, ...] | None:
    return tuple(x.shape) if isinstance(x, (jax.Array, np.ndarray)) else None


def choose(
    targets: list[Target], patterns: tuple[str, ...], serves: Callable[[Target], bool], what: str, field: str
) -> list[Target]:
    """The targets that match a pattern.

    Args:
        patterns: of paths, as "*/query" or "blocks/*/out"; a pattern without "/" is a module's own name, anywhere.
        serves: whether the method can act there. what: it acts on, for messages. field: the patterns', for messages.

    Raises:
        UserError: a pattern that matches nothing, or only what the method cannot serve, or a kernel or table that it
            cannot; with the nearest paths.
    """
    chosen: dict[tuple[str, ...], Target] = {}
    possible = [t for t in targets if serves(t)]
    for pattern in patterns:
        hit = [t for t in targets if matches(t.name, pattern)]
        able = [t for t in hit if serves(t)]
        names = sorted({t.name for t in possible})
        if not hit:
            near = difflib.get_close_matches(pattern, [*sorted({t.path[-1] for t in possible}), *names], 1, 0.5)
            mean = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{field}={pattern!r}: no module of the model is called so{mean} ({_listed(names, what)})")
        odd = [t for t in hit if t not in able and set(t.parameters) & {KERNEL, TABLE}] if able else hit
        if odd:
            one = odd[0]
            raise UserError(
                f"{field}={pattern!r}: {one.name} ({one.kind}) is not {what}, which this method needs; "
                f"{_listed(names, what)}"
            )
        chosen |= {t.path: t for t in able}
    return [t for t in targets if t.path in chosen]


def matches(name: str, pattern: str) -> bool:
    """Whether a path matches a pattern; one without "/" is a last name, anywhere."""
    return fnmatch.fnmatchcase(name if "/" in pattern else name.rsplit("/", 1)[-1], pattern)


def _listed(names: list[str], what: str) -> str:
    if not names:
        return f"this model has nothing that is {what}"
    some = ", ".join(names[:12]) + (f", and {len(names) - 12} more" if len(names) > 12 else "")
    return f"there are {some}"
