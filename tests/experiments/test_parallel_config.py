"""configs/gpt/parallel.py: any preset over any mesh by its variant."""

import pytest

from jaxnlp import cli
from jaxnlp.errors import UserError
from jaxnlp.sharding.mesh import AXES
from jaxnlp.sharding.presets import PRESETS

FILE = "configs/gpt/parallel.py"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_over_the_devices_that_are_there(name):
    assert cli.load(f"{FILE}:{name}").sharding == PRESETS[name]
    assert cli.load(FILE).sharding == PRESETS["DDP"]


def test_sizes_of_the_mesh():
    sharding = cli.load(f"{FILE}:TP,data=2,tensor=-1").sharding
    assert sharding.params == PRESETS["TP"].params
    assert sharding.mesh.sizes(8) == {**dict.fromkeys(AXES, 1), "data": 2, "tensor": 4}


@pytest.mark.parametrize("variant", ["ZERO4", "TP,tensr=8", "TP,tensor", "TP,tensor=x"])
def test_a_wrong_variant_is_told(variant):
    with pytest.raises(UserError, match=f"{variant}: expected PRESET or PRESET,AXIS=SIZE, such as TP"):
        cli.load(f"{FILE}:{variant}")
