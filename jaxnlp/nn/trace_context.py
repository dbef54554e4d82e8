"""The trace context: values that a model's code reads while JAX traces it and that are not arguments.

`jax.jit` calls a Python function once, to trace it. During that call a layer needs to know, for instance, over which
mesh axes its activations are sharded, although no argument of the model holds it. All such values are fields of one
frozen `TraceContext`, held in one `ContextVar`. They are read only during tracing; a compiled function does not read
them.

`Program.context()` (`training/step/program.py`) enters the mesh and the layout. `Program.apply` of a program over
several devices raises an error outside of this context, since the layout would be missing. A module that is applied on
its own, on one device, needs no context: the defaults below have no effect.

Two limits follow, because JAX does not know the context:

- A module that is applied on its own under a mesh of several devices, without a layout, is not an error. `constrain`
  then returns its argument unchanged, and the compiler chooses the shardings. Only `Program.apply` raises an error.
- The context is not part of the key of `jax.jit`'s cache, while the mesh is. A jitted function that is called within
  two contexts of the same mesh keeps the layout of its first trace. Jit one function for each context.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from jaxnlp.nn.interceptors import Interceptor
    from jaxnlp.nn.stack import ScannedLayers

MeshAxes = str | tuple[str, ...] | None
"""The mesh axes over which an axis of an array is split: one, several, or None if it is replicated."""

Rules = Mapping[str, MeshAxes]
"""A table from logical axes to mesh axes."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sharding rules: tables from logical axes to mesh axes, with None for a replicated axis.

    activations: rules for the axes named in `partitioning.constrain`.
    compute_rules: rules for parameters where a layer uses them; None keeps their stored sharding. Under ZeRO-3 a
        parameter is stored sharded and all-gathered for use.
    gradients: rules for the parameters' gradients at the end of the backward pass; None: `compute_rules`.
    """

    activations: Rules
    compute_rules: Rules | None = None
    gradients: Rules | None = None


@dataclasses.dataclass
class PromptInsertion:
    """Where a soft prompt is inserted during one call of a model.

    token_ids: the (lengthened) array of ids whose embeddings begin with the prompt; None for any array of ids.
    count: number of insertions so far, which the caller checks; the only field that changes.
    """

    token_ids: jax.Array | None = None
    count: int = 0


@dataclasses.dataclass(frozen=True)
class TraceContext:
    """The values of the trace context.

    layout: set by `partitioning.axis_rules`, which `Program.context()` enters; read by `nn/partitioning.py`.
    stack_override: runs the layers of a scanned stack in place of `nn.scan`. Set by `stack.override_stack`, which the
        pipeline step enters; read by `stack.stack`.
    interceptors: functions that every submodule call goes through. Set by `interceptors.intercept_calls`, which
        `TunedModel.apply` enters; read by `stack.stack`, for layers that run outside the model.
    module_path: path in the model of a module that is applied on its own. Set by `interceptors.intercept_calls_at`;
        read by interceptors.
    adapter_ids: (B,), index of the adapter that each row of the batch uses, -1 for none. Set by `TunedModel.apply` from
        its argument of that name; read by `peft/lora.py`.
    prompt_insertion: set and read by `peft/prompt.py` within one call of the model.
    prefix_is_cached: whether the key-value cache already begins with the prefix. Set and read by `peft/prefix.py`
        within one call of an attention layer.
    """

    layout: Layout | None = None
    stack_override: "Callable[[jax.Array, ScannedLayers], jax.Array] | None" = None
    interceptors: "tuple[Interceptor, ...]" = ()
    module_path: tuple[str, ...] = ()
    adapter_ids: jax.Array | None = None
    prompt_insertion: PromptInsertion | None = None
    prefix_is_cached: bool = False


_DEFAULTS = TraceContext()
_context: contextvars.ContextVar[TraceContext] = contextvars.ContextVar("trace_context", default=_DEFAULTS)


def current() -> TraceContext:
    """The current context."""
    return _context.get()


@contextlib.contextmanager
def replaced(**changes: Any) -> Iterator[TraceContext]:
    """Within the block the context has these fields changed, as in `dataclasses.replace`."""
    token = _context.set(dataclasses.replace(_context.get(), **changes))
    try:
        yield _context.get()
    finally:
        _context.reset(token)
