"""A table or mesh without effect is an error before anything compiles."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.errors import FieldError
from jaxnlp.models import gpt
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.partitioning import constrain
from jaxnlp.sharding.presets import DDP, TP, ZERO1, ZERO2
from jaxnlp.sharding.rules import ACTIVATIONS, REPLICATED, TENSOR, Sharding
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

B, T = 16, 16
GPT = GPTConfig(vocab_size=32, max_length=T, num_layers=1, num_heads=4, embed_dim=16)


def experiment(sharding: Sharding, model=GPT) -> Experiment:
    return Experiment(model=model, data=DataConfig(seq_len=T, batch_size=B), sharding=sharding, num_steps=10)


def refused(match: str, sharding: Sharding, model=GPT, devices: int = 8) -> None:
    with pytest.raises(FieldError, match=match):
        build(experiment(sharding, model), jax.devices()[:devices])


def test_an_axis_over_which_nothing_is_split_is_told():
    refused(
        r"sharding.mesh.tensor=8: no table splits .* its 8 devices would do the same work; .*TP", DDP.over(tensor=8)
    )
    refused("sharding.mesh.tensor=4: no table", ZERO2.over(fsdp=2, tensor=-1))
    still = {**ACTIVATIONS, "length": None, "residual": None}
    refused(r"mesh.sequence=2: .*map 'length' and", Sharding(activations=still).over(data=4, sequence=2))
    refused(
        "mesh.data=8: .*map 'batch'.*more of tensor",
        Sharding(activations={**ACTIVATIONS, "batch": "fsdp"}).over(data=8),
    )


def test_an_axis_that_splits_the_length_or_a_state_alone_is_taken():
    build(experiment(DDP.over(sequence=8)), jax.devices())
    build(experiment(ZERO1.over(fsdp=8)), jax.devices())
    split = Sharding(optimizer={**REPLICATED, "embed": "tensor"}).over(data=4, tensor=2)
    build(experiment(split), jax.devices())


def test_a_rule_of_an_unknown_axis_is_told():
    mean = r"sharding.params\['mlpp'\]='tensor': this model has no such logical axis; did you mean 'mlp'\?"
    for devices in (1, 4):
        refused(mean, Sharding(params={**TENSOR, "mlpp": "tensor"}).over(tensor=devices), devices=devices)
    refused(r"sharding.optimizer\['emebd'\]", Sharding(optimizer={**REPLICATED, "emebd": "fsdp"}).over(fsdp=8))
    refused(
        r"sharding.activations\['lenght'\]='sequence': .*mean 'length'",
        Sharding(activations={**ACTIVATIONS, "lenght": "sequence"}).over(data=8),
    )


class Fork(nn.Module):
    """A GPT with an additional named activation axis."""

    config: GPTConfig

    @nn.compact
    def __call__(self, tokens_BT, *args, **kwargs):
        out_BTV: Any = gpt.GPT(self.config)(tokens_BT, *args, **kwargs)
        return constrain(out_BTV, "batch", "positions_of_mine", None)


@dataclasses.dataclass(kw_only=True)
class ForkConfig(GPTConfig):
    def build(self):
        return Fork(self)


def test_a_fork_has_names_of_its_own():
    fork = ForkConfig(**{f.name: getattr(GPT, f.name) for f in dataclasses.fields(GPT)})
    mine = {**ACTIVATIONS, "length": None, "residual": None, "positions_of_mine": "sequence"}
    for devices in (1, 8):
        build(experiment(Sharding(activations=mine).over(sequence=devices), fork), jax.devices()[:devices])
    refused(r"activations\['positions_of_mine'\]", Sharding(activations=mine).over(sequence=8))


def test_a_tensor_axis_wider_than_heads_names_the_field_and_what_would_do():
    message = "model.num_heads=4: does not divide over tensor=8 devices; use tensor=4 or num_heads=8"
    refused(message, TP.over(tensor=8))
    grouped = dataclasses.replace(GPT, num_kv_heads=2)
    message = "model.num_kv_heads=2: .* tensor=4 devices; use tensor=2 or num_kv_heads=4, or map 'kv_heads' to None in "
    refused(message + "sharding.params and sharding.activations$", TP.over(data=2, tensor=4), grouped)
    whole = Sharding(params={**TENSOR, "kv_heads": None}, optimizer=TENSOR).over(data=2, tensor=4)
    refused(message + "sharding.optimizer and sharding.activations$", whole, grouped)
