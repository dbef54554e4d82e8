"""GPT's training step with the Pallas kernel compiles for a TPU topology. No TPU is needed."""

import pytest

from tests import tpu

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiled():
    return {kernel: tpu.compiled("tests.models.compile_tpu", kernel) for kernel in ("flash", "einsum")}


def test_flash_attention_is_in_the_program_forward_and_backward(compiled):
    # In the scan over layers: forward, backward for dq, backward for dk and dv; remat="dots" runs the forward again.
    assert compiled["flash"]["kernels"] in (3, 4)
    assert compiled["einsum"]["kernels"] == 0


def test_flash_attention_does_not_keep_the_scores(compiled):
    # A layer's scores on one chip: rows (32 / 2) x heads (12 / 2) x 1024 x 1024 in float32.
    scores = 16 * 6 * 1024 * 1024 * 4
    assert compiled["einsum"]["temporaries"] - compiled["flash"]["temporaries"] > scores


def test_parameters_are_split_over_the_chips(compiled):
    # In float32 with two moments: embeddings over fsdp=2, the layers' matrices also over tensor=2, the rest replicated.
    embeddings, layers = (2048 + 1024) * 768, 2 * 12 * 768**2
    wanted = 3 * 4 * (embeddings / 2 + layers / 4)
    assert compiled["flash"]["arguments"] == pytest.approx(wanted, rel=0.03)
