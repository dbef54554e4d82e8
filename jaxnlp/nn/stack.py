"""A stack of blocks, unrolled or scanned, with what the backward pass computes again."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import LazyRng
from jax.ad_checkpoint import checkpoint_name

from jaxnlp.nn import remat
from jaxnlp.nn.interceptors import Change, calls_changed_at, changes
from jaxnlp.nn.partitioning import gathers_parameters
from jaxnlp.nn.policy import Policy

_replaced: contextvars.ContextVar[Callable | None] = contextvars.ContextVar("replaced", default=None)


@dataclasses.dataclass(frozen=True)
class Layers:
    """A stack's layers as code that others run, as a pipeline does, a few of them here and a few there.

    path: where their parameters are in the model's, as ("blocks",). shared: what each gets beside x, the last one
    static. keys: of dropout, one for each layer (L,), or None where dropout is off; Flax folds `names` into them.
    changes: of calls, in force where the stack was found (`nn/interceptors.py`).
    """

    block: Any
    config: Any
    path: tuple[str, ...]
    shared: tuple[Any, ...]
    keys: jax.Array | None
    names: tuple[Any, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def kept(self) -> Callable:
        """The policy of a `jax.checkpoint` around `run` that keeps what the layers' own would, and what enters each.

        There must be one: JAX asks the outermost alone.
        """
        name = self.config.remat
        return remat.all_but_gathered if name == "none" else remat.policy(name, remat.INPUT)

    def run(self, params: Any, x: jax.Array, shared: tuple[Any, ...], keys: jax.Array | None) -> jax.Array:
        """x through layers in a row, those of `params` (leading axis n) and `keys` (n,), as `stack` runs them."""
        block = _with_remat(self.block, self.config, len(shared))
        counters: dict[Any, Any] = {"dropout": 0}  # of the draws so far, which Flax folds into each draw's key

        def layer(x, w, key, counters):
            def call(module, x):
                module.scope.rng_counters = counters
                return module(x, None, *shared)[0]

            rngs: Any = None if key is None else {"dropout": LazyRng(key, self.names)}
            with calls_changed_at(self.path, self.changes):
                return nn.apply(call, block(self.config))({"params": w}, x, rngs=rngs)

        first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
        # `nn.scan` traces its body twice, and the draws of the first time count.
        jax.eval_shape(lambda: layer(x, first(params), first(keys), counters))
        one = lambda x, pair: (layer(checkpoint_name(x, remat.INPUT), pair[0], pair[1], _copied(counters)), None)
        return jax.lax.scan(one, x, (params, keys))[0]


def _copied(counters: dict[Any, Any]) -> dict[Any, Any]:
    return {name: _copied(count) if isinstance(count, dict) else count for name, count in counters.items()}


@contextlib.contextmanager
def stack_replaced(fn: Callable[[jax.Array, Layers], jax.Array]) -> Iterator[None]:
    """Within the block each scanned stack without caches returns fn(x, its layers), and runs none of them itself."""
    token = _replaced.set(fn)
    try:
        yield
    finally:
        _replaced.reset(token)


class _Keys(nn.Module):
    """The keys that `nn.scan` gives each layer of a submodule of this name, and the names yet to be folded into them.

    No parameters.
    """

    length: int

    @nn.compact
    def __call__(self):
        if not self.has_rng("dropout"):
            return None, ()
        assert self.scope is not None
        rng: Any = self.scope.rngs["dropout"]
        return jax.random.split(rng.rng, self.length), rng.suffix


def _with_remat(block: Any, config: Any, num_shared: int) -> Any:
    if config.remat == "none" and not gathers_parameters():
        return block
    kept = remat.all_but_gathered if config.remat == "none" else remat.policy(config.remat)
    static = (num_shared + 2,)  # self, x and the cache come first
    return nn.remat(block, policy=kept, prevent_cse=not config.scan_layers, static_argnums=static)


def stack(block: Any, config: Any, x: jax.Array, caches: Any, *shared: Any) -> tuple[jax.Array, Any]:
    """x through `config.num_layers` blocks, as submodules `block_i` of the module that calls this.

    Under `config.scan_layers` they are one submodule, `blocks`, whose parameters (and caches) have a leading
    axis of layers. `config.remat`: "none"; "full" keeps nothing within a block and computes it again; "dots" keeps
    what linear maps return; "names" what the attention kernel reads and returns; "offload" keeps the query, key,
    value, attention's result and feed-forward hidden layer in the host's memory; or a `remat.Remat` of places.

    Args:
        block: a Linen module class, called as `block(config)(x, cache, *shared) -> (x, cache)`.
        caches: one for each layer, or None. shared: the same for every layer, the last one static.

    Returns:
        x, and the new caches.
    """
    replaced = _replaced.get()
    if replaced is not None and caches is None and config.scan_layers:
        module = _Keys(config.num_layers, name="blocks")
        return replaced(x, Layers(block, config, module.path, shared, *module(), changes())), None
    block = _with_remat(block, config, len(shared))
    if not config.scan_layers:
        out = []
        for i in range(config.num_layers):
            x, cache = block(config, name=f"block_{i}")(x, None if caches is None else caches[i], *shared)
            out.append(cache)
        return x, out
    inputs: Any = (0, *[nn.broadcast] * len(shared))
    scanned = nn.scan(
        block,
        length=config.num_layers,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=inputs,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(config, name="blocks")(x, caches, *shared)


def empty_cache(config: Any, heads: int, dim: int, policy: Policy, batch: int, length: int) -> dict[str, Any]:
    """A key-value cache for `length` positions of a decoder-only model, in the compute dtype.

    `layers`: a (k, v) pair a layer, each (B, N, S, K), stacked on a leading axis under
    `scan_layers`; `segments`: (B, S), 0 where nothing is cached yet; `offset`: positions filled.
    """
    zeros = lambda *lead: jnp.zeros((*lead, batch, heads, length, dim), policy.dtype)
    if config.scan_layers:
        layers: Any = (zeros(config.num_layers), zeros(config.num_layers))
    else:
        layers = [(zeros(), zeros()) for _ in range(config.num_layers)]
    return {"layers": layers, "segments": jnp.zeros((batch, length), jnp.int32), "offset": jnp.int32(0)}


def with_cross(layers: Any, cross: Any, config: Any) -> Any:
    """Caches of a decoder's layers, each (own keys and values, the encoder's); cross: the latter, None if not there."""
    if config.scan_layers:
        return layers, cross
    return [(own, None if cross is None else cross[i]) for i, own in enumerate(layers)]


def without_cross(caches: Any, config: Any) -> tuple[Any, Any]:
    """(layers, cross): the way back."""
    if config.scan_layers:
        return caches
    return [own for own, _ in caches], [cross for _, cross in caches]
