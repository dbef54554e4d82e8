"""A stack of blocks, unrolled or scanned, with what the backward pass computes again."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnlp.nn import remat
from jaxnlp.nn.policy import Policy


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
    if config.remat != "none":
        static = (len(shared) + 2,)  # self, x and the cache come first
        block = nn.remat(
            block, policy=remat.policy(config.remat), prevent_cse=not config.scan_layers, static_argnums=static
        )
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
