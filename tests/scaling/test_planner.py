"""Plans on eight CPU devices: the compiler's account beside ours, collectives by axis, and what does not fit."""

import dataclasses
import json
import math
from contextlib import nullcontext

import jax
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.errors import UserError
from jaxnlp.figures.plan import draw_plans
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.ring import Ring
from jaxnlp.optim import OptimConfig
from jaxnlp.scaling import chips, network, planner
from jaxnlp.scaling import search as searching
from jaxnlp.scaling.hlo import Collective
from jaxnlp.scaling.planner import Plan, plan
from jaxnlp.scaling.remedies import advised, changes
from jaxnlp.scaling.report import ranking, report
from jaxnlp.sharding.mesh import MeshConfig, make_mesh
from jaxnlp.sharding.presets import DDP, PP, TP, ZERO1, ZERO2, ZERO3
from jaxnlp.train.experiment import Experiment

DEVICES = 8
LAYERS, BATCH, LENGTH = 2, 16, 32


def experiment(sharding, **fields) -> Experiment:
    model = GPTConfig(
        vocab_size=256, max_len=LENGTH, num_layers=LAYERS, num_heads=8, embed_dim=64, scan_layers=True, remat="full"
    )
    return Experiment(
        model=model, data=DataConfig(seq_len=LENGTH, batch_size=BATCH), sharding=sharding, steps=10, **fields
    )


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    tables = {"DDP": DDP.on(data=8), "ZERO1": ZERO1.on(fsdp=8), "ZERO3": ZERO3.on(fsdp=8)}
    tables["TP"] = TP.on(data=2, tensor=4)
    return {name: plan(experiment(table), jax.devices()[:DEVICES], name) for name, table in tables.items()}


def moved(found: Plan, *axes: str) -> float:
    return sum(row.bytes for row in found.traffic if row.axes == axes)


@pytest.mark.parametrize("name", ["DDP", "ZERO1", "ZERO3", "TP"])
def test_arguments_are_the_parameters_and_the_optimizer_state(plans, name):
    parts, compiled = plans[name].parts, plans[name].compiled
    batch = 5 * BATCH * LENGTH * 4 / (2 if name == "TP" else 8)
    assert compiled["arguments"] == pytest.approx(parts["parameters"] + parts["optimizer state"] + batch, abs=256)
    assert compiled["peak"] == sum(compiled[part] for part in ("arguments", "temporaries", "other outputs"))


@pytest.mark.parametrize(("name", "stage", "each"), [("DDP", 0, 16), ("ZERO1", 1, 9), ("ZERO3", 3, 2)])
def test_states_are_what_zeros_formula_says(plans, name, stage, each):
    found = plans[name]
    states = sum(size for part, size in found.parts.items() if part != "activations")
    assert found.theory["stage"] == stage
    assert found.theory["bytes"] == each * found.parameters
    assert states == pytest.approx(found.theory["bytes"], rel=0.1)  # norms and biases are not split


def test_traffic_is_along_the_axes_of_the_table(plans):
    psi = 4 * plans["DDP"].parameters
    # A tied embedding's two gradients are all-reduced before they are added: once the vocabulary more.
    assert moved(plans["DDP"], "data") == pytest.approx(2 * (psi + 4 * 256 * 64) * 7 / 8, rel=0.05)
    assert {row.axes for row in plans["ZERO3"].traffic} == {("fsdp",)}
    assert any(row.kind == "all-gather" for row in plans["ZERO3"].traffic)
    # Megatron: two all-reduces forward and two backward a layer; this backend does some in parts, and the rest beside.
    one = BATCH // 2 * LENGTH * 64 * 4 * 2 * 3 / 4
    assert 4 * LAYERS * one < moved(plans["TP"], "tensor") < 10 * LAYERS * one
    gradients = plans["TP"].parts["gradients"] + 4 * 256 * 64 / 4
    assert moved(plans["TP"], "data") == pytest.approx(gradients, rel=0.05) and not moved(plans["DDP"], "tensor")


def test_the_report_has_every_table_and_json_every_number(plans):
    found = plans["TP"]
    text = report(found)
    for words in (
        "mesh data=2 x tensor=4",
        "optimizer state",
        "ZeRO's formula, stage 0, 4+4+8",
        "compiled: peak",
        "all-reduce",
        "tensor",
        "time of a step, at best",
        "bounds",
        "MFU at most",
    ):
        assert words in text
    stored = json.loads(json.dumps(found.to_dict()))
    assert (
        stored["fits"]
        and stored["bound"] == "compute"
        and stored["mfu_ceiling"] == pytest.approx(found.flops / found.executed)
    )
    assert {row["network"] for row in stored["traffic"]} == {"memory"}
    assert len(draw_plans([one.to_dict() for one in plans.values()], "plans").axes) == 2


def test_what_does_not_fit_says_what_is_largest_and_a_change_that_does(monkeypatch):
    e = experiment(ZERO1.on(fsdp=8))
    e = dataclasses.replace(
        e, model=dataclasses.replace(e.model, remat="none"), data=DataConfig(seq_len=LENGTH, batch_size=64)
    )
    needs = plan(e, jax.devices()[:DEVICES]).compiled["peak"]
    monkeypatch.setattr(planner, "limit", lambda device: 0.6 * needs)
    found = plan(e, jax.devices()[:DEVICES])
    assert not found.fits and found.bound is None and found.step_seconds is None and found.needed == needs
    largest = max(found.parts, key=found.parts.get)
    assert found.problem.startswith("does not fit: the step needs") and f"largest are the {largest}" in found.problem
    compiled: list[str] = []
    found = advised(found, e, jax.devices()[:DEVICES], busy=lambda text: compiled.append(text) or nullcontext())
    # The first is what fits, followed here as a user would.
    first = found.remedies[0]
    change, _, told = first.partition(": ")
    assert told.endswith("as compiled, fits") and compiled[-1].endswith(change)
    number = int(change.removeprefix("accum_steps="))
    assert plan(dataclasses.replace(e, accum_steps=number), jax.devices()[:DEVICES]).fits
    assert {line.partition(":")[0].split(",")[0] for line in found.remedies} >= {
        "model.remat='full'",
        "sharding as ZERO3",
    }
    assert "what would change that" in report(found)


def test_where_nothing_fits_more_devices_are_looked_for(monkeypatch):
    e = experiment(DDP.on(data=1), accum_steps=16)
    states = sum(planner.outline(planner.build(e, jax.devices()[:1])).parts.values())
    monkeypatch.setattr(planner, "limit", lambda device: 0.8 * states)
    found = plan(e, jax.devices()[:1])
    asked: list[int] = []
    larger = lambda count: asked.append(count) or (f"--topology=cpu:{count}", jax.devices()[:count])
    found = advised(found, e, jax.devices()[:1], larger)
    assert found.remedies[0].startswith("--topology=cpu:") and found.remedies[0].endswith("as compiled, fits")
    assert "sharding as ZERO3" in found.remedies[0] and asked[0] in (2, 4)


@pytest.mark.parametrize(
    ("error", "needs"),
    [
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (46.90G) exceeds", "50.4 GB"),
        ("Ran out of memory in memory space hbm. Used 18.52G of 15.75G hbm. Exceeded hbm capacity by", "19.9 GB"),
    ],
)
def test_the_compilers_own_figure_is_told(plans, error, needs):
    size = planner.needed(f"RESOURCE_EXHAUSTED: {error}")
    assert f"the step needs {needs} on each cpu" in planner.refused(plans["DDP"], size).problem


def test_mixed_precision_counts_two_two_twelve():
    e = experiment(ZERO2.on(fsdp=8), optim=OptimConfig(master_dtype="float32"))
    policy = Policy(param_dtype="bfloat16", compute_dtype="bfloat16")
    e = dataclasses.replace(e, model=dataclasses.replace(e.model, policy=policy))
    found = planner.outline(planner.build(e, jax.devices()[:DEVICES]))
    assert [found.theory[f"{name} bytes"] for name in ("weight", "gradient", "optimizer")] == [2, 2, 12]
    assert found.theory["bytes"] == pytest.approx(found.parameters * (2 + 2 / 8 + 12 / 8))


def test_a_search_ranks_what_fits_and_tells_of_each(monkeypatch):
    e, lines = experiment(ZERO3), []
    wanted = [
        ("config", ZERO3),
        ("ZERO3 fsdp=8", ZERO3.on(fsdp=8)),
        ("TP", TP.on(data=4, tensor=2)),
        ("PP", PP.on(stage=2, data=4)),
    ]
    monkeypatch.setattr(searching, "tables", lambda *_: wanted)
    found = searching.search(e, jax.devices()[:DEVICES], lines.append)
    assert len(found) == len(lines) == 3 and all(": fits" in line for line in lines)  # the config's own not twice
    assert [one.step_seconds for one in found] == sorted(one.step_seconds for one in found)
    table = ranking(found).splitlines()
    assert len(table) == len(found) + 1 and "MFU at most" in table[0]
    # The most microbatches that divide the batch, for the smallest bubble: 1 of 5 ticks.
    (staged,) = (one for one in found if one.name.startswith("PP"))
    permutes = sum(row.count for row in staged.traffic if row.kind == "collective-permute")
    assert permutes >= 2 * 5  # forward and backward
    assert staged.accum_steps == 4 and staged.bubble == pytest.approx(1 / 5) and staged.mfu_ceiling < 0.7


def test_time_and_utilisation_are_of_what_a_step_executes(plans):
    for name, found in plans.items():
        assert 1.15 < found.executed / found.flops < 1.34, name  # blocks are computed again, but for what nothing reads
        assert found.seconds["compute"] == found.executed / DEVICES / found.peak_flops
    assert "compute is 1.2" in report(plans["DDP"])
    sharding = dataclasses.replace(PP.on(stage=2, data=4), pipeline="1f1b")
    staged = planner.outline(planner.build(experiment(sharding, accum_steps=4), jax.devices()[:DEVICES]))
    assert (staged.schedule, staged.bubble) == ("OneFOneB", pytest.approx(1 / 3))


def test_a_search_of_tables_that_are_not_there_is_an_error():
    with pytest.raises(UserError, match="--tables=ZERO9: none of these begins so; here there are config, DDP data=8"):
        searching.search(experiment(ZERO3), jax.devices()[:DEVICES], only=["ZERO9"])


def test_a_search_of_which_nothing_can_be_laid_out_says_why(monkeypatch):
    monkeypatch.setattr(searching, "tables", lambda *_: [("TP", TP.on(data=1, tensor=8))])
    e = experiment(ZERO3)
    e = dataclasses.replace(e, model=dataclasses.replace(e.model, num_heads=4, num_kv_heads=4))
    with pytest.raises(UserError, match="--search: none of 1 tables can be laid out over 8 devices; TP.*num_heads=4"):
        searching.search(e, jax.devices()[:DEVICES], lambda line: None)


def test_a_remedy_that_is_no_preset_says_what_it_maps():
    named = [change for change, _ in changes(experiment(TP.on(data=4, tensor=2)), DEVICES)]
    assert "sharding as 'embed' on 'fsdp' in optimizer, gradients, params, fsdp=4" in named
    assert "sharding as ZERO3, fsdp=8" in [change for change, _ in changes(experiment(DDP.on(data=8)), DEVICES)]


def test_what_a_search_tries():
    e = experiment(ZERO3)
    e = dataclasses.replace(e, model=dataclasses.replace(e.model, num_layers=8))
    names = [name for name, _ in searching.tables(e, jax.devices()[:DEVICES])]
    assert {
        "DDP data=8",
        "ZERO2 fsdp=8",
        "TP data=4 tensor=2",
        "TP_SP tensor=8",
        *(f"THREE_D data=2 stage=2 tensor=2 {kind}" for kind in ("GPipe", "OneFOneB", "Circular")),
    } <= {*names}
    assert {name for name in names if name.startswith("PP")} == {
        *(
            f"PP data={8 // p} stage={p} {kind}".replace("data=1 ", "")
            for p in (2, 4, 8)
            for kind in ("GPipe", "OneFOneB")
        ),
        *("PP data=4 stage=2 Circular", "PP data=2 stage=4 Circular"),
    }
    assert not any("sequence" in name for name in names)
    ring = dataclasses.replace(e, model=dataclasses.replace(e.model, attention=Ring()))
    assert "ZERO3 fsdp=2 sequence=4" in [name for name, _ in searching.tables(ring, jax.devices()[:DEVICES])]
    torus = [Fake((i, j, 0)) for i in range(2) for j in range(4)]
    assert "ZERO3 data=2 fsdp=4" in [name for name, _ in searching.tables(e, torus)]


@dataclasses.dataclass(frozen=True)
class Fake:
    """A TPU chip at a place."""

    coords: tuple[int, ...]
    slice_index: int = 0
    id: int = 0
    device_kind: str = "TPU v5 lite"
    platform: str = "tpu"


def test_over_slices_each_has_a_copy_of_what_is_tried_and_of_what_is_advised():
    e = experiment(dataclasses.replace(DDP, mesh=MeshConfig(data=8, slices={"data": 2})))
    chips = [Fake((i, j, 0), s) for s in range(2) for i in range(2) for j in range(2)]
    found = dict(searching.tables(e, chips))
    assert len(found) > 5 and "ZERO3 fsdp=4 on each of 2 slices" in found
    for name, sharding in found.items():
        assert sharding.mesh.slices == {"data": 2}, name
        assert math.prod(sharding.mesh.sizes(8).values()) == 8, name
    three = next(one for change, one in changes(e, 8) if change == "sharding as ZERO3, data=2, fsdp=4")
    assert three.sharding.mesh == MeshConfig(data=2, fsdp=4, slices={"data": 2})
    assert three.sharding.params["embed"] == "fsdp"


def seconds(kind: str, members, shape, slices: int = 1):
    import numpy as np

    grid = [Fake(tuple(int(n) for n in place), s) for s in range(slices) for place in np.ndindex(shape)]
    mesh = type("Mesh", (), {"devices": np.array(grid, object), "size": len(grid)})
    chip = chips.chip_of(grid[0])
    assert chip is not None and chip.name == "v5e"
    over, _, time = network.wire(Collective(kind, members, 10**9, 1), mesh, chip)
    return over, time


def test_time_on_links():
    row = (tuple(range(16)),)
    # One side of a 16 x 16 torus: a ring, both ways at 50 GB/s. A side of four is no ring.
    assert seconds("all-gather", row, (16, 16)) == ("ICI", pytest.approx(15 / 16 / 100))
    assert seconds("all-reduce", row, (16, 16)) == ("ICI", pytest.approx(2 * 15 / 16 / 100))
    assert seconds("all-gather", ((0, 1, 2, 3),), (4, 4)) == ("ICI", pytest.approx(3 / 4 / 50))
    assert seconds("all-gather", (tuple(range(256)),), (16, 16)) == ("ICI", pytest.approx(255 / 256 / 200))


def test_time_between_slices():
    # Chip 0 of each slice: all of it crosses. All chips: reduced within a slice, a sixteenth each crosses.
    dcn = 6.4e12 / 8 / 256
    assert seconds("all-reduce", ((0, 16),), (4, 4), 2) == ("DCN", pytest.approx(1e9 / dcn))
    assert seconds("all-reduce", (tuple(range(32)),), (4, 4), 2) == ("DCN", pytest.approx(1e9 / 16 / dcn))
    assert seconds("all-gather", ((0, 1, 2, 3),), (4, 4), 2)[0] == "ICI"


def test_places_in_slices():
    import numpy as np

    # Two slices of two along the inner axis: 0 and 2 of the mesh's four are of one slice.
    chips_of = [Fake((i, 0, 0), s, 100_000 * (s + 1) + i) for i in range(2) for s in range(2)]
    mesh = type("Mesh", (), {"devices": np.array(chips_of, object), "size": 4})
    within = Collective("all-reduce", ((0, 1),), 8, 1)
    assert network.placed(within, mesh).members == ((0, 2),)
    assert network.placed(dataclasses.replace(within, members=()), mesh).members == ((0, 2),)
    across = Collective("all-reduce", ((100000, 200000), (100001, 200001)), 8, 1, between_slices=True)
    assert network.placed(across, mesh).members == ((0, 1), (2, 3))
    assert network.wire(network.placed(across, mesh), mesh, chips.CHIPS[1])[:2] == ("DCN", 8.0)
    everywhere = Collective("all-to-all", ((100000, 200000, 100001, 200001),), 8, 1, between_slices=True)
    assert network.wire(network.placed(everywhere, mesh), mesh, chips.CHIPS[1])[:2] == ("DCN", 4.0)


def test_every_chip_is_found_by_its_kind_and_has_a_source():
    kinds = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "TPU7x": "tpu7x"}
    kinds |= {"NVIDIA A100-SXM4-80GB": "A100", "NVIDIA H100 80GB HBM3": "H100", "NVIDIA H200": "H200"}
    for kind, name in kinds.items():
        chip = chips.chip_of(Fake((), device_kind=kind))
        assert chip is not None and chip.name == name and chip.source
        assert chip.limit <= chip.hbm
    assert chips.chip_of(jax.devices()[0]) is None
    assert make_mesh(DDP.mesh, jax.devices()[:1]).size == 1
