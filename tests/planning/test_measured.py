"""Comparison of a run's measured step with its plan, from the log and from traces of three kinds of devices."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest

from jaxnlp import config as configs
from jaxnlp.planning import hlo
from jaxnlp.planning.measured import (
    Measured,
    Trace,
    measure_run,
    multi_step_program_text,
    newest_trace,
    operation_class,
    step_operations,
)
from jaxnlp.planning.report import format_comparison
from jaxnlp.planning.step_plan import StepPlan
from tests.entry import ROOT, run

PLAN = StepPlan(
    name="a",
    device="TPU v5 lite",
    num_devices=2,
    mesh={"data": 2},
    parameters=10,
    tokens=1000,
    accum_steps=1,
    memory={},
    host_memory={},
    zero_formula={},
    device_memory_limit=None,
    flops=4e12,
    peak_flops=2e14,
    peak_source="",
    seconds={"compute": 0.01, "ICI data": 0.02},
)


def test_the_log_gives_the_step_and_its_arithmetic(tmp_path):
    rows = [
        {"step": n, "kind": "train", "tokens_per_second": rate, "mfu": rate / 1e5}
        for n, rate in ((1, 1e4), (2, 2e4), (3, 9e4))
    ]
    rows += [{"step": 3, "kind": "validation", "tokens_per_second": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = measure_run(tmp_path, PLAN, {})
    assert (measured.rows, measured.step_seconds, measured.tokens_per_second, measured.mfu, measured.trace) == (
        3,
        0.05,
        2e4,
        0.2,
        None,
    )
    assert measured.flops == 4e12 / 2 / 0.05
    text = format_comparison(measured, PLAN)
    assert "50.00 ms" in text and "20.00 ms" in text and "no trace: train with --profile_steps" in text
    assert "takes 2.50 times its lower bound, set by ICI data" in text
    unknown = format_comparison(
        dataclasses.replace(measured, mfu=None), dataclasses.replace(PLAN, seconds={}, peak_flops=None)
    )
    assert unknown.count("unknown") == 5


def test_a_trace_is_told_by_class():
    trace = Trace(
        "x",
        4,
        0.06,
        dict(zip(("matrix products", "collectives", "other operations"), (0.02, 0.01, 0.01), strict=True)),
        {"dot.1": 0.02},
    )
    text = format_comparison(Measured(3, 0.05, 2e4, 4e13, None, trace), PLAN)
    lines = {line.split("  ")[1].strip(): line for line in text.splitlines() if line.startswith("  ")}
    assert (
        "20.00 ms" in lines["matrix products"]
        and "50.0%" in lines["matrix products"]
        and "10.00 ms" in lines["matrix products"]
    )
    assert "25.0%" in lines["collectives"] and "unknown" in lines["other operations"]
    assert "longest: dot.1 50%" in text


TEXT = """HloModule jit_step

%inner (p: f32[8]) -> f32[8] {
  ROOT %d.1 = f32[8]{0} dot(%p, %p)
}

%body (b: f32[8]) -> f32[8] {
  %fusion.2 = f32[8]{0} fusion(%b), kind=kOutput, calls=%inner
  %ar.3 = f32[8]{0} all-reduce-start(%fusion.2), replica_groups={}, to_apply=%add
  ROOT %ar.4 = f32[8]{0} all-reduce-done(%ar.3)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w.5 = f32[8]{0} while(%p), condition=%cond, body=%body
  %c.6 = f32[8]{0} custom-call(%w.5), custom_call_target="__cublas$gemm"
  ROOT %a.7 = f32[8]{0} add(%c.6, %c.6)
}
"""


def test_an_instruction_is_what_is_in_it():
    classes = hlo.instruction_classes(TEXT)
    assert classes["fusion.2"] == classes["c.6"] == hlo.MATMUL
    assert classes["ar.3"] == classes["ar.4"] == hlo.COLLECTIVE
    assert classes["w.5"] == hlo.LOOP and classes["a.7"] == hlo.OTHER
    assert operation_class("fusion.2", "", classes) == hlo.MATMUL
    # Operations of other programs: by name, and by a TPU's category.
    assert (
        operation_class("gemm_fusion_dot.7", "", {}) == hlo.MATMUL
        and operation_class("fusion.9", "convolution fusion", {}) == hlo.MATMUL
    )
    assert (
        operation_class("all-gather-start.1", "", {}) == hlo.COLLECTIVE
        and operation_class("convert_fusion", "", {}) == hlo.OTHER
    )
    assert operation_class("while.3", "", {}) == hlo.LOOP


def event(name, start=0.0, took=5.0, **stats):
    return SimpleNamespace(name=name, start_ns=start, duration_ns=took, stats=list(stats.items()))


def plane(name, **lines):
    return SimpleNamespace(name=name, lines=[SimpleNamespace(name=k, events=events) for k, events in lines.items()])


@pytest.mark.parametrize(
    ("where", "line", "shown", "wanted"),
    [
        (
            "/host:CPU",
            "tf_XLAEigen/1",
            event("dot.1", hlo_op="dot.1", hlo_module="jit_step", device_ordinal=3),
            ("3", "dot.1", ""),
        ),
        (
            "/device:GPU:1",
            "Stream #7",
            event("nvjet_x", hlo_op="gemm.1", hlo_module="jit_step"),
            ("/device:GPU:1", "gemm.1", ""),
        ),
        (
            "/device:TPU:0",
            "XLA Ops",
            event("%fusion.1 = f32[8] fusion(%a)", hlo_category="loop fusion"),
            ("/device:TPU:0", "fusion.1", "loop fusion"),
        ),
        ("/device:TPU:0", "Steps", event("1"), None),
        ("/host:CPU", "python", event("isinstance"), None),
        ("/device:GPU:1", "Stream #7", event("x", hlo_op="dot.1", hlo_module="jit_eval_step"), None),
    ],
)
def test_operations_of_each_kind_of_device(where, line, shown, wanted):
    data = SimpleNamespace(planes=[plane(where, **{line: [shown]})])
    operations = [(device, name, category) for device, name, _, _, category in step_operations(data)]
    assert operations == ([] if wanted is None else [wanted])


def test_a_tpus_operations_are_those_of_the_step_alone():
    modules = [event("jit_step(12)", 0, 10), event("jit_eval_step(7)", 10, 10), event("jit_step(12)", 20, 10)]
    ops = [event(f"%fusion.{i} = f32[8] fusion(%a)", start, 2) for i, start in enumerate((0, 8, 10, 18, 20, 28, 30))]
    chip = plane("/device:TPU:0", **{"XLA Modules": modules, "XLA Ops": ops})
    names = [name for _, name, *_ in step_operations(SimpleNamespace(planes=[chip]))]
    assert names == ["fusion.0", "fusion.1", "fusion.4", "fusion.5"]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_trace_of_calls_is_told_by_steps(tmp_path, monkeypatch, steps):
    marks = plane("/host:CPU", python=[event("train", step_num=n) for n in (5, 7)])
    modules = [event("jit_step(1)", start, 10) for start in (0, 30)]
    ops = [event("%dot.1 = f32[8] dot(%a)", start, 6) for start in (0, 30)]
    chip = plane("/device:TPU:0", **{"XLA Modules": modules, "XLA Ops": ops})
    (tmp_path / "profile/plugins/profile/a").mkdir(parents=True)
    (tmp_path / "profile/plugins/profile/a/host.xplane.pb").touch()
    monkeypatch.setattr("jax.profiler.ProfileData.from_file", lambda path: SimpleNamespace(planes=[marks, chip]))
    trace = newest_trace(tmp_path, {}, steps)
    assert trace is not None and trace.steps == 2 * steps
    assert trace.step_seconds == pytest.approx(36e-9 / 2 / steps)
    assert trace.by_class[hlo.MATMUL] == pytest.approx(6e-9 / steps)


@pytest.mark.slow
def test_a_run_of_two_steps_a_call(tmp_path):
    fields = {
        "num_steps": 12,
        "log_every": 2,
        "eval_every": 8,
        "eval_batches": 1,
        "checkpoint_every": 0,
        "sample_tokens": 0,
    }
    sizes = {"model.num_layers": 1, "model.embed_dim": 64, "optim.warmup_steps": 2, "steps_per_call": 2}
    flags = [f"--config.{name}={value}" for name, value in {**fields, **sizes}.items()]
    config = f"--config={ROOT / 'configs/gpt/tiny.py'}"
    done = run("experiments.train", config, f"--workdir={tmp_path}", "--profile_steps=7:10", *flags)
    assert done.code == 0, done.err
    done = run("experiments.plan", f"--workdir={tmp_path}")
    assert done.code == 0 and "trace of 4 steps" in done.out, done.out + done.err
    trace = json.loads((tmp_path / "measured.json").read_text())["measured"]["trace"]
    assert trace["by_class"][hlo.MATMUL] > 0 and trace["by_class"][hlo.OTHER] > 0
    # An evaluation between the two calls is a different program, so all operations belong to the step.
    e = configs.load_json(tmp_path / "config.json")
    (file,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    seen = {name for _, name, *_ in step_operations(jax.profiler.ProfileData.from_file(str(file)))}
    assert seen and seen <= set(hlo.instruction_classes(multi_step_program_text(e, jax.devices()[:1])))


@pytest.mark.slow
def test_a_run_is_put_beside_its_plan(tmp_path):
    eight, sizes = {"JAX_NUM_CPU_DEVICES": "8"}, {"model.num_layers": 1, "model.embed_dim": 64, "optim.warmup_steps": 2}
    fields = {
        "num_steps": 12,
        "log_every": 2,
        "eval_every": 0,
        "eval_batches": 1,
        "checkpoint_every": 0,
        "sample_tokens": 0,
        **sizes,
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    config = f"--config={ROOT / 'configs/gpt/parallel.py'}:ZERO3"
    done = run("experiments.train", config, f"--workdir={tmp_path}", "--profile_steps=6:9", *flags, env=eight)
    assert done.code == 0, done.err
    done = run("experiments.plan", f"--workdir={tmp_path}", env=eight)
    assert done.code == 0, done.err
    assert "mesh fsdp=8" in done.out and "trace of 4 steps" in done.out and "matrix products" in done.out
    stored = json.loads((tmp_path / "measured.json").read_text())
    trace = stored["measured"]["trace"]
    assert trace["steps"] == 4 and all(seconds > 0 for seconds in trace["by_class"].values())
    assert stored["plan"]["seconds"]["compute"] > 0 and stored["measured"]["mfu"] < 1
    assert (tmp_path / "measured.png").read_bytes().startswith(b"\x89PNG")
    alone = run("experiments.plan", f"--workdir={tmp_path}", env={"JAX_NUM_CPU_DEVICES": "3"})
    assert alone.code == 2 and "set the devices of the run" in alone.err and alone.err.count("error:") == 1


def test_a_folder_without_a_run_is_one_line(tmp_path):
    done = run("experiments.plan", f"--workdir={tmp_path}")
    assert done.code == 2 and done.err == f"error: --workdir={tmp_path}: no config.json; expected the folder of a run\n"
