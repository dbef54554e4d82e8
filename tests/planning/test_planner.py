"""Plans on eight CPU devices: memory as compiled and by estimate, collectives by axis, steps that do not fit."""

import dataclasses
import json
import math
from contextlib import nullcontext

import jax
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.errors import UserError
from jaxnlp.figures.parallelism import amount
from jaxnlp.figures.plan import draw_plans
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.ring import Ring
from jaxnlp.optim import OptimConfig
from jaxnlp.planning import memory_limits, planner, remedies, step_plan
from jaxnlp.planning import search as searching
from jaxnlp.planning.planner import plan_step
from jaxnlp.planning.remedies import config_changes, with_remedies
from jaxnlp.planning.report import format_plan, format_ranking
from jaxnlp.planning.step_plan import StepPlan
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.presets import DDP, PP, TP, ZERO1, ZERO2, ZERO3
from jaxnlp.training.experiment import Experiment
from tests.planning.fakes import Fake, gpus

DEVICES = 8
LAYERS, BATCH, LENGTH = 2, 16, 32


def experiment(sharding, **fields) -> Experiment:
    model = GPTConfig(
        vocab_size=256, max_length=LENGTH, num_layers=LAYERS, num_heads=8, embed_dim=64, scan_layers=True, remat="full"
    )
    return Experiment(
        model=model, data=DataConfig(seq_len=LENGTH, batch_size=BATCH), sharding=sharding, num_steps=10, **fields
    )


@pytest.fixture(scope="module")
def plans() -> dict[str, StepPlan]:
    tables = {"DDP": DDP.over(data=8), "ZERO1": ZERO1.over(fsdp=8), "ZERO3": ZERO3.over(fsdp=8)}
    tables["TP"] = TP.over(data=2, tensor=4)
    return {name: plan_step(experiment(table), jax.devices()[:DEVICES], name) for name, table in tables.items()}


def moved(plan: StepPlan, *axes: str) -> float:
    return sum(row.bytes for row in plan.traffic if row.axes == axes)


@pytest.mark.parametrize("name", ["DDP", "ZERO1", "ZERO3", "TP"])
def test_arguments_are_the_parameters_and_the_optimizer_state(plans, name):
    parts, compiled = plans[name].memory, plans[name].compiled
    batch = 5 * BATCH * LENGTH * 4 / (2 if name == "TP" else 8)
    assert compiled["arguments"] == pytest.approx(parts["parameters"] + parts["optimizer state"] + batch, abs=256)
    assert compiled["peak"] == sum(compiled[part] for part in ("arguments", "temporaries", "other outputs"))


@pytest.mark.parametrize(("name", "stage", "each"), [("DDP", 0, 16), ("ZERO1", 1, 9), ("ZERO3", 3, 2)])
def test_states_are_what_zeros_formula_says(plans, name, stage, each):
    plan = plans[name]
    states = sum(size for part, size in plan.memory.items() if part != "activations")
    assert plan.zero_formula["stage"] == stage
    assert plan.zero_formula["bytes"] == each * plan.parameters
    assert states == pytest.approx(plan.zero_formula["bytes"], rel=0.1)  # norms and biases are not split


def test_traffic_is_along_the_axes_of_the_table(plans):
    psi = 4 * plans["DDP"].parameters
    # A tied embedding's two gradients are all-reduced before they are added: one more table.
    assert moved(plans["DDP"], "data") == pytest.approx(2 * (psi + 4 * 256 * 64) * 7 / 8, rel=0.05)
    assert {row.axes for row in plans["ZERO3"].traffic} == {("fsdp",)}
    assert any(row.kind == "all-gather" for row in plans["ZERO3"].traffic)
    # Megatron: two all-reduces forward and two backward per layer; this backend splits some and adds others.
    all_reduce = BATCH // 2 * LENGTH * 64 * 4 * 2 * 3 / 4
    assert 4 * LAYERS * all_reduce < moved(plans["TP"], "tensor") < 10 * LAYERS * all_reduce
    gradients = plans["TP"].memory["gradients"] + 4 * 256 * 64 / 4
    assert moved(plans["TP"], "data") == pytest.approx(gradients, rel=0.05) and not moved(plans["DDP"], "tensor")


def test_the_report_has_every_table_and_json_every_number(plans):
    plan = plans["TP"]
    text = format_plan(plan)
    for words in (
        "mesh data=2 x tensor=4",
        "optimizer state",
        "ZeRO's formula, stage 0, 4+4+8",
        "compiled: peak",
        "all-reduce",
        "tensor",
        "lower bounds of the step time",
        "the longest",
        "MFU at most",
    ):
        assert words in text
    stored = json.loads(json.dumps(plan.to_dict()))
    assert (
        stored["fits"]
        and stored["bottleneck"] == "compute"
        and stored["mfu_ceiling"] == pytest.approx(plan.flops / plan.executed_flops)
    )
    assert {row["network"] for row in stored["traffic"]} == {"memory"}
    assert len(draw_plans([p.to_dict() for p in plans.values()], "plans").axes) == 2


def test_what_does_not_fit_says_what_is_largest_and_a_change_that_does(monkeypatch):
    e = experiment(ZERO1.over(fsdp=8))
    e = dataclasses.replace(
        e, model=dataclasses.replace(e.model, remat="none"), data=DataConfig(seq_len=LENGTH, batch_size=64)
    )
    needs = plan_step(e, jax.devices()[:DEVICES]).compiled["peak"]
    monkeypatch.setattr(planner, "device_memory_limit", lambda device: 0.6 * needs)
    plan = plan_step(e, jax.devices()[:DEVICES])
    assert not plan.fits and plan.bottleneck is None and plan.step_seconds is None and plan.required_bytes == needs
    largest = max(plan.memory, key=plan.memory.get)
    assert plan.problem.startswith("does not fit: the step needs") and f"largest part: {largest}" in plan.problem
    compiled: list[str] = []
    plan = with_remedies(plan, e, jax.devices()[:DEVICES], busy=lambda text: compiled.append(text) or nullcontext())
    # Applies the first remedy, which fits.
    first = plan.remedies[0]
    change, _, outcome = first.partition(": ")
    assert outcome.endswith("as compiled, fits") and compiled[-1].endswith(change)
    number = int(change.removeprefix("accum_steps="))
    assert plan_step(dataclasses.replace(e, accum_steps=number), jax.devices()[:DEVICES]).fits
    assert {line.partition(":")[0].split(",")[0] for line in plan.remedies} >= {
        "model.remat='full'",
        "sharding as ZERO3",
    }
    assert "config changes that would help" in format_plan(plan)


def test_where_nothing_fits_more_devices_are_looked_for(monkeypatch):
    e = experiment(DDP.over(data=1), accum_steps=16)
    states = sum(planner.estimate_step(planner.build(e, jax.devices()[:1])).memory.values())
    monkeypatch.setattr(planner, "device_memory_limit", lambda device: 0.8 * states)
    plan = plan_step(e, jax.devices()[:1])
    counts: list[int] = []
    larger = lambda count: counts.append(count) or (f"--topology=cpu:{count}", jax.devices()[:count])
    plan = with_remedies(plan, e, jax.devices()[:1], larger)
    assert plan.remedies[0].startswith("--topology=cpu:") and plan.remedies[0].endswith("as compiled, fits")
    assert "sharding as ZERO3" in plan.remedies[0] and counts[0] in (2, 4)


@pytest.mark.parametrize(
    ("error", "needs"),
    [
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (46.90G) exceeds", "50.4 GB"),
        ("Ran out of memory in memory space hbm. Used 18.52G of 15.75G hbm. Exceeded hbm capacity by", "19.9 GB"),
    ],
)
def test_the_compilers_own_figure_is_told(plans, error, needs):
    size = planner.required_bytes(f"RESOURCE_EXHAUSTED: {error}")
    assert f"the step needs {needs} on each cpu" in step_plan.exceeds_device_memory(plans["DDP"], size).problem


def test_mixed_precision_counts_two_two_twelve():
    e = experiment(ZERO2.over(fsdp=8), optim=OptimConfig(master_dtype="float32"))
    policy = Policy(param_dtype="bfloat16", compute_dtype="bfloat16")
    e = dataclasses.replace(e, model=dataclasses.replace(e.model, policy=policy))
    plan = planner.estimate_step(planner.build(e, jax.devices()[:DEVICES]))
    assert [plan.zero_formula[f"{name} bytes"] for name in ("weight", "gradient", "optimizer")] == [2, 2, 12]
    assert plan.zero_formula["bytes"] == pytest.approx(plan.parameters * (2 + 2 / 8 + 12 / 8))


def test_a_search_ranks_what_fits_and_tells_of_each(monkeypatch):
    e, lines = experiment(ZERO3), []
    wanted = [
        ("config", ZERO3),
        ("ZERO3 fsdp=8", ZERO3.over(fsdp=8)),
        ("TP", TP.over(data=4, tensor=2)),
        ("PP", PP.over(stage=2, data=4)),
    ]
    monkeypatch.setattr(searching, "candidate_shardings", lambda *_: wanted)
    plans = searching.search(e, jax.devices()[:DEVICES], lines.append)
    # The config's own plan is not repeated.
    assert len(plans) == len(lines) == 3 and all(": fits" in line for line in lines)
    assert [plan.step_seconds for plan in plans] == sorted(plan.step_seconds for plan in plans)
    table = format_ranking(plans).splitlines()
    assert len(table) == len(plans) + 1 and "MFU at most" in table[0]
    # The largest number of microbatches that divides the batch has the smallest bubble: 1 of 5 ticks.
    (staged,) = (plan for plan in plans if plan.name.startswith("PP"))
    permutes = sum(row.count for row in staged.traffic if row.kind == "collective-permute")
    assert permutes >= 2 * 5  # forward and backward
    assert staged.accum_steps == 4 and staged.bubble == pytest.approx(1 / 5) and staged.mfu_ceiling < 0.7


def test_time_and_utilisation_are_of_what_a_step_executes(plans):
    for name, plan in plans.items():
        # Blocks are recomputed, except for values that nothing reads.
        assert 1.15 < plan.executed_flops / plan.flops < 1.34, name
        assert plan.seconds["compute"] == plan.executed_flops / DEVICES / plan.peak_flops
    assert "compute is 1.2" in format_plan(plans["DDP"])
    sharding = dataclasses.replace(PP.over(stage=2, data=4), pipeline="1f1b")
    staged = planner.estimate_step(planner.build(experiment(sharding, accum_steps=4), jax.devices()[:DEVICES]))
    assert (staged.schedule, staged.bubble) == ("OneFOneB", pytest.approx(1 / 3))


def test_a_search_of_tables_that_are_not_there_is_an_error():
    with pytest.raises(
        UserError, match="--tables=ZERO9: no name of a sharding starts with it; available: config, DDP data=8"
    ):
        searching.search(experiment(ZERO3), jax.devices()[:DEVICES], only=["ZERO9"])


def test_a_search_of_which_nothing_can_be_laid_out_says_why(monkeypatch):
    monkeypatch.setattr(searching, "candidate_shardings", lambda *_: [("TP", TP.over(data=1, tensor=8))])
    e = experiment(ZERO3)
    e = dataclasses.replace(e, model=dataclasses.replace(e.model, num_heads=4, num_kv_heads=4))
    with pytest.raises(UserError, match="--search: none of 1 tables can be laid out over 8 devices; TP.*num_heads=4"):
        searching.search(e, jax.devices()[:DEVICES], lambda line: None)


def test_a_remedy_that_is_no_preset_says_what_it_maps():
    named = [change for change, _ in config_changes(experiment(TP.over(data=4, tensor=2)), DEVICES)]
    assert "sharding as 'embed' on 'fsdp' in optimizer, gradients, params, fsdp=4" in named
    assert "sharding as ZERO3, fsdp=8" in [
        change for change, _ in config_changes(experiment(DDP.over(data=8)), DEVICES)
    ]


def test_what_a_search_tries():
    e = experiment(ZERO3)
    e = dataclasses.replace(e, model=dataclasses.replace(e.model, num_layers=8))
    names = [name for name, _ in searching.candidate_shardings(e, jax.devices()[:DEVICES])]
    assert {
        "DDP data=8",
        "ZERO2 fsdp=8",
        "TP data=4 tensor=2",
        "TP_SP tensor=8",
        "ZERO3+TP fsdp=4 tensor=2",
        *(f"DP_PP_TP data=2 stage=2 tensor=2 {kind}" for kind in ("GPipe", "OneFOneB", "Circular")),
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
    # ZeRO 3 with tensor parallelism has devices on both axes, never on one; `--tables=ZERO3` includes it.
    split = [
        sharding
        for name, sharding in searching.candidate_shardings(e, jax.devices()[:DEVICES])
        if name.startswith("ZERO3+TP")
    ]
    assert [(s.mesh.fsdp, s.mesh.tensor) for s in split] == [(4, 2), (2, 4)]
    assert all((s.params["embed"], s.params["mlp"]) == ("fsdp", "tensor") for s in split)
    ring = dataclasses.replace(e, model=dataclasses.replace(e.model, attention=Ring()))
    assert "ZERO3 fsdp=2 sequence=4" in [
        name for name, _ in searching.candidate_shardings(ring, jax.devices()[:DEVICES])
    ]
    torus = [Fake((i, j, 0)) for i in range(2) for j in range(4)]
    hosts = gpus(2, 4)
    for devices in (torus, hosts):
        assert "ZERO3 data=2 fsdp=4" in [name for name, _ in searching.candidate_shardings(e, devices)]


def test_over_slices_each_has_a_copy_of_what_is_tried_and_of_what_is_advised():
    e = experiment(dataclasses.replace(DDP, mesh=MeshConfig(data=8, dcn={"data": 2})))
    chips = [Fake((i, j, 0), s) for s in range(2) for i in range(2) for j in range(2)]
    shardings = dict(searching.candidate_shardings(e, chips))
    assert len(shardings) > 5 and "ZERO3 fsdp=4 on each of 2 slices" in shardings
    for name, sharding in shardings.items():
        assert sharding.mesh.dcn == {"data": 2}, name
        assert math.prod(sharding.mesh.sizes(8).values()) == 8, name
    three = next(changed for change, changed in config_changes(e, 8) if change == "sharding as ZERO3, data=2, fsdp=4")
    assert three.sharding.mesh == MeshConfig(data=2, fsdp=4, dcn={"data": 2})
    assert three.sharding.params["embed"] == "fsdp"


def test_an_attached_device_is_asked_for_its_memory_and_one_that_is_named_is_not(monkeypatch):
    here, other = gpus(2, 1)
    here = dataclasses.replace(here, stats={"bytes_limit": 60e9})
    assert memory_limits.device_memory_limit(here) == 80e9  # no such device is attached
    monkeypatch.setattr(memory_limits.jax, "local_devices", lambda: [here])
    assert memory_limits.device_memory_limit(here) == memory_limits.device_memory_limit(other) == 60e9
    assert memory_limits.device_memory_limit(Fake((0, 0, 0))) == 15.75 * 2**30
    silent = dataclasses.replace(here, stats=None)
    monkeypatch.setattr(memory_limits.jax, "local_devices", lambda: [silent])
    assert memory_limits.device_memory_limit(silent) == 80e9
    unknown = dataclasses.replace(silent, device_kind="NVIDIA GB999")
    monkeypatch.setattr(memory_limits.jax, "local_devices", lambda: [unknown])
    assert memory_limits.device_memory_limit(unknown) is None


def test_the_hosts_memory_is_shared_by_its_devices(monkeypatch):
    assert memory_limits.host_memory_limit(Fake((0, 0, 0))) == 512 * 2**30 / 8
    assert memory_limits.host_memory_limit(gpus(1, 1)[0]) == 2e12 / 8
    assert memory_limits.host_memory_limit(Fake((0, 0, 0), device_kind="TPU v4")) is None
    # Attached devices: this machine's memory over the host's GPUs, although each GPU has its own process.
    attached = gpus(2, 4)
    monkeypatch.setattr(memory_limits, "host_ram", lambda: 400)
    monkeypatch.setattr(memory_limits.jax, "devices", lambda: attached)
    monkeypatch.setattr(memory_limits.jax, "local_devices", lambda: attached[1:2])
    assert memory_limits.host_memory_limit(attached[0]) == 100


def instead(e: Experiment, devices) -> StepPlan:
    """A plan that fits by estimate, before it is compiled."""
    return planner.estimate_step(planner.build(e, devices))


def test_a_step_that_takes_more_of_the_hosts_memory_than_there_is_does_not_fit(monkeypatch):
    e = experiment(dataclasses.replace(DDP.over(data=8), optimizer_memory="host"), accum_steps=2)
    e = dataclasses.replace(e, model=dataclasses.replace(e.model, remat="none"))
    devices = jax.devices()[:DEVICES]
    host_bytes = instead(e, devices).host_bytes
    monkeypatch.setattr(planner, "host_memory_limit", lambda device: 0.6 * host_bytes)
    assert host_bytes > 0
    plan = plan_step(e, devices)
    assert not plan.fits and plan.compiled is None  # known before compiling
    says = (
        f"the step needs {amount(host_bytes)} of host memory for each cpu and {amount(0.6 * host_bytes)} are available"
    )
    assert plan.problem == f"does not fit: {says}; largest part: optimizer state, {amount(host_bytes)}"
    monkeypatch.setattr(remedies, "plan_step", instead)
    plan = with_remedies(plan, e, devices)
    # Only changes that need less host memory are suggested.
    assert plan.remedies[0].startswith("sharding as ZERO1, fsdp=8: ") and plan.remedies[0].endswith("fits")
    assert not any(line.startswith(("accum_steps", "model.remat")) for line in plan.remedies)
    assert "sharding.optimizer_memory='device'" in {line.partition(":")[0] for line in plan.remedies}
    assert says in format_plan(plan) and "host memory available" in format_plan(plan)


def test_what_the_compiler_puts_in_the_hosts_memory_counts(plans):
    plan = dataclasses.replace(plans["DDP"], compiled={**plans["DDP"].compiled, "host": 200}, host_memory_limit=100.0)
    assert plans["DDP"].host_fits and not plan.host_fits
    problem = step_plan.exceeds_host_memory(plan).problem
    assert problem == "does not fit: the step needs 200 B of host memory for each cpu and 100 B are available"


@pytest.mark.parametrize(
    ("available", "end"), [(80, " and 100 B of host memory by estimate, still too much"), (120, "fits")]
)
def test_a_remedy_has_to_fit_the_hosts_memory_too(plans, monkeypatch, available, end):
    """The optimizer state in host memory frees device memory, and takes 100 bytes of the host."""
    e, devices, needs = experiment(DDP.over(data=8)), jax.devices()[:DEVICES], sum(plans["DDP"].memory.values())
    plan = dataclasses.replace(
        plans["DDP"], device_memory_limit=0.5 * needs, host_memory_limit=available, problem="does not fit"
    )
    option = remedies.Option("sharding.optimizer_memory='host'", e, devices, 0.1 * needs, 100)
    monkeypatch.setattr(remedies, "single_changes", lambda *_: [option])
    monkeypatch.setattr(remedies, "combined_changes", lambda *_: [])
    monkeypatch.setattr(remedies, "plan_step", lambda *_: plans["DDP"])
    (line, *_) = with_remedies(plan, e, devices).remedies
    assert line.startswith("sharding.optimizer_memory='host': ") and line.endswith(end)


def test_a_search_goes_on_where_the_configs_own_mesh_does_not_divide_the_devices(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(
        searching, "candidate_shardings", lambda *_: [("config", ZERO3.over(fsdp=16)), ("DDP data=8", DDP.over(data=8))]
    )
    monkeypatch.setattr(
        searching, "try_plan", lambda e, devices, title: dataclasses.replace(instead(e, devices), name=title)
    )
    monkeypatch.setattr(searching, "describe_plan", lambda plan: "fits")
    plans = searching.search(experiment(ZERO3.over(fsdp=16)), jax.devices()[:DEVICES], lines.append)
    assert [plan.name for plan in plans] == ["DDP data=8, accum_steps=1"]
    assert lines[0].startswith("config: sharding.mesh: fsdp=16 needs 16 devices, got 8") and len(lines) == 2
    monkeypatch.setattr(searching, "candidate_shardings", lambda *_: [("config", ZERO3.over(fsdp=16))])
    with pytest.raises(UserError, match="none of 1 tables can be laid out over 8 devices; config: sharding.mesh: fsdp"):
        searching.search(experiment(ZERO3), jax.devices()[:DEVICES], lines.append)


@pytest.mark.parametrize(("donated", "more"), [((), 1), ((0,), 0)])
def test_an_output_in_the_place_of_a_donated_argument_costs_nothing(donated, more):
    x = jax.ShapeDtypeStruct((256,), "float32")
    compiled = jax.jit(lambda x: x + 1, donate_argnums=donated).lower(x).compile()
    memory = planner.compiled_memory(compiled.memory_analysis())
    assert memory["other outputs"] == more * 1024 and memory["peak"] >= (1 + more) * 1024
