"""Plan a run without its devices: memory, communication and step time, and a search for the best sharding.

  python -m experiments.plan --config=configs/gpt/tpu.py:7b --topology=v5e:16x16
  python -m experiments.plan --config=configs/gpt/tpu.py:7b --topology=v5p:4x4x4 --config.accum_steps=2 --out=plans
  python -m experiments.plan --config=configs/gpt/tpu.py:1b --topology=v5e:4x4 --search --tables=ZERO
  JAX_NUM_CPU_DEVICES=8 python -m experiments.plan --config=configs/gpt/parallel.py:ZERO3 --topology=local
  python -m experiments.plan --workdir=runs/tiny               compare a run's measured step with its plan

libtpu (`make tpu`) compiles the training step for the topology on this machine; "local" selects the attached devices.
Topologies: v5e:4x4, v6e:16x16, v4:4x4x4, v5p:8x8x8, tpu7x:4x4x4. v5e:1 is one chip. 2*v5e:16x16 is two slices and needs
--config.sharding.mesh.dcn="{'data': 2}". The exit status is 1 if the step does not fit in memory.

With --workdir, the speed in the run's log and the operation times in its newest trace (`train --profile_steps=10:15`)
are compared with the plan for the attached devices, or for --topology if it ran elsewhere. The comparison is written to
the run's folder.
"""

import contextlib
import dataclasses
import sys
from typing import Any

from absl import flags

from jaxnlp import cli, distributed, runtime, strict_json
from jaxnlp.errors import UserError
from jaxnlp.paths import local
from jaxnlp.scratch import replacing

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", "local", "Devices to plan for: a topology such as v5e:16x16, or local.")
SEARCH = flags.DEFINE_bool("search", False, "Rank sharding presets and microbatch counts that fit in memory.")
TABLES = flags.DEFINE_list(
    "tables", None, "With --search: only presets whose names start with these prefixes, for example ZERO3,TP."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run, to compare its measured step with the plan.")
OUT = flags.DEFINE_string(
    "out", None, "Output folder for plan.json and plan.png; with --workdir, for measured.json and measured.png."
)


def main() -> int:
    if CONFIG.value is None and WORKDIR.value is None:
        raise UserError("--config: not given; expected --config=FILE, --config_json=FILE, or --workdir of a run")
    if SEARCH.value and WORKDIR.value is not None:
        raise UserError("--search, --workdir: both are set; expected only one of them")
    # For attached devices every process plans, as compilation is collective. For a topology, only process 0 does.
    with contextlib.nullcontext(True) if TOPOLOGY.value == "local" else distributed.by_first() as works:
        return 0 if not works else planned() if WORKDIR.value is None else compared()


def compared() -> int:
    """Plans a finished or running run and compares the plan with its measurements. Returns the exit status."""
    from jaxnlp import config as configs
    from jaxnlp.figures.files import save_png
    from jaxnlp.figures.plan import draw_measured
    from jaxnlp.planning import hlo, topology
    from jaxnlp.planning.measured import measure_run, multi_step_program_text
    from jaxnlp.planning.planner import plan_step
    from jaxnlp.planning.report import format_comparison, format_plan
    from jaxnlp.training.run_folder.progress import waiting

    assert WORKDIR.value is not None
    workdir = local(WORKDIR.value)
    if CONFIG.value is None and not (workdir / "config.json").is_file():
        raise UserError(f"--workdir={workdir}: no config.json; expected the folder of a run")
    experiment = configs.load_json(workdir / "config.json") if CONFIG.value is None else CONFIG.value
    devices = topology.topology_devices(TOPOLOGY.value)
    texts: list[str] = []
    try:
        with waiting(f"compiling for {len(devices)} x {devices[0].device_kind}"):
            experiment = resolved(experiment)
            plan = plan_step(experiment, devices, workdir.name, texts.append)
            if texts and experiment.steps_per_call > 1:
                texts = [multi_step_program_text(experiment, devices)]
    except UserError as error:
        remedy = "set the devices of the run, for example --topology=v5e:4x4 or JAX_NUM_CPU_DEVICES=8"
        raise UserError(f"{error}; {remedy}") from None
    run = measure_run(workdir, plan, hlo.instruction_classes(texts[0]) if texts else {}, experiment.steps_per_call)
    print(f"{format_plan(plan)}\n\n{format_comparison(run, plan)}")
    if distributed.first():
        out = workdir if OUT.value is None else local(OUT.value)
        save_png(draw_measured(run.to_dict(), plan.to_dict(), str(workdir)), out / "measured.png")
        comparison = {"topology": TOPOLOGY.value, "measured": run.to_dict(), "plan": plan.to_dict()}
        with replacing(out / "measured.json") as new:
            new.write_text(strict_json.dumps(comparison, indent=1) + "\n")
        print(f"written: {out / 'measured.json'}, {out / 'measured.png'}", file=sys.stderr)
    return 0


def planned() -> int:
    """Plans a config or searches for a sharding; prints and saves the result. Returns the exit status."""
    from jaxnlp.figures.files import save_png
    from jaxnlp.figures.plan import draw_plans
    from jaxnlp.planning import topology
    from jaxnlp.planning.planner import plan_step
    from jaxnlp.planning.remedies import with_remedies
    from jaxnlp.planning.report import format_plan, format_ranking
    from jaxnlp.planning.search import search
    from jaxnlp.training.run_folder.progress import waiting

    devices = topology.topology_devices(TOPOLOGY.value)
    experiment = resolved(CONFIG.value)
    log = lambda line: print(line, file=sys.stderr, flush=True)
    progress = waiting if sys.stderr.isatty() else contextlib.nullcontext  # the search logs each table itself
    if SEARCH.value:
        plans = search(experiment, devices, log, progress, TABLES.value or ())
        nothing = "no plan fits in memory; use more devices, a smaller batch, or model.remat='full'"
        print(format_ranking(plans) if plans else nothing)
    else:
        with waiting(f"compiling for {len(devices)} x {devices[0].device_kind}"):
            plan = plan_step(experiment, devices, experiment_name())
        if plan.fits:
            log(f"compiled in {plan.compile_seconds:,.0f} s")
        elif plan.device_memory_limit is not None:
            plan = with_remedies(plan, experiment, devices, topology.larger_topology(TOPOLOGY.value), waiting)
        plans = [plan]
        print(format_plan(plan))
    if OUT.value is not None and plans and distributed.first():
        out = local(OUT.value)
        plan = [p.to_dict() for p in plans]
        save_png(draw_plans(plan, f"{experiment_name()} on {TOPOLOGY.value}"), out / "plan.png")
        with replacing(out / "plan.json") as new:
            new.write_text(strict_json.dumps({"topology": TOPOLOGY.value, "plans": plan}, indent=1) + "\n")
        log(f"written: {out / 'plan.json'}, {out / 'plan.png'}")
    return 0 if plans and plans[0].fits else 1


def resolved(experiment: Any) -> Any:
    """The experiment with its vocabulary size filled in. The tokenizer is opened only if the config depends on it."""
    from jaxnlp import config as configs
    from jaxnlp.data import pipeline
    from jaxnlp.training.setup import prepare

    needs_tokenizer = getattr(experiment.peft, "text", None) or getattr(experiment.layout, "num_places", 0)
    if experiment.model.body.vocab_size is None or needs_tokenizer:
        return prepare(experiment)[0]
    configs.check(experiment)
    return dataclasses.replace(experiment, data=pipeline.resolved(experiment.data))


def experiment_name() -> str:
    """The name of the config on the command line with its variant, without folder and extension."""
    specs = [a.split("=", 1)[1] for a in sys.argv if a.startswith(("--config=", "--config_json="))]
    if not specs:
        return "plan"
    file, colon, variant = specs[-1].partition(":")
    return local(file).stem + colon + variant


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
