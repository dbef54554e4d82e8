"""One vector for a sequence: the mean over its real tokens."""

import numpy as np

from jaxnlp.nn.pooling import mean_pool, unit


def test_the_mean_is_over_real_tokens_whatever_padding_holds(rng):
    x = rng.standard_normal((3, 4, 5)).astype(np.float32)
    real = np.asarray([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    wanted = np.stack([x[0].mean(0), x[1, 1:3].mean(0), np.zeros(5)])
    x[real == 0] = np.nan
    np.testing.assert_allclose(mean_pool(x, real), wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(unit(wanted[:2]), axis=-1), 1.0, rtol=1e-6)
