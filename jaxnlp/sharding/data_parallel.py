"""Data parallelism the naive way, with one device at the centre, and the bytes that each way moves.

As torch.nn.DataParallel does it: at every step the centre scatters the batch and copies the parameters to the other
devices, gathers their outputs, takes the loss, scatters its derivative, gathers the gradients and updates. With N
devices and parameters of Psi bytes the centre moves 2 (N - 1) Psi of parameters and gradients, and the others 2 Psi.

Where gradients are all-reduced instead (Li et al. 2020, arXiv:2006.15704) there is no centre: in a ring each device
sends, and receives, 2 Psi (N - 1) / N (Patarasuk and Yuan 2009), however many they are.

Every array here is on one device; `training/step/program.py` is how this project trains.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnlp.errors import UserError


@dataclasses.dataclass
class Traffic:
    """Bytes between devices: what was moved -> bytes of each device, in the order of `devices`."""

    devices: Sequence[Any]
    sent: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    received: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def move(self, what: str, tree: Any, to: Any) -> Any:
        """The tree on device `to`. Every array that was not there already is counted, at both ends."""
        for leaf in jax.tree.leaves(tree):
            (source,) = leaf.devices()
            if source != to:
                self.add(what, self.devices.index(source), self.devices.index(to), leaf.nbytes)
        return jax.device_put(tree, to)

    def add(self, what: str, source: int, target: int, count: int) -> None:
        for table, device in ((self.sent, source), (self.received, target)):
            table.setdefault(what, [0] * len(self.devices))[device] += count


@dataclasses.dataclass(frozen=True)
class Central:
    """Training with a centre, the first of `devices`.

    apply(params, *args, key=) -> outputs. objective: calls it once (`objectives/objective.py`); no dropout.
    optimizer: an optax GradientTransformation.
    """

    apply: Callable
    objective: Any
    optimizer: Any
    devices: Sequence[Any]

    def step(self, params: Any, opt_state: Any, batch: Any, traffic: Traffic) -> tuple[Any, Any, jax.Array]:
        """(params, opt_state, loss) after one step. All three and the batch are on the centre.

        Raises:
            UserError: the batch does not divide over the devices.
        """
        centre, count = self.devices[0], len(self.devices)
        rows = len(jax.tree.leaves(batch)[0])
        if rows % count:
            raise UserError(
                f"data.batch_size={rows}: does not divide over {count} devices; use {-(-rows // count) * count}"
            )
        cut = lambda tree, i: jax.tree.map(lambda x: x[i * (rows // count) : (i + 1) * (rows // count)], tree)
        outputs, pullbacks = [], []
        for i, device in enumerate(self.devices):
            replica = traffic.move("parameters", params, device)
            out, pullback = self._forward(replica, traffic.move("batch", cut(batch, i), device))
            outputs.append(traffic.move("outputs", out, centre))
            pullbacks.append(pullback)
        loss, cotangents = self._loss(jax.tree.map(lambda *x: jnp.concatenate(x), *outputs), batch)
        grads = []
        for i, (device, pullback) in enumerate(zip(self.devices, pullbacks, strict=True)):
            grad = _pull(pullback, traffic.move("outputs' gradients", cut(cotangents, i), device))
            grads.append(traffic.move("gradients", grad, centre))
        params, opt_state = self._update(params, opt_state, grads)
        return params, opt_state, loss

    @functools.cached_property
    def _forward(self) -> Callable:
        """(params, rows) -> (outputs, their pullback): the objective up to the model's outputs."""

        def outputs(rows, params):
            seen = []

            def watched(*args, **kwargs):
                seen.append(self.apply(*args, **kwargs))
                return seen[-1]

            self.objective.loss(watched, params, rows, None)
            (found,) = seen
            return found

        return jax.jit(lambda params, rows: jax.vjp(functools.partial(outputs, rows), params))

    @functools.cached_property
    def _loss(self) -> Callable:
        """(outputs, batch) -> (mean loss, its derivative by the outputs): the objective from there on."""

        def mean(outputs, batch):
            total, weight, _ = self.objective.loss(lambda *_, **__: outputs, None, batch, None)
            return total / jnp.maximum(weight, 1e-9)

        return jax.jit(jax.value_and_grad(mean))

    @functools.cached_property
    def _update(self) -> Callable:
        def update(params, opt_state, grads):
            total = jax.tree.map(lambda *g: sum(g), *grads)
            updates, opt_state = self.optimizer.update(total, opt_state, params)
            return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates), opt_state

        return jax.jit(update)


@jax.jit
def _pull(pullback, cotangents):
    return pullback(cotangents)[0]


def central_bytes(param_bytes: int, num_devices: int) -> list[int]:
    """Bytes of parameters and gradients that each device sends and receives in a step, by the formula."""
    return [2 * (num_devices - 1) * param_bytes] + [2 * param_bytes] * (num_devices - 1)


def ring_bytes(size: int, num_devices: int) -> int:
    """Bytes that each device sends, and as many that it receives, when `size` bytes are all-reduced in a ring."""
    return 2 * size * (num_devices - 1) // num_devices
