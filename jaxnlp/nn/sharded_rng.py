"""Random keys that draw on each device the bits that its rows would get in the unsharded batch.

Inside a `shard_map` over the batch axes a model sees only its device's rows, and a plain key would draw the same
dropout mask on every device. A key of `local_key` holds the index i of its share of the rows. For an array of b rows it
draws rows i b to (i + 1) b of what the plain key draws for all rows, bit for bit, so a step is independent of how the
batch is split. This requires Threefry with JAX's default counters (`jax_threefry_partitionable`), where each number
depends only on its index, and arrays whose leading axis is the batch.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend import random as extend

from jaxnlp.errors import UserError


def local_key(key: jax.Array, share: jax.Array | int) -> jax.Array:
    """Key(s) of any shape that draw for share `share` of the rows.

    Raises:
        UserError: `key` is not a Threefry key.
    """
    data = _words(key, 2)
    shares = jnp.broadcast_to(jnp.asarray(share, jnp.uint32), (*data.shape[:-1], 1))
    return jax.random.wrap_key_data(jnp.concatenate([data, shares], axis=-1), impl=LOCAL)


def _words(key: jax.Array, *counts: int) -> jax.Array:
    data = jax.random.key_data(key)
    if data.shape[-1] not in counts or not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            f"jax_default_prng_impl={jax.random.key_impl(key)!s}: rows drawn on several devices need Threefry keys; "
            "set jax_default_prng_impl=threefry2x32 and jax_threefry_partitionable=True, JAX's defaults"
        )
    return data


def words_and_share(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """((2,) words for `bits_at`, index of the share of rows that the key draws for; 0 for a plain key).

    Raises:
        UserError: `key` is not a Threefry key.
    """
    data = _words(key, 2, 3)
    return data[:2], data[2] if data.shape[-1] == 3 else jnp.uint32(0)


def bits_at(words: jax.Array, high: jax.Array, low: jax.Array) -> jax.Array:
    """Threefry's bits at indices of a flat array, uint32. high, low: the two 32-bit words of each index."""
    counts = jnp.concatenate([high.ravel(), low.ravel()])
    word_0, word_1 = jnp.split(extend.threefry_2x32((words[0], words[1]), counts), 2)
    return (word_0 ^ word_1).reshape(low.shape)


def plain_key(key: jax.Array) -> jax.Array:
    """The key(s) without a share: the inverse of `local_key`."""
    data = jax.random.key_data(key)
    return key if data.shape[-1] == 2 else jax.random.wrap_key_data(data[..., :2], impl="threefry2x32")


def _plain(key):
    return jax.random.wrap_key_data(key[:2], impl="threefry2x32")


def _seed(seed):
    return jnp.append(jax.random.key_data(jax.random.key(seed, impl="threefry2x32")), jnp.uint32(0))


def _split(key, shape):
    keys = jax.random.key_data(jax.random.split(_plain(key), shape))
    return jnp.concatenate([keys, jnp.broadcast_to(key[2:], (*shape, 1))], axis=-1)


def _fold_in(key, data):
    return jnp.append(jax.random.key_data(jax.random.fold_in(_plain(key), data)), key[2])


def _random_bits(key, bit_width, shape):
    size = math.prod(shape)
    if size >= 2**32:
        raise UserError(
            f"dropout: {size:,} random numbers in one array on one device, expected fewer than 2^32; "
            "use more microbatches (accum_steps) or devices"
        )
    # The index of this share's first number, share * size, as two 32-bit words.
    low, middle = key[2] * jnp.uint32(size & 0xFFFF), key[2] * jnp.uint32(size >> 16)
    start = low + (middle << 16)
    high = (middle >> 16) + (start < low).astype(jnp.uint32)
    index = jax.lax.iota(jnp.uint32, size) + start
    high = high + (index < start).astype(jnp.uint32)
    word_0, word_1 = jnp.split(extend.threefry_2x32((key[0], key[1]), jnp.concatenate([high, index])), 2)
    if bit_width == 64:
        bits = (word_0.astype(jnp.uint64) << 32) | word_1.astype(jnp.uint64)
    else:
        bits = (word_0 ^ word_1).astype(jnp.dtype(f"uint{bit_width}"))
    return bits.reshape(shape)


LOCAL = extend.define_prng_impl(
    key_shape=(3,), seed=_seed, split=_split, random_bits=_random_bits, fold_in=_fold_in, name="local", tag="local"
)
