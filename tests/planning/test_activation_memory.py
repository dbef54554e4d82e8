"""Saved activations per device under each sharding table. Nothing is compiled."""

import dataclasses

import jax
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.planning.activation_memory import saved_activation_bytes
from jaxnlp.sharding.pipeline import Circular, OneFOneB
from jaxnlp.sharding.presets import DDP, PP, TP, TP_SP, ZERO3
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

LAYERS = 8
MODEL = GPTConfig(vocab_size=512, max_length=64, num_layers=LAYERS, num_heads=8, embed_dim=64, scan_layers=True)


def saved_bytes(sharding, accum_steps: int = 1, **fields) -> int:
    model = dataclasses.replace(MODEL, **fields)
    data = DataConfig(seq_len=64, batch_size=32)
    e = Experiment(model=model, data=data, sharding=sharding, accum_steps=accum_steps)
    return saved_activation_bytes(build(e, jax.devices()[:8]))[0]


def test_what_splits_the_batch_divides():
    # ZeRO 3 recomputes values that depend on gathered parameters (`nn/remat.py:all_but_gathered`), such as reshapes.
    assert saved_bytes(ZERO3.over(fsdp=8)) == saved_bytes(ZERO3.over(fsdp=2, sequence=4))
    assert saved_bytes(DDP.over(data=8)) == pytest.approx(saved_bytes(ZERO3.over(fsdp=8)), rel=0.01)
    assert saved_bytes(DDP.over(data=8), 4) == pytest.approx(saved_bytes(DDP.over(data=8)) / 4, rel=0.01)


def test_tensor_parallelism_divides_all_but_the_residual_stream():
    plain, split, sequence = (
        saved_bytes(table) for table in (DDP.over(data=8), TP.over(tensor=8), TP_SP.over(tensor=8))
    )
    assert sequence == pytest.approx(plain, rel=0.02)  # everything is split over eight devices
    assert 1.2 * plain < split < 4 * plain
    # A hidden layer twice as wide doubles its own arrays, which are split; norms and residuals stay the same.
    wide = lambda table: saved_bytes(table, mlp_dim=512) - saved_bytes(table, mlp_dim=256)
    assert wide(TP.over(tensor=8)) == pytest.approx(wide(DDP.over(data=8)), rel=0.01)


def test_a_stage_keeps_what_its_schedule_has_under_way():
    staged = lambda schedule, m: saved_bytes(dataclasses.replace(PP.over(stage=4, data=2), pipeline=schedule), m)
    gpipe = saved_bytes(PP.over(stage=4, data=2), 8)
    # 11 ticks, each with 1/4 of the layers and 1/8 of the batch: more than the full batch over 8 devices.
    assert saved_bytes(DDP.over(data=8)) < gpipe < 2 * saved_bytes(DDP.over(data=8))
    assert saved_bytes(PP.over(stage=4, data=2), 16) < gpipe  # fewer idle ticks
    assert staged(OneFOneB(), 8) < gpipe / 3
    assert staged(OneFOneB(), 16) < 0.6 * staged(OneFOneB(), 8)
    assert staged(Circular(virtual_stages=2), 8) < gpipe  # a shorter ramp


def test_remat_keeps_the_inputs_of_blocks():
    assert saved_bytes(DDP.over(data=8), remat="full") < saved_bytes(DDP.over(data=8)) / 3
    assert saved_bytes(TP_SP.over(tensor=8), remat="full") == pytest.approx(
        saved_bytes(DDP.over(data=8), remat="full"), rel=0.1
    )
