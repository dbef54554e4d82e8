"""Calls the hooks of a supervised loop when they are due, and saves and restores their states."""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxnlp.training.hooks import Checkpoint, Hook, StoppedBySignal

if TYPE_CHECKING:
    from jaxnlp.training.loops.supervised import SupervisedLoop


class HookList:
    """Copies of hooks, which act in order, each at most once at a step.

    Args:
        saved: `states()` of the checkpoint that the run resumes from.
    """

    def __init__(self, hooks: Sequence[Hook], saved: dict[str, Any]):
        self._hooks = [copy.copy(hook) for hook in hooks]
        self._acted: dict[int, int] = {}  # by hook, the step at which it acted last
        for name, hook in self._by_name().items():
            if name in saved:
                hook.restore(saved[name])

    def begin(self, loop: "SupervisedLoop") -> None:
        """Before the first step."""
        for hook in self._hooks:
            hook.begin(loop)

    def on_metrics(
        self, loop: "SupervisedLoop", step: int, metrics: dict[str, np.ndarray], ended: float | None
    ) -> None:
        for hook in self._hooks:
            hook.on_metrics(loop, step, metrics, ended)

    def act(self, loop: "SupervisedLoop") -> None:
        """The hooks that are due after a step that is not the last."""
        due = [hook for hook in self._hooks if loop.run.due(hook.every)]
        if any(hook.reads_metrics for hook in due):
            loop.read_metrics()  # a state is saved only once its loss is known to be finite
        for hook in due:
            self._act(loop, hook, hook.act)

    def end(self, loop: "SupervisedLoop") -> None:
        """The hooks that are due after the last step, which the end of the run or a signal makes the last."""
        for hook in self._hooks:
            stopped = loop.run.signal is not None
            if hook.at_stop if stopped else (hook.at_end or loop.run.due(hook.every)):
                with loop.after_training():
                    self._act(loop, hook, hook.end)

    def states(self) -> dict[str, Any]:
        """The states that are not empty, by the names of the hooks."""
        states = {name: hook.state() for name, hook in self._by_name().items()}
        return {name: state for name, state in states.items() if state}

    def _act(self, loop: "SupervisedLoop", hook: Hook, action: Callable[["SupervisedLoop"], None]) -> None:
        if self._acted.get(id(hook)) == loop.run.step:
            return
        self._acted[id(hook)] = loop.run.step
        try:
            action(loop)
        except StoppedBySignal:
            loop.run.interrupt()
        except Exception:
            # Several processes do not save: all must save together, and the error may be of one alone.
            if hook.reads_metrics and not isinstance(hook, Checkpoint) and jax.process_count() == 1:
                loop.save(scored=False)
                loop.run.wait()
            raise

    def _by_name(self) -> dict[str, Hook]:
        """The hooks by the name under which their state is saved: the class, with a number from the second on."""
        hooks_by_name: dict[str, Hook] = {}
        for hook in self._hooks:
            name = type(hook).__name__
            count = sum(type(earlier).__name__ == name for earlier in hooks_by_name.values())
            hooks_by_name[f"{name} {count + 1}" if count else name] = hook
        return hooks_by_name
