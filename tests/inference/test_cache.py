"""The cache of beam search: a beam inherits its parent's keys and values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.inference.cache import reorder, repeat


@pytest.mark.parametrize("layers", [None, 3])
def test_beams_take_their_parents_keys_and_values(layers):
    """Each within its own row of the batch, with and without a leading axis of layers."""
    B, N, S = 2, 3, 7
    lead = () if layers is None else (layers,)
    cache = repeat({"layers": [(jnp.zeros((*lead, B, 5, S, 2)),) * 2], "segments": jnp.ones((B, S))}, N)
    keys = jax.random.normal(jax.random.key(1), cache["layers"][0][0].shape)
    cache["layers"] = [(keys, 2 * keys)]
    parents_BN = jnp.array([[2, 0, 0], [1, 1, 2]])
    expected = np.take(np.asarray(keys), [2, 0, 0, 4, 4, 5], axis=keys.ndim - 4)
    (reordered, doubled), *_ = reorder(cache, parents_BN)["layers"]
    np.testing.assert_array_equal(reordered, expected)
    np.testing.assert_array_equal(doubled, 2 * expected)
