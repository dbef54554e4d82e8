"""Activation memory of GPT-2 1.5B under each remat policy, from programs compiled for a TPU.

  python -m experiments.bench.activations        writes activations.json (docs/measurements) and activations.png

The setting is the example of the ZeRO paper (Rajbhandari et al. 2020, arXiv:1910.02054, section 3): sequence 1,024 and
batch 32, here in bfloat16 with flash attention on one v5p chip. A row is the temporaries of the compiled gradient
function. If batch 32 does not fit, the function is compiled at batches 2 and 4, and the difference per sequence is
multiplied by 32. For comparison the table has the paper's rule of thumb, 60 GB, and the formulas of Korthikanti et al.
2022 (arXiv:2205.05198). None of them includes the logits, which take another 4 bytes per token and vocabulary entry.

Needs libtpu (`make tpu`) but no TPU. The seven compilations take about a minute each on two cores.
"""

import dataclasses
import sys
from typing import Any

from absl import flags

from jaxnlp import cli, distributed, runtime, strict_json
from jaxnlp.errors import UserError
from jaxnlp.paths import local

JSON = flags.DEFINE_string("json", "docs/measurements/activations.json", "JSON file to write.")
OUT = flags.DEFINE_string("out", "docs/images/activations.png", "PNG file to write.")

TOPOLOGY, LENGTH, BATCH = "v5p:1x1x1", 1024, 32
SIZES = (2, 4)  # batch sizes to compile if the full one does not fit
POLICIES = ("none", "dots", "names", "offload", "full")


def main() -> None:
    from jaxnlp.figures.files import save_png

    model = experiment("none", 1).model
    count, size = states()
    results: dict[str, Any] = {"parameters": count, "model states": size, "formulas": formulas(model)}
    results["rows"] = [measured(policy) for policy in POLICIES]
    print(table(results))
    save_png(picture(results), local(OUT.value))
    try:
        local(JSON.value).write_text(strict_json.dumps(results, indent=1) + "\n")
    except OSError as e:
        raise UserError(f"--json={JSON.value}: cannot be written ({e.strerror})") from None
    print(f"written: {JSON.value}, {OUT.value}")


def experiment(policy: str, batch: int) -> Any:
    """configs/gpt/gpt2.py:xl-tpu in bfloat16, with float32 master parameters in the optimizer state."""
    from jaxnlp.nn.policy import Policy

    e = cli.load("configs/gpt/gpt2.py:xl-tpu")
    precision = Policy(param_dtype="bfloat16", compute_dtype="bfloat16")
    model = dataclasses.replace(e.model, remat=policy, policy=precision)
    data = dataclasses.replace(e.data, seq_len=LENGTH, batch_size=batch)
    optim = dataclasses.replace(e.optim, master_dtype="float32")
    return dataclasses.replace(e, model=model, data=data, optim=optim, accum_steps=1)


def formulas(model: Any) -> dict[str, float]:
    """Activation bytes at the full batch by the papers' formulas, without logits, and the bytes of the logits."""
    from jaxnlp.planning.memory_formulas import activation_bytes, rule_of_thumb_bytes

    sizes = (model.num_layers, LENGTH, BATCH, model.embed_dim)
    return {
        "ZeRO's rule of thumb": rule_of_thumb_bytes(*sizes),
        "Megatron, 34sbhL + 5as\u00b2bL": activation_bytes(*sizes, model.num_heads),
        "Megatron, 34sbhL": activation_bytes(*sizes, model.num_heads, recompute="selective"),
        "Megatron, 2sbhL": activation_bytes(*sizes, model.num_heads, recompute="full"),
        "logits": 4.0 * LENGTH * BATCH * model.vocab_size,
    }


def measured(policy: str) -> dict[str, Any]:
    """Activation bytes on the device and on the host at the full batch, and the batch sizes that were compiled.

    Raises:
        UserError: the smaller batches do not fit either.
    """
    batch_sets: tuple[tuple[int, ...], ...] = ((BATCH,), SIZES)
    for sizes in batch_sets:
        results = [compiled(policy, batch) for batch in sizes]  # None: out of memory
        if None not in results:
            break
    else:
        raise UserError(f"remat={policy!r}: batch sizes {BATCH} and {SIZES[-1]} do not fit in the memory of {TOPOLOGY}")
    row = {"policy": policy, "batches": list(sizes)}
    for name, part in (("activations", "temporaries"), ("host", "host")):
        sizes_by_batch: list[int] = [result[part] for result in results if result is not None]
        row[name] = (
            sizes_by_batch[0]
            if len(sizes_by_batch) == 1
            else (sizes_by_batch[1] - sizes_by_batch[0]) / (SIZES[1] - SIZES[0]) * BATCH
        )
    return row


def compiled(policy: str, batch: int) -> dict[str, int] | None:
    from jaxnlp.planning.gradients import compiled_bytes, lowered_gradients
    from jaxnlp.planning.topology import topology_devices
    from jaxnlp.training.step.program import build

    print(f"compiling {policy}, batch {batch}", file=sys.stderr, flush=True)
    return compiled_bytes(lowered_gradients(build(experiment(policy, batch), topology_devices(TOPOLOGY))))


def states() -> tuple[int, int]:
    """(number of parameters, bytes of parameters, gradients and optimizer state)."""
    import jax

    from jaxnlp.planning.dry_run import abstract_gradients, device_bytes
    from jaxnlp.planning.topology import topology_devices
    from jaxnlp.training.step.program import build

    program = build(experiment("none", 1), topology_devices(TOPOLOGY))
    state = program.abstract
    trees = (state.params, abstract_gradients(program), state.opt_state)
    return sum(x.size for x in jax.tree.leaves(state.params)), sum(map(device_bytes, jax.tree.leaves(trees)))


def table(results: dict[str, Any]) -> str:
    """All results as text, and the policy closest to the rule of thumb."""
    from jaxnlp.figures.parallelism import amount

    lines = [
        f"{results['parameters']:,} parameters: model states {amount(results['model states'])} (16 bytes a parameter)"
    ]
    lines += [f"{name:28} {amount(size):>9}" for name, size in results["formulas"].items()]
    lines.append(f"{'remat':10}{'device':>9}{'host':>9}  at batch {BATCH}")
    for row in results["rows"]:
        host = amount(row["host"]) if row["host"] else "-"
        slope = "" if row["batches"] == [BATCH] else f"  by the slope from batch {SIZES[0]} to {SIZES[1]}"
        lines.append(f"{row['policy']:10}{amount(row['activations']):>9}{host:>9}{slope}")
    aim = results["formulas"]["ZeRO's rule of thumb"]
    nearest = min(results["rows"], key=lambda row: abs(row["activations"] - aim))
    lines.append(f"nearest to {amount(aim)}: remat={nearest['policy']!r}")
    return "\n".join(lines)


def picture(results: dict[str, Any]) -> Any:
    """A bar chart of the rows with the formulas as vertical lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 4.2), dpi=100)
    axis = figure.subplots()
    names = [row["policy"] for row in results["rows"]]
    for part, colour, label in (("activations", "#7ea6d9", "device"), ("host", "#f0a35e", "host")):
        offsets = [0.0 if part == "activations" else row["activations"] / 1e9 for row in results["rows"]]
        axis.barh(
            names, [row[part] / 1e9 for row in results["rows"]], left=offsets, color=colour, height=0.62, label=label
        )
    for y, row in enumerate(results["rows"]):
        text = f"{row['activations'] / 1e9:.3g}" + (f" + {row['host'] / 1e9:.3g}" if row["host"] else "")
        axis.text(
            (row["activations"] + row["host"]) / 1e9,
            y,
            text,
            va="center",
            fontsize=8,
            zorder=3,
            bbox={"fc": "white", "ec": "none", "pad": 0.5},
        )
    lines = [(name, size) for name, size in results["formulas"].items() if name != "logits"]
    for (name, size), style in zip(lines, ("-", "--", "-.", ":"), strict=True):
        axis.axvline(size / 1e9, color="0.2", lw=1.1, ls=style, label=f"{name}: {size / 1e9:.3g}")
    axis.invert_yaxis()
    axis.set_xlabel(f"GB of temporaries at batch {BATCH}, sequence {LENGTH}", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, framealpha=1, edgecolor="white", loc="lower right", bbox_to_anchor=(0.93, 0))
    figure.suptitle("Activations of GPT-2 1.5B by remat policy", x=0.02, ha="left", fontsize=11, weight="bold")
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.FIRST)
