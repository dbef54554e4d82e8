"""Calls of submodules, seen and changed from outside the model: what tuning methods are made of.

A change is a function `change(call, next_fun, args, kwargs) -> output`, asked at every method call of every submodule
within `calls_changed`. It works on any Linen model, for it is Flax's own `intercept_methods` that asks; what is here
beside it is the module's path, which is that in the whole model even where a pipeline runs a few layers alone.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Call:
    """A method call of a submodule. path: where its parameters are in the model's. method: as "__call__"."""

    module: nn.Module
    path: tuple[str, ...]
    method: str


ROWS = "adapter_of_row"
"""A leaf of parameters that is of the batch's rows and not of the model, (B,): which of several sets of tuned
parameters each takes (`peft/multi_adapter.py`)."""

Change = Callable[[Call, Callable, tuple, dict], Any]

_changes: contextvars.ContextVar[tuple[Change, ...]] = contextvars.ContextVar("changes", default=())
_root: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("root", default=())


@contextlib.contextmanager
def calls_changed(change: Change) -> Iterator[None]:
    """Within the block every method call of a submodule goes through `change`, after those of blocks around it."""
    token = _changes.set((*_changes.get(), change))
    try:
        with nn.intercept_methods(_asking(change)):
            yield
    finally:
        _changes.reset(token)


def _asking(change: Change) -> Callable:
    def ask(next_fun, args, kwargs, context):
        path = (*_root.get(), *context.module.path)
        return change(Call(context.module, path, context.method_name), next_fun, args, kwargs)

    return ask


def changes() -> tuple[Change, ...]:
    """Those in force, to be passed to `calls_changed_at` by who runs part of a model later."""
    return _changes.get()


@contextlib.contextmanager
def calls_changed_at(path: tuple[str, ...], given: tuple[Change, ...]) -> Iterator[None]:
    """Within the block these changes are in force for a module that is at a path of the model but runs alone."""
    token, there = _root.set(path), _changes.get()
    try:
        with contextlib.ExitStack() as stack:
            for change in (c for c in given if c not in there):
                stack.enter_context(nn.intercept_methods(_asking(change)))
            yield
    finally:
        _root.reset(token)


def rows_repeated(params: Any, times: int) -> Any:
    """Parameters for a batch in which each row stands so many times over, one after the other."""
    if not isinstance(params, Mapping) or ROWS not in params:
        return params
    return {**params, ROWS: jnp.repeat(params[ROWS], times)}
