"""Token losses.

Shape legend: B batch, T length, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxnlp.nn.partitioning import constrain, num_shards


def token_nll(logits_BTV: jax.Array, targets_BT: jax.Array, axis: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of each target, in nats, and the log-partition function.

    Args:
        logits_BTV: float32.
        targets_BT: integers in [0, V).
        axis: logical axis name of the last dimension, as "vocab"; None: it is not split over devices.

    Returns:
        nll_BT = logsumexp(logits) - logits[target], and log_z_BT = logsumexp(logits).

    If the vocabulary is split over devices, the logits stay split: devices exchange three numbers per token, and no
    logits (Shoeybi et al. 2019, section 3).
    Only the logits and log_z are saved for the backward pass; autodiff would save a second array of the logits' size.
    """
    vocab_split = axis is not None and num_shards(axis) > 1
    if vocab_split:
        logits_BTV = constrain(logits_BTV, *(None,) * (logits_BTV.ndim - 1), axis)
    return _token_nll(logits_BTV, targets_BT, vocab_split)


def weighted_sum(x: jax.Array, weights: jax.Array) -> jax.Array:
    """The sum of x times its weights. Where the weight is 0, as at padding, x may be infinite or NaN."""
    return jnp.sum(jnp.where(weights == 0, 0.0, x * weights))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _token_nll(logits, targets, vocab_split):
    return _token_nll_fwd(logits, targets, vocab_split)[0]


def _token_nll_fwd(logits, targets, vocab_split):
    log_z = jax.nn.logsumexp(logits, axis=-1)
    if vocab_split:  # each device picks among its own columns; a gather would bring all of them together
        vocab = lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
        picked = jnp.where(vocab == targets[..., None], logits, 0.0).sum(-1)
    else:
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return (log_z - picked, log_z), (logits, log_z, targets)


def _token_nll_bwd(vocab_split, residuals, cotangents):
    logits, log_z, targets = residuals
    d_nll, d_log_z = cotangents
    vocab = lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    probability = jnp.exp(logits - log_z[..., None])
    hit = jnp.where(vocab == targets[..., None], d_nll[..., None], 0.0)
    return probability * (d_nll + d_log_z)[..., None] - hit, None


_token_nll.defvjp(_token_nll_fwd, _token_nll_bwd)
