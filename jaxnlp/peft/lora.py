"""LoRA: low-rank updates of frozen kernels and embedding tables (Hu et al. 2021, arXiv:2106.09685), and its variants.

    y = x W + b + s (x A) B,   s = alpha / rank

A is initialised randomly and B with zeros, so that the model initially equals the base. For an embedding table A is
zero instead, since it is read by row. The product x W is the module's own call: the kernel is not modified, so neither
a full-size gradient nor a merged copy is materialised. DoRA is the exception: it needs the norms of W + s A B.

Shape legend: R rank, E adapters in memory at once, B batch.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnlp.config import did_you_mean
from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn import trace_context
from jaxnlp.nn.interceptors import ModuleCall
from jaxnlp.nn.linear import matmul
from jaxnlp.nn.policy import Policy
from jaxnlp.peft.method import AdapterParam, PEFTMethod, own_parameters
from jaxnlp.peft.targets import KERNEL, TABLE, Target, choose

A, B, MAGNITUDE = "lora_a", "lora_b", "lora_magnitude"
INITS = ("kaiming", "gaussian")


@dataclasses.dataclass(kw_only=True)
class LoRA(PEFTMethod):
    """Low-rank updates of linear layers and embedding tables.

    targets: module patterns, e.g. ("query", "value") or ("blocks/mlp/*",). A target is a linear layer that contracts
        the last axes of its input, or an embedding table.
    rank, alpha: the update is scaled by alpha / rank, or with `use_rslora` by alpha / sqrt(rank)
        (Kalajdzievski 2023, arXiv:2312.03732).
    dropout_rate: dropout on the input of the update.
    init: of A, "kaiming" (uniform, as in PEFT and the paper's code) or "gaussian" (standard deviation 1 / rank).
    use_dora: also learns the norm of each column of W + s A B (Liu et al. 2024, arXiv:2402.09353); kernels only.
    tied: for an embedding table that is also the output projection, update both uses; False: only the lookup.
    lora_plus_ratio: learning rate of B over that of A (LoRA+: Hayou et al. 2024, arXiv:2402.12354, who use 16).
    """

    targets: tuple[str, ...] = ("query", "value")
    rank: int = 8
    alpha: float = 16.0
    dropout_rate: float = 0.0
    use_rslora: bool = False
    init: str = "kaiming"
    use_dora: bool = False
    tied: bool = True
    lora_plus_ratio: float = 1.0

    intercepted_methods = ("__call__", "logits", "attend")
    computation_fields = ("scale", "tied")

    def check(self) -> None:
        super().check()
        if not self.targets:
            raise FieldError("targets", self.targets, "expected patterns of modules, as ('query', 'value')")
        if self.rank < 1:
            raise FieldError("rank", self.rank, "expected a positive number")
        if not self.alpha > 0:
            raise FieldError("alpha", self.alpha, "expected a positive number")
        if not 0 <= self.dropout_rate < 1:
            raise FieldError("dropout_rate", self.dropout_rate, "expected a probability in [0, 1)")
        if self.init not in INITS:
            near = did_you_mean(self.init, list(INITS))
            raise FieldError("init", self.init, f"expected one of {', '.join(INITS)}{near}")
        if not self.lora_plus_ratio > 0:
            raise FieldError("lora_plus_ratio", self.lora_plus_ratio, "expected a positive number, as 16.0")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def choose(self, targets: list[Target]) -> list[Target]:
        if self.use_dora:
            return choose(targets, self.targets, lambda t: t.num_in is not None, "a linear map", "peft.targets")
        serves = lambda t: t.num_in is not None or t.is_table
        return choose(targets, self.targets, serves, "a linear map or a table of embeddings", "peft.targets")

    def leaves(self, target: Target) -> dict[str, AdapterParam]:
        n, at = target.num_in, target.layers
        kernel = target.parameters[TABLE if n is None else KERNEL]
        shape, axes, n = kernel.shape[at:], kernel.axes[at:], n or 1
        if self.rank > min(math.prod(shape[:n]), math.prod(shape[n:])):
            wide = f"{math.prod(shape[:n])} x {math.prod(shape[n:])}"
            raise FieldError("peft.rank", self.rank, f"{target.name} is {wide}; expected no more than its shorter side")
        a, b = (*shape[:n], self.rank), (self.rank, *shape[n:])
        zeros = lambda shape: lambda key, weights: jnp.zeros(shape)
        table = target.num_in is None
        params = {
            A: AdapterParam(a, (*axes[:n], "rank"), zeros(a) if table else self._random(a, math.prod(shape[:n]))),
            B: AdapterParam(b, ("rank", *axes[n:]), self._normal(b) if table else zeros(b)),
        }
        if self.use_dora:
            length = lambda key, weights: norms(weights[KERNEL].astype(jnp.float32), n)
            params[MAGNITUDE] = AdapterParam(shape[n:], axes[n:], length)
        return params

    def _random(self, shape: tuple[int, ...], fan_in: int) -> Callable:
        bound = 1 / math.sqrt(fan_in)
        if self.init == "kaiming":
            return lambda key, weights: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        return lambda key, weights: jax.random.normal(key, shape) / self.rank

    def _normal(self, shape: tuple[int, ...]) -> Callable:
        return lambda key, weights: jax.random.normal(key, shape)

    def call(self, leaves, target, call: ModuleCall, fn, args, kwargs):
        y, x = fn(*args, **kwargs), args[0]
        if call.method != "__call__" and not self.tied:
            return y
        policy = call.policy(y.dtype)
        if target.num_in is None:
            is_output_map = call.method != "__call__"
            return y + self.scale * (_scores if is_output_map else _rows)(leaves, x, policy).astype(y.dtype)
        dropped = self.dropout_rate > 0 and call.module.has_rng("dropout")
        if dropped:
            keep_mask = jax.random.bernoulli(call.module.make_rng("dropout"), 1 - self.dropout_rate, x.shape)
            x = jnp.where(keep_mask, x / (1 - self.dropout_rate), 0)
        update = self.scale * _product(leaves, x, target.num_in, policy)
        if not self.use_dora:
            return y + update.astype(y.dtype)
        weights = own_parameters(call.module, target)
        kernel = _as_planned(weights[KERNEL], leaves)
        plain = y - weights["bias"].astype(y.dtype) if "bias" in weights else y
        if dropped:  # as in the paper's code, the base's product is of the input after dropout
            plain = _flat(x, kernel, target.num_in, policy).astype(y.dtype)
        length = leaves[MAGNITUDE] / jax.lax.stop_gradient(norms(self._sum(kernel, leaves), target.num_in))
        return y + ((length - 1) * plain + length * update).astype(y.dtype)

    def _sum(self, kernel, leaves) -> jax.Array:
        """W + s A B, float32."""
        return kernel.astype(jnp.float32) + self.scale * jnp.tensordot(leaves[A], leaves[B], axes=1)

    def merged(self, target, weights, leaves):
        return self._with(target, weights, leaves, 1)

    def unmerged(self, target, weights, leaves):
        return self._with(target, weights, leaves, -1)

    def _with(self, target: Target, weights, leaves, sign: int):
        if not self.tied and set(self.intercepted_methods) & set(target.others):
            raise UserError(f"LoRA(tied=False): {target.name} cannot be merged, since it is also the output map")
        name = TABLE if target.num_in is None else KERNEL
        kernel, update = weights[name].astype(jnp.float32), self.scale * jnp.tensordot(leaves[A], leaves[B], axes=1)
        if not self.use_dora:
            return {name: kernel + sign * update}
        assert target.num_in is not None
        if sign > 0:
            return {name: leaves[MAGNITUDE] / norms(kernel + update, target.num_in) * (kernel + update)}
        raise UserError("LoRA(use_dora=True): cannot be unmerged, since the base cannot be recovered; keep the base")

    def rate(self, name: str) -> float:
        return self.lora_plus_ratio if name == B else 1.0


def norms(kernel: jax.Array, num_in: int) -> jax.Array:
    """L2 norm of each output's column of a kernel, over its input axes."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=tuple(range(num_in))))


def _as_planned(kernel: jax.Array, leaves) -> jax.Array:
    """The kernel with its input axes first. Weights laid out for generation are matrices with outputs first."""
    shape = (*leaves[A].shape[:-1], *leaves[B].shape[1:])
    return kernel if kernel.shape == shape else kernel.T.reshape(shape)


def _flat(x: jax.Array, kernel: jax.Array, num_in: int, policy: Policy) -> jax.Array:
    """Product of x and a kernel over the kernel's input axes, float32."""
    lead, out = x.shape[: x.ndim - num_in], kernel.shape[num_in:]
    matrix = kernel.reshape(math.prod(kernel.shape[:num_in]), math.prod(out))
    return matmul(x.reshape(*lead, -1), matrix, policy).reshape(*lead, *out)


def _product(leaves, x: jax.Array, num_in: int, policy: Policy) -> jax.Array:
    """(x A) B, float32. With E adapters, each row of the batch uses its own."""
    a, b = leaves[A], leaves[B]
    if a.ndim == num_in + 1:
        return _flat(_flat(x, a, num_in, policy).astype(x.dtype), b, 1, policy)
    ids_B, here_B = _ids(x.shape[0], a.shape[0])
    lead, out = x.shape[: x.ndim - num_in], b.shape[2:]
    x_BTI, a_BIR = x.reshape(x.shape[0], -1, math.prod(x.shape[x.ndim - num_in :])), _matrices(a[ids_B], num_in)
    z_BTR = policy.dot(x_BTI, a_BIR, (((2,), (1,)), ((0,), (0,))))
    y_BTO = policy.dot(z_BTR.astype(x.dtype), _matrices(b[ids_B], 1), (((2,), (1,)), ((0,), (0,))))
    return (y_BTO * here_B[:, None, None]).reshape(*lead, *out)


def _matrices(kernels: jax.Array, num_in: int) -> jax.Array:
    inputs = math.prod(kernels.shape[1 : 1 + num_in])
    return kernels.reshape(kernels.shape[0], inputs, -1)


def _rows(leaves, ids: jax.Array, policy: Policy) -> jax.Array:
    """A[ids] B, the update of a lookup. An out-of-range id adds zero, since the base's row is already NaN."""
    a, b = leaves[A], leaves[B]
    if a.ndim == 2:
        return matmul(a.at[ids].get(mode="fill", fill_value=0).astype(policy.dtype), b, policy)
    ids_B, here_B = _ids(ids.shape[0], a.shape[0])
    rows = jax.vmap(lambda a, ids: a.at[ids].get(mode="fill", fill_value=0))(a[ids_B], ids)
    return jnp.einsum("b...r,brd->b...d", rows, b[ids_B]) * here_B.reshape(-1, *[1] * ids.ndim)


def _scores(leaves, x: jax.Array, policy: Policy) -> jax.Array:
    """x (A B)^T, the update of the logits if the embedding table is also the output projection."""
    a, b = leaves[A], leaves[B]
    if a.ndim == 2:
        return matmul(matmul(x, b, policy, True).astype(x.dtype), a, policy, True)
    ids_B, here_B = _ids(x.shape[0], a.shape[0])
    scores = jnp.einsum("b...d,brd,bvr->b...v", x.astype(jnp.float32), b[ids_B], a[ids_B])
    return scores * here_B.reshape(-1, *[1] * (x.ndim - 1))


def _ids(rows: int, count: int) -> tuple[jax.Array, jax.Array]:
    """(B,) adapter of each row, clipped to the valid range, and (B,) float32 mask of the rows that have an adapter.

    Raises:
        UserError: no ids, or not one for each row.
    """
    ids_B = trace_context.current().adapter_ids
    if ids_B is None:
        raise UserError(f"adapter_ids: missing, and this model has {count} adapters; expected one id for each row")
    if ids_B.shape != (rows,):
        raise UserError(f"adapter_ids: {ids_B.shape[0]} ids for a batch of {rows} rows; expected one id for each row")
    return jnp.clip(ids_B, 0, count - 1), ((ids_B >= 0) & (ids_B < count)).astype(jnp.float32)
