"""Communication of each preset in a training step, from programs compiled for TPUs by libtpu, without a TPU.

Psi is the bytes of the parameters, bfloat16; a payload is one (B, T, D) activation. Each program is compiled once.
"""

import functools

import pytest

from tests import tpu
from tests.sharding.compile_collectives import BATCH, LAYERS, LENGTH, VOCAB, WIDTH

pytestmark = pytest.mark.slow

PAYLOAD = 2 * BATCH * LENGTH * WIDTH
TABLE, PLACES = 2 * VOCAB * WIDTH, 2 * LENGTH * WIDTH


@functools.cache
def step(name: str) -> dict:
    return tpu.compiled("tests.sharding.compile_collectives", name)[name]


def psi(name: str) -> int:
    return 2 * step(name)["parameters"]


def moved(name: str, *kinds: str) -> int:
    return sum(c["bytes"] * c["count"] for c in step(name)["collectives"] if c["kind"] in kinds)


def on_the_ring(name: str) -> int:
    """Bytes that each of many devices sends; an all-reduce is a reduce-scatter and an all-gather."""
    return sum(c["bytes"] * c["count"] * (1 + (c["kind"] == "all-reduce")) for c in step(name)["collectives"])


def payloads(name: str, kind: str, inside: str = "") -> int:
    """The number of activations sent by this kind of collective, from the bytes, since XLA may combine several."""
    rows = [c for c in step(name)["collectives"] if c["kind"] == kind and inside in c["source"]]
    return round(sum(c["bytes"] * c["count"] for c in rows if c["bytes"] >= PAYLOAD) / PAYLOAD)


def test_data_parallel_all_reduces_gradients_and_no_more():
    """The control. A tied table has two gradients, and XLA reduces each before adding them."""
    assert {c["kind"] for c in step("DDP")["collectives"]} == {"all-reduce"}
    assert moved("DDP", "all-reduce") == pytest.approx(psi("DDP") + TABLE, rel=0.01)


def test_stage_1_all_reduces_gradients_and_gathers_parameters():
    assert moved("ZERO1", "all-gather") == pytest.approx(psi("ZERO1"), rel=0.01)
    # Outside the loop XLA makes an all-reduce with a sliced result, that of the lookup, a reduce-scatter.
    assert moved("ZERO1", "reduce-scatter") <= 1.01 * (TABLE + PLACES)
    assert moved("ZERO1", "all-reduce") == pytest.approx(psi("ZERO1"), rel=0.02)


def test_stage_2_reduce_scatters_gradients_at_the_bytes_of_data_parallel():
    whole = psi("ZERO2")
    assert moved("ZERO2", "reduce-scatter") == pytest.approx(whole, rel=0.05)
    assert moved("ZERO2", "reduce-scatter", "all-gather") == pytest.approx(2 * whole, rel=0.05)
    assert on_the_ring("ZERO2") <= 1.05 * 2 * whole
    assert moved("ZERO2", "all-reduce") < 0.01 * whole  # norms, biases, the loss


def test_stage_3_gathers_parameters_twice_within_three_halves_of_data_parallel():
    """Twice, since gathered parameters are freed after use; the table only once."""
    whole = psi("ZERO3")
    assert moved("ZERO3", "all-gather") == pytest.approx(2 * whole - TABLE - PLACES, rel=0.05)
    assert moved("ZERO3", "reduce-scatter") == pytest.approx(whole, rel=0.05)
    assert moved("ZERO3", "all-reduce") < 0.01 * whole
    assert on_the_ring("ZERO3") <= 1.5 * 2 * whole


def test_tensor_parallel_all_reduces_twice_forward_and_twice_backward_a_layer():
    """Also once each for the embedding and the output map; for the loss, three numbers per token."""
    assert payloads("TP", "all-reduce", "/jvp(GPT)/while/") == 2 * LAYERS
    assert payloads("TP", "all-reduce", "/transpose(jvp(GPT))/while/") == 2 * LAYERS
    assert payloads("TP", "all-reduce") == 4 * LAYERS + 2
    assert moved("TP", "all-reduce") == pytest.approx((4 * LAYERS + 2) * PAYLOAD, rel=0.01)
    assert {c["kind"] for c in step("TP")["collectives"]} == {"all-reduce"}


def test_loops_are_counted_as_often_as_they_turn():
    rows = [c for c in step("TP")["collectives"] if "/while/" in c["source"] and c["bytes"] >= PAYLOAD]
    assert [c["count"] for c in rows] == 4 * [LAYERS]


@pytest.mark.parametrize("name", ["TP", "TP_SP"])
def test_no_logits_are_sent(name):
    sizes = {size for shape in step(name)["arrays"] for size in shape}
    assert WIDTH in sizes and not sizes & {VOCAB, VOCAB // 4}


def test_sequence_parallel_sends_the_same_bytes_as_reduce_scatters_and_all_gathers():
    for kind in ("reduce-scatter", "all-gather"):
        assert payloads("TP_SP", kind) == 4 * LAYERS + 2
        assert moved("TP_SP", kind) == pytest.approx(moved("TP", "all-reduce"), rel=0.01)
    assert {c["kind"] for c in step("TP_SP")["collectives"]} == {"reduce-scatter", "all-gather", "all-reduce"}
    assert payloads("TP_SP", "all-reduce") == 0
