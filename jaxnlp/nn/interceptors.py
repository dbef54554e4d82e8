"""Interceptors: functions that read and change the calls of a model's submodules. PEFT methods are built on them.

An interceptor is `interceptor(call, next_fun, args, kwargs) -> output`. Within `intercept_calls` every method call of
every submodule goes through it. This is Flax's `intercept_methods` with one addition: `call.path` is the module's path
in the full model, also if a pipeline stage runs only a few layers.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxnlp.nn import trace_context
from jaxnlp.nn.policy import Policy


@dataclasses.dataclass(frozen=True)
class ModuleCall:
    """A method call of a submodule. path: of the module in the model. method: name of the method, as "__call__"."""

    module: nn.Module
    path: tuple[str, ...]
    method: str

    def fields(self) -> dict[str, Any]:
        """The module's dataclass fields by name, as {"num_heads": 4}, for any Linen module."""
        return {f.name: vars(self.module)[f.name] for f in dataclasses.fields(self.module) if f.name != "parent"}

    def policy(self, dtype: jnp.dtype) -> Policy:
        """The module's policy; for a module without one, computation in `dtype`."""
        policy = self.fields().get("policy")
        return policy if isinstance(policy, Policy) else Policy(compute_dtype=str(dtype))


Interceptor = Callable[[ModuleCall, Callable, tuple, dict], Any]


@contextlib.contextmanager
def intercept_calls(interceptor: Interceptor) -> Iterator[None]:
    """Within the block every method call of a submodule goes through `interceptor`, after those of outer blocks."""
    interceptors = (*trace_context.current().interceptors, interceptor)
    with trace_context.replaced(interceptors=interceptors), nn.intercept_methods(_for_flax(interceptor)):
        yield


@contextlib.contextmanager
def intercept_calls_at(path: tuple[str, ...], interceptors: tuple[Interceptor, ...]) -> Iterator[None]:
    """Within the block these interceptors apply to a module that has a path in the model but is called on its own."""
    active = trace_context.current().interceptors
    with contextlib.ExitStack() as stack:
        stack.enter_context(trace_context.replaced(module_path=path))
        for interceptor in (i for i in interceptors if i not in active):
            stack.enter_context(nn.intercept_methods(_for_flax(interceptor)))
        yield


def _for_flax(interceptor: Interceptor) -> Callable:
    def intercept(next_fun, args, kwargs, context):
        path = (*trace_context.current().module_path, *context.module.path)
        return interceptor(ModuleCall(context.module, path, context.method_name), next_fun, args, kwargs)

    return intercept
