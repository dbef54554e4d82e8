"""Activation memory under remat, compiled for a TPU; `tests/docs_figures.py` checks the figures in the docs."""

import pytest

from tests import tpu


@pytest.mark.slow
def test_as_compiled_for_a_tpu_none_keeps_more_than_dots_and_dots_more_than_full():
    memory = tpu.compiled("tests.nn.compile_remat_tpu", "none", "dots", "full")
    sizes = [memory[policy]["temporaries"] for policy in ("none", "dots", "full")]
    assert sizes[0] > 1.3 * sizes[1] and sizes[1] > 1.3 * sizes[2], memory
