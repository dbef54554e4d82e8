"""With only the optimizer state split, new parameters are gathered one layer at a time, in place of the old ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp.planning.hlo import collectives
from jaxnlp.sharding.mesh import MeshConfig, make_mesh
from jaxnlp.sharding.rules import FSDP, REPLICATED, shardings
from jaxnlp.training.step.zero_update import Layouts
from tests import tpu

LAYERS = 3
SHAPES = {"embed": (10, 16), "kernel": (LAYERS, 16, 4), "out": (LAYERS, 4, 16), "scale": (LAYERS, 16)}
AXES = {
    "embed": ("vocab", "embed"),
    "kernel": ("layers", "embed", "mlp"),
    "out": ("layers", "mlp", "embed"),
    "scale": ("layers", "norm"),
}


def arrays(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def layouts() -> Layouts:
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices())
    updated, at_rest = (shardings(arrays(0), AXES, rules, mesh) for rules in (FSDP, REPLICATED))
    return Layouts(AXES, updated, at_rest)


def test_a_device_updates_its_share_and_gathers_the_others_a_layer_at_a_time(layouts):
    old, moves = arrays(0), arrays(1)

    def step(params, moves):
        new = layouts.apply_updates(params, moves)
        return layouts.gather(new, params)

    lay = lambda tree, of: jax.tree.map(jax.device_put, tree, of)
    args = lay(old, layouts.at_rest), lay(moves, layouts.updated)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=layouts.at_rest).lower(*args).compile()
    result = compiled(*args)
    for name, leaf in result.items():
        np.testing.assert_array_equal(leaf, old[name] + moves[name], err_msg=name)
        assert leaf.sharding.is_fully_replicated
    gathers = [c for c in collectives(compiled.as_text()) if c.kind == "all-gather"]
    sizes = sorted((c.bytes, c.count) for c in gathers)
    layer = 16 * 4 * 4
    assert sizes == [(layer, LAYERS)] * 2 + [(10 * 16 * 4, 1)]


def test_layers_split_over_stages_are_gathered_as_they_are():
    mesh = make_mesh(MeshConfig(data=1, stage=2, fsdp=4), jax.devices())
    at_rest, updated = (NamedSharding(mesh, PartitionSpec("stage", axis)) for axis in (None, "fsdp"))
    layouts = Layouts({"kernel": ("layers", "embed")}, {"kernel": updated}, {"kernel": at_rest})
    new = jax.device_put(jnp.arange(32.0).reshape(4, 8), updated)
    gathered = jax.jit(layouts.gather)({"kernel": new}, {"kernel": jax.device_put(jnp.zeros((4, 8)), at_rest)})[
        "kernel"
    ]
    np.testing.assert_array_equal(gathered, new)
    assert gathered.sharding.is_equivalent_to(at_rest, 2)


@pytest.mark.slow
def test_gathered_parameters_do_not_stand_beside_the_old_ones_on_a_tpu():
    memory = tpu.compiled("tests.training.compile_update_tpu", effort=tpu.FULL)
    # Gathered all at once they take 0.7 times the parameters; the rest is in the chip's fast memory.
    assert memory["temporaries"] < 0.3 * memory["parameters"], memory
