"""The ZeRO paper's memory table from programs compiled for TPUs, and which stage fits which chip. Nothing is executed.

  python -m experiments.bench.zero_compiled      writes docs/measurements/zero_compiled.json

The model is a GPT of 7.5 billion parameters over 64 devices, in mixed precision (`zero.large`), with one sequence of
1,024 tokens per device. Model states are the arguments of the compiled step and the outputs of the compiled gradient
function. They are compared with the formula (Rajbhandari et al. 2020, arXiv:1910.02054, figure 1) and with the actual
peak, which includes activations and the compiler's temporaries. DDP compiles for none of these chips, so its states are
computed from its shardings.

Needs libtpu (`make tpu`) but no TPU. The ten compilations take one to four minutes each on two cores.
"""

import dataclasses
import sys
from typing import Any

from absl import flags

from experiments.bench.zero import MANY, MIXED, STAGES, formula, large, of_shardings
from jaxnlp import cli, distributed, runtime, strict_json
from jaxnlp.errors import UserError
from jaxnlp.paths import local

JSON = flags.DEFINE_string("json", "docs/measurements/zero_compiled.json", "JSON file to write.")
TABLE = flags.DEFINE_list("table", list(STAGES), f"Stages to compile for the table, of {', '.join(STAGES)}.")

TOPOLOGY = "v5p:4x4x4"
LADDER = (f"DDP@{TOPOLOGY}", "ZERO1@v6e:8x8", "ZERO2@v5e:8x8", "ZERO3@v5e:8x8")
RUNGS = flags.DEFINE_list("ladder", list(LADDER), "Pairs STAGE@TOPOLOGY to compile.")


def main() -> None:
    from jaxnlp.figures.parallelism import amount

    for stage in TABLE.value:
        if stage not in STAGES:
            raise UserError(f"--table={stage}: no such stage; expected one or more of {', '.join(STAGES)}")
    for rung in RUNGS.value:
        if rung.partition("@")[0] not in STAGES or "@" not in rung:
            raise UserError(f"--ladder={rung}: expected STAGE@TOPOLOGY, for example {LADDER[1]}")
    shares = of_shardings(large(), MANY)
    theory = formula(shares["parameters"], MANY, MIXED)
    results = stored(JSON.value) | {name: shares[name] for name in ("title", "parameters")}
    steps: dict[str, dict[str, Any]] = {}
    for stage in TABLE.value:
        result = steps[f"{stage}@{TOPOLOGY}"] = step(stage, TOPOLOGY)
        row = {"arguments": result["arguments"], "gradients": None, "peak": result["peak"], "formula": theory[stage]}
        if result["fits"]:
            row["gradients"] = gradients(stage, TOPOLOGY)
            row["states"] = row["arguments"] + row["gradients"]
        else:
            row["states"] = sum(max(part) for part in shares["bytes"][stage].values())
        results["table"][stage] = row
        peak = f"peak {amount(row['peak'])}" if result["fits"] else f"does not fit {TOPOLOGY}"
        print(f"{stage}: states {amount(row['states'])}; formula {amount(row['formula'])}; {peak}", flush=True)
        store(JSON.value, results)
    for rung in RUNGS.value:
        result = results["ladder"][rung] = steps.get(rung) or step(*rung.split("@"))
        verdict = f"fits, with a peak of {amount(result['peak'])}" if result["fits"] else "does not fit"
        print(f"{rung.replace('@', ' on ')} ({amount(result['limit'])} per chip): {verdict}", flush=True)
        store(JSON.value, results)
    print(f"written: {JSON.value}")


def stored(path: str) -> dict[str, Any]:
    """Results of an earlier run, or empty results. Rows that are not compiled again are kept.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return strict_json.loads(local(path).read_text())
    except FileNotFoundError:
        return {"table": {}, "ladder": {}}
    except (OSError, ValueError) as e:
        raise UserError(f"--json={path}: cannot be read ({e}); remove it") from None


def store(path: str, results: dict[str, Any]) -> None:
    try:
        local(path).write_text(strict_json.dumps(results, indent=1) + "\n")
    except OSError as e:
        raise UserError(f"--json={path}: cannot be written ({e.strerror})") from None


def program(stage: str, topology: str) -> Any:
    from jaxnlp.planning.topology import topology_devices
    from jaxnlp.sharding.presets import PRESETS
    from jaxnlp.training.step.program import build

    chips = topology_devices(topology)
    table = PRESETS[stage].over(**{"data" if stage == "DDP" else "fsdp": len(chips)})
    return build(dataclasses.replace(large(), sharding=table), chips)


def step(stage: str, topology: str) -> dict[str, Any]:
    """Whether the training step fits, with the memory limit, the step's arguments and its peak in bytes per device."""
    from jaxnlp.planning.gradients import compiled_bytes
    from jaxnlp.planning.memory_limits import device_memory_limit
    from jaxnlp.planning.planner import step_batch

    print(f"compiling the step of {stage} for {topology}", file=sys.stderr, flush=True)
    compiled_program = program(stage, topology)
    limit = device_memory_limit(compiled_program.mesh.devices.flat[0])
    assert limit is not None  # every chip of a topology is in `jaxnlp/hardware.py`
    sizes = compiled_bytes(compiled_program.step.lower(compiled_program.abstract, step_batch(compiled_program)))
    if sizes is None:
        return {"fits": False, "limit": limit, "arguments": None, "peak": None}
    return {"fits": sizes["peak"] <= limit, "limit": limit, "arguments": sizes["arguments"], "peak": sizes["peak"]}


def gradients(stage: str, topology: str) -> int:
    """Bytes per device of the gradients that the compiled gradient function returns."""
    from jaxnlp.planning.gradients import compiled_bytes, lowered_gradients

    print(f"compiling the gradients of {stage} for {topology}", file=sys.stderr, flush=True)
    sizes = compiled_bytes(lowered_gradients(program(stage, topology)), fast=True)
    assert sizes is not None, "the gradients do not compile, although the step does"
    return sizes["other outputs"]


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.FIRST)
