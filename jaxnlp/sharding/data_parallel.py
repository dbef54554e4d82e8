"""Naive data parallelism with one central device, for comparison, and its communication volume.

This is the algorithm of torch.nn.DataParallel. In every step the central device scatters the batch, copies the
parameters to the other devices, gathers their outputs, computes the loss, scatters its gradient, gathers the parameter
gradients and updates. With N devices and parameters of Psi bytes, the central device transfers 2 (N - 1) Psi bytes of
parameters and gradients, and each other device 2 Psi.

All-reduce of gradients (Li et al. 2020, arXiv:2006.15704) needs no central device. In a ring each device sends, and
receives, 2 Psi (N - 1) / N bytes (Patarasuk and Yuan 2009), which stays below 2 Psi for any N.

Every array here is on one device. Training in this project uses `training/step/program.py` instead.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from jaxnlp.errors import UserError

if TYPE_CHECKING:
    from jaxnlp.objectives.objective import Objective


@dataclasses.dataclass
class Traffic:
    """Bytes sent and received, by kind of data: kind -> bytes of each device, in the order of `devices`."""

    devices: Sequence[Any]
    sent: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    received: dict[str, list[int]] = dataclasses.field(default_factory=dict)

    def move(self, kind: str, tree: Any, to: Any) -> Any:
        """The tree on device `to`. Each array that is copied is counted for both devices."""
        for leaf in jax.tree.leaves(tree):
            (source,) = leaf.devices()
            if source != to:
                self.add(kind, self.devices.index(source), self.devices.index(to), leaf.nbytes)
        return jax.device_put(tree, to)

    def add(self, kind: str, source: int, target: int, count: int) -> None:
        for table, device in ((self.sent, source), (self.received, target)):
            table.setdefault(kind, [0] * len(self.devices))[device] += count


@dataclasses.dataclass(frozen=True)
class Central:
    """Training with a central device, the first of `devices`.

    apply: (params, *args, key=) -> outputs.
    objective: an `objectives/objective.py` Objective that calls `apply` once; dropout is off.
    optimizer: an optax GradientTransformation.
    """

    apply: Callable
    objective: "Objective"
    optimizer: optax.GradientTransformation
    devices: Sequence[Any]

    def step(self, params: Any, opt_state: Any, batch: Any, traffic: Traffic) -> tuple[Any, Any, jax.Array]:
        """(params, opt_state, loss) after one step. All three and the batch are on the central device.

        Raises:
            UserError: the batch does not divide over the devices.
        """
        centre, count = self.devices[0], len(self.devices)
        rows = len(jax.tree.leaves(batch)[0])
        if rows % count:
            raise UserError(
                f"data.batch_size={rows}: does not divide over {count} devices; use {-(-rows // count) * count}"
            )
        shard = lambda tree, i: jax.tree.map(lambda x: x[i * (rows // count) : (i + 1) * (rows // count)], tree)
        outputs, pullbacks = [], []
        for i, device in enumerate(self.devices):
            replica = traffic.move("parameters", params, device)
            out, pullback = self._forward(replica, traffic.move("batch", shard(batch, i), device))
            outputs.append(traffic.move("outputs", out, centre))
            pullbacks.append(pullback)
        loss, cotangents = self._loss(jax.tree.map(lambda *x: jnp.concatenate(x), *outputs), batch)
        grads = []
        for i, (device, pullback) in enumerate(zip(self.devices, pullbacks, strict=True)):
            grad = _pull(pullback, traffic.move("outputs' gradients", shard(cotangents, i), device))
            grads.append(traffic.move("gradients", grad, centre))
        params, opt_state = self._update(params, opt_state, grads)
        return params, opt_state, loss

    @functools.cached_property
    def _forward(self) -> Callable:
        """(params, rows) -> (model outputs, their pullback (VJP)): the objective up to the model's outputs."""

        def outputs(rows, params):
            calls = []

            def recorded(*args, **kwargs):
                calls.append(self.apply(*args, **kwargs))
                return calls[-1]

            self.objective.loss(recorded, params, rows, None)
            (output,) = calls
            return output

        return jax.jit(lambda params, rows: jax.vjp(functools.partial(outputs, rows), params))

    @functools.cached_property
    def _loss(self) -> Callable:
        """(outputs, batch) -> (mean loss, its gradient w.r.t. the outputs): the rest of the objective."""

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
    """Bytes of parameters and gradients that each device transfers in a step (sent plus received), by the formula."""
    return [2 * (num_devices - 1) * param_bytes] + [2 * param_bytes] * (num_devices - 1)


def ring_bytes(size: int, num_devices: int) -> int:
    """Bytes that each device sends, equal to the bytes it receives, in a ring all-reduce of `size` bytes."""
    return 2 * size * (num_devices - 1) // num_devices
