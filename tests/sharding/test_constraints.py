"""Each preset's layouts are in the lowered step (StableHLO), which is not compiled here.

A constraint outside its mesh, or without its table, is silently dropped, and the step still trains to the same
numbers. What the compiler makes of them is in `test_tpu_collectives.py`.
Shapes: x (16, 8, 32), logits (16, 8, 40), the table (40, 32), the feed-forward's first matrix (32, 48), of two layers
(2, 32, 48), queries (16, 8, 4, 8).
"""

import functools
import re

import jax
import numpy as np
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.sharding.presets import PRESETS
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

B, T, D, F, V, LAYERS, HEADS = 16, 8, 32, 48, 40, 2, 4
MESHES = {
    "DDP": {"data": 8},
    "ZERO1": {"fsdp": 8},
    "ZERO2": {"fsdp": 8},
    "ZERO3": {"fsdp": 8},
    "TP": {"data": 2, "tensor": 4},
    "TP_SP": {"data": 2, "tensor": 4},
    "PP": {"data": 4, "stage": 2},
    "DP_PP_TP": {"data": 2, "stage": 2, "tensor": 2},
}
X, QUERIES, LOGITS, TABLE = f"{B}x{T}x{D}", f"{B}x{T}x{HEADS}x8", f"{B}x{T}x{V}", f"{V}x{D}"
MATRIX, MATRICES = f"{D}x{F}", f"{LAYERS}x{D}x{F}"
BATCH = '{"data", "fsdp"}'


@functools.cache
def lowered(name: str) -> str:
    sharding = PRESETS[name].over(**MESHES[name])
    sizes = {"vocab_size": V, "max_length": T, "num_layers": LAYERS, "num_heads": HEADS, "embed_dim": D, "mlp_dim": F}
    e = Experiment(
        model=GPTConfig(**sizes, scan_layers=True),
        data=DataConfig(seq_len=T, batch_size=B),
        sharding=sharding,
        accum_steps=2 if sharding.pipeline is not None else 1,
        num_steps=10,
    )
    program = build(e, jax.devices()[:8])
    dtypes = {**dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), np.int32), "weights": np.float32}
    batch = {name: jax.ShapeDtypeStruct((B, T), dtype) for name, dtype in dtypes.items()}
    return program.step.lower(program.abstract, batch).as_text()


def constrained(name: str, shape: str) -> set[str]:
    """The sharding constraints of arrays of a shape, as `{}, {"fsdp"}`."""
    pattern = rf"sdy\.sharding_constraint %\S+ <@mesh, \[(.*?)\]> : tensor<{shape}xf32>"
    return set(re.findall(pattern, lowered(name)))


def arguments(name: str, shape: str) -> list[str]:
    """Layouts of the step's arguments of a shape: the parameter and its two moments."""
    return re.findall(rf"%arg\d+: tensor<{shape}xf32> \{{[^%]*?sdy\.sharding<@mesh, \[(.*?)\]>", lowered(name))


@pytest.mark.parametrize("name", ["DDP", "ZERO1", "ZERO2", "ZERO3", "TP"])
def test_the_batch_is_split_and_nothing_else_of_the_residual_stream(name):
    assert constrained(name, X) == {f'{BATCH}, {{"sequence"}}, {{}}'}


WHOLE, SPLIT = "{}, {}, {}", '{}, {"fsdp"}, {}'


@pytest.mark.parametrize(
    ("name", "params", "moments", "gradients"),
    [
        ("DDP", WHOLE, WHOLE, WHOLE),
        ("ZERO1", WHOLE, SPLIT, WHOLE),
        ("ZERO2", WHOLE, SPLIT, SPLIT),
        ("ZERO3", SPLIT, SPLIT, SPLIT),
    ],
)
def test_zeros_stages_split_one_thing_more_each(name, params, moments, gradients):
    assert arguments(name, MATRICES) == [params, moments, moments]
    assert gradients in constrained(name, MATRICES)
    # Gathered inside the layer, where its gradient is resharded too.
    inside = constrained(name, MATRIX)
    assert ('{"fsdp"}, {}' in inside) == (gradients == SPLIT)
    assert gradients != SPLIT or "{}, {}" in inside


def test_gathered_parameters_are_let_go_and_gathered_again():
    """Otherwise the forward pass would save the gathered parameters of every layer for the backward pass."""
    whole = rf"sdy\.sharding_constraint %\S+ <@mesh, \[{{}}, {{}}\]> : tensor<{MATRIX}xf32>"
    assert len(re.findall(whole, lowered("ZERO3"))) == 2


def test_tensor_parallel_splits_matrices_and_logits():
    for name in ("TP", "TP_SP"):
        assert arguments(name, MATRICES) == ['{}, {}, {"tensor"}'] * 3
        assert arguments(name, TABLE) == ['{"tensor"}, {}'] * 3
        assert constrained(name, LOGITS) == {'{?}, {?}, {"tensor"}'}


def test_sequence_parallel_lays_the_residual_stream_out_and_gathers_it():
    split, gathered = (f"{BATCH}, {axes}, {{}}" for axes in ('{"sequence", "tensor"}', '{"sequence"}'))
    assert constrained("TP_SP", X) == {split, gathered}
    assert constrained("TP_SP", QUERIES) == {f'{BATCH}, {{"sequence"}}, {{"tensor"}}, {{}}'}


@pytest.mark.parametrize(("name", "rest"), [("PP", "{}, {}"), ("DP_PP_TP", '{}, {"tensor"}')])
def test_pipelines_split_layers_and_vocabulary_over_stages(name, rest):
    assert arguments(name, MATRICES) == [f'{{"stage"}}, {rest}'] * 3
    assert arguments(name, TABLE) == ['{"stage", "tensor"}, {}'] * 3
    assert 'manual_axes={"data", "stage"}' in lowered(name)
