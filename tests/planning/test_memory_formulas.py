"""The memory formulas give the numbers in the papers."""

import pytest

from jaxnlp.errors import UserError
from jaxnlp.planning.memory_formulas import (
    activation_bytes,
    layer_activation_bytes,
    rule_of_thumb_bytes,
    zero_state_bytes,
)

GPT2 = (48, 1024, 32, 1600)  # layers, length, batch, size of the model of 1.5B parameters


@pytest.mark.parametrize(("stage", "printed"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_of_7_5_billion_parameters_over_64_devices(stage, printed):
    """ZeRO, figure 1."""
    assert round(zero_state_bytes(7.5e9, 64, stage) / 1e9, 1) == printed


@pytest.mark.parametrize(
    ("devices", "printed"),
    [(1, (120, 120, 120)), (4, (52.5, 41.3, 30)), (16, (35.6, 21.6, 7.5)), (256, (30.4, 15.4, 0.47))],
)
def test_states_of_7_5_billion_parameters(devices, printed):
    """ZeRO, table 1, to the printed digits."""
    for stage, value in zip((1, 2, 3), printed, strict=True):
        assert zero_state_bytes(7.5e9, devices, stage) / 1e9 == pytest.approx(value, abs=0.06)


def test_gpt2_of_1_5_billion_parameters():
    """ZeRO, sections 3.1 and 3.2: at least 24 GB of states, about 60 GB of activations."""
    assert zero_state_bytes(1.5e9) == 24e9
    assert rule_of_thumb_bytes(*GPT2) / 1e9 == pytest.approx(60, rel=0.02)
    whole, selective, full = (
        activation_bytes(*GPT2, 25, recompute=recompute) / 1e9 for recompute in ("all", "selective", "full")
    )
    assert (round(whole), round(selective), round(full)) == (287, 86, 5)


@pytest.mark.parametrize(("how", "each"), [({}, 34 + 80), ({"recompute": "selective"}, 34), ({"recompute": "full"}, 2)])
def test_a_layer_of_gpt3(how, each):
    """Korthikanti et al., section 4: for GPT-3, 5as/h is 80."""
    s, b, h, a = 2048, 1, 12288, 96
    assert layer_activation_bytes(s, b, h, a, **how) == s * b * h * each
    assert layer_activation_bytes(s, b, h, a, tensor=8, sequence_parallel=True, **how) == s * b * h * each / 8


def test_tensor_parallelism_alone_leaves_the_norms_and_dropout_whole():
    """Equation 2."""
    assert layer_activation_bytes(2048, 1, 12288, 96, tensor=8) == 2048 * 12288 * (10 + 24 / 8 + 80 / 8)
    assert layer_activation_bytes(2048, 1, 12288, 96, tensor=8, recompute="full") == 2048 * 12288 * 2


def test_wrong_arguments_are_told():
    with pytest.raises(UserError, match="stage=4: expected one of 0, 1, 2, 3"):
        zero_state_bytes(1, 1, 4)
    with pytest.raises(UserError, match="devices=0"):
        zero_state_bytes(1, 0)
    with pytest.raises(UserError, match="recompute='some': expected one of all, selective, full"):
        layer_activation_bytes(1, 1, 1, 1, recompute="some")
    with pytest.raises(UserError, match="tensor=0"):
        layer_activation_bytes(1, 1, 1, 1, tensor=0)
