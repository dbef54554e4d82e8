"""A stack of blocks, unrolled or scanned, with rematerialisation."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.scope import LazyRng
from jax.ad_checkpoint import checkpoint_name

from jaxnlp.nn import remat, trace_context
from jaxnlp.nn.interceptors import Interceptor, intercept_calls_at
from jaxnlp.nn.model_config import ModelConfig
from jaxnlp.nn.partitioning import gathers_parameters
from jaxnlp.nn.policy import Policy
from jaxnlp.trees import PyTree


@dataclasses.dataclass(frozen=True)
class ScannedLayers:
    """The scanned layers of a stack as a callable, so that a pipeline can run a subset of them on each stage.

    path: path of the layers' parameters in the model, as ("blocks",).
    shared: arguments of each layer besides x; the last one is static.
    keys: dropout keys, one for each layer (L,), or None without dropout. Flax folds `names` into them.
    interceptors: those active where the stack was called (`nn/interceptors.py`).
    """

    block: type[nn.Module]
    config: ModelConfig
    path: tuple[str, ...]
    shared: tuple[PyTree, ...]
    keys: jax.Array | None
    names: tuple[str | int, ...] = ()
    interceptors: tuple[Interceptor, ...] = ()

    @property
    def remat_policy(self) -> Callable:
        """The policy for a `jax.checkpoint` around `run`: saves what the layers' own policies save, and their inputs.

        It is needed because JAX applies only the outermost policy.
        """
        name: Any = self.config.remat
        return remat.all_but_gathered if name == "none" else remat.policy(name, remat.INPUT)

    def run(self, params: Any, x: jax.Array, shared: tuple[Any, ...], keys: jax.Array | None) -> jax.Array:
        """Runs x through n consecutive layers, as `stack` does. params: leading axis n. keys: (n,)."""
        block = _with_remat(self.block, self.config, len(shared))
        counters: dict[Any, Any] = {"dropout": 0}  # number of draws so far, which Flax folds into each draw's key

        def layer(x, w, key, counters):
            def call(module, x):
                module.scope.rng_counters = counters
                return module(x, None, *shared)[0]

            rngs: Any = None if key is None else {"dropout": LazyRng(key, self.names)}
            with intercept_calls_at(self.path, self.interceptors):
                return nn.apply(call, block(self.config))({"params": w}, x, rngs=rngs)

        first_layer = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
        # `nn.scan` traces its body twice, and the draws of the first trace advance the counters.
        jax.eval_shape(lambda: layer(x, first_layer(params), first_layer(keys), counters))
        body = lambda x, pair: (layer(checkpoint_name(x, remat.INPUT), pair[0], pair[1], _copied(counters)), None)
        return jax.lax.scan(body, x, (params, keys))[0]


def _copied(counters: dict[Any, Any]) -> dict[Any, Any]:
    return {name: _copied(count) if isinstance(count, dict) else count for name, count in counters.items()}


@contextlib.contextmanager
def override_stack(fn: Callable[[jax.Array, ScannedLayers], jax.Array]) -> Iterator[None]:
    """Within the block each scanned stack without caches returns fn(x, layers) and does not run its layers."""
    with trace_context.replaced(stack_override=fn):
        yield


class _Keys(nn.Module):
    """The dropout keys that `nn.scan` would give each layer of a submodule of this name, and the names that Flax has
    yet to fold into them. Has no parameters."""

    length: int

    @nn.compact
    def __call__(self):
        if not self.has_rng("dropout"):
            return None, ()
        assert self.scope is not None
        rng: Any = self.scope.rngs["dropout"]
        return jax.random.split(rng.rng, self.length), rng.suffix


def _with_remat(block: type[nn.Module], config: Any, num_shared: int) -> Any:
    if config.remat == "none" and not gathers_parameters():
        return block
    policy = remat.all_but_gathered if config.remat == "none" else remat.policy(config.remat)
    static = (num_shared + 2,)  # self, x and the cache come first
    return nn.remat(block, policy=policy, prevent_cse=not config.scan_layers, static_argnums=static)


def stack(block: Any, config: Any, x: jax.Array, caches: Any, *shared: Any) -> tuple[jax.Array, Any]:
    """Runs x through `config.num_layers` blocks, submodules `block_i` of the calling module.

    With `config.scan_layers` they are one submodule, `blocks`, whose parameters (and caches) have a leading axis of
    layers. `config.remat` selects the activations of a block that are saved; the rest are recomputed: "none" saves all;
    "full" recomputes all; "dots" saves the outputs of linear maps; "names" saves the inputs and output of the attention
    kernel; "offload" saves the query, key, value, attention output and feed-forward hidden layer in host memory; or a
    `remat.Remat` that names them.

    Args:
        block: a Linen module class, used as `block(config)(x, cache, *shared) -> (x, cache)`.
        caches: one for each layer, or None. shared: passed to every layer, the last one static.

    Returns:
        x, and the new caches.
    """
    context = trace_context.current()
    if context.stack_override is not None and caches is None and config.scan_layers:
        module = _Keys(config.num_layers, name="blocks")
        layers = ScannedLayers(block, config, module.path, shared, *module(), context.interceptors)
        return context.stack_override(x, layers), None
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

    `layers`: a (k, v) pair for each layer, each (B, N, S, K), stacked on a leading axis with
    `scan_layers`; `segments`: (B, S), 0 where nothing is cached yet; `offset`: number of positions filled.
    """
    zeros = lambda *lead: jnp.zeros((*lead, batch, heads, length, dim), policy.dtype)
    if config.scan_layers:
        layers: Any = (zeros(config.num_layers), zeros(config.num_layers))
    else:
        layers = [(zeros(), zeros()) for _ in range(config.num_layers)]
    return {"layers": layers, "segments": jnp.zeros((batch, length), jnp.int32), "offset": jnp.int32(0)}


def attach_cross_cache(layers: Any, cross: Any, config: Any) -> Any:
    """Caches of a decoder's layers: (self-attention cache, cross-attention cache) for each; cross may be None."""
    if config.scan_layers:
        return layers, cross
    return [(self_cache, None if cross is None else cross[i]) for i, self_cache in enumerate(layers)]


def detach_cross_cache(caches: Any, config: Any) -> tuple[Any, Any]:
    """(layers, cross): the inverse of `attach_cross_cache`."""
    if config.scan_layers:
        return caches
    return [self_cache for self_cache, _ in caches], [cross for _, cross in caches]
