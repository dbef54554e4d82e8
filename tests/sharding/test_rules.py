"""Strict resolution of sharding rules: never silently replicated."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from jaxnlp import config as configs
from jaxnlp.errors import FieldError, UserError
from jaxnlp.sharding.mesh import MeshConfig, make_mesh
from jaxnlp.sharding.rules import FSDP, TENSOR, Sharding, resolve_spec

SIZES = {"data": 2, "fsdp": 2, "tensor": 2}


def test_resolution():
    rules = {**TENSOR, "embed": ("data", "fsdp")}
    assert resolve_spec("w", ("embed", "mlp"), (8, 6), rules, SIZES) == P(("data", "fsdp"), "tensor")
    assert resolve_spec("w", ("heads", "kv", "embed"), (2, 5, 8), {**rules, "embed": None}, SIZES) == P("tensor")
    assert resolve_spec("w", ("norm",), (7,), FSDP, SIZES) == P()


@pytest.mark.parametrize(
    ("names", "shape", "rules", "message"),
    [
        (
            ("embed", "mpl"),
            (8, 6),
            FSDP,
            r"block/w: logical axis 'mpl' has no rule \(rules: .*embed, .*add it, with None to replicate",
        ),
        (
            ("embed", "mlp"),
            (8, 6),
            {"embed": "fsdp", "mlp": "fsdp"},
            r"block/w: mesh axis 'fsdp' splits both 'embed' and 'mlp'",
        ),
        (("embed", "mlp"), (7, 6), FSDP, r"block/w: embed=7 does not divide over mesh axes fsdp=2"),
    ],
)
def test_what_cannot_be_resolved_names_parameter_axis_and_fix(names, shape, rules, message):
    with pytest.raises(UserError, match=message):
        resolve_spec("block/w", names, shape, rules, SIZES)


def test_mesh_sizes():
    assert MeshConfig(data=-1, tensor=2).sizes(8) == {"data": 4, "stage": 1, "fsdp": 1, "sequence": 1, "tensor": 2}
    with pytest.raises(UserError, match=r"data=-1, fsdp=3 needs a multiple of 3 devices, got 8"):
        MeshConfig(fsdp=3).sizes(8)
    with pytest.raises(UserError, match="data=2 needs 2 devices, got 8"):
        MeshConfig(data=2).sizes(8)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
    assert {axis: size for axis, size in mesh.shape.items() if size > 1} == SIZES
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1


def test_a_rule_to_a_mesh_axis_that_is_not_there():
    with pytest.raises(
        FieldError,
        match=r"params\['embed'\]='model': no such mesh axis; expected one of data, .*, tensor",
    ):
        configs.check(Sharding(params={**FSDP, "embed": "model"}))
