"""Draw a pipeline schedule (which microbatch each stage runs at each tick) and compare its bubble with the formula.

  python -m experiments.figures.pipeline --schedule=gpipe --stages=4 --microbatches=8 --out=gpipe.png
  python -m experiments.figures.pipeline --schedule=circular --virtual_stages=2 --stages=4 --microbatches=8

Schedules: naive, gpipe, 1f1b, circular (`jaxnlp/sharding/pipeline.py`). The bubble is the fraction of all stages' time
without useful work. Forward and backward passes are drawn with equal duration.
"""

from absl import flags

from jaxnlp import cli, distributed, runtime
from jaxnlp.errors import UserError
from jaxnlp.paths import local

SCHEDULE = flags.DEFINE_string("schedule", "gpipe", "naive, gpipe, 1f1b or circular.")
STAGES = flags.DEFINE_integer("stages", 4, "Number of stages (p).")
MICROBATCHES = flags.DEFINE_integer("microbatches", 8, "Number of microbatches per batch (m).")
VIRTUAL_STAGES = flags.DEFINE_integer("virtual_stages", 2, "Virtual stages per stage of the circular schedule (v).")
OUT = flags.DEFINE_string("out", None, "PNG file to write.")


def main() -> None:
    from jaxnlp.figures.files import save_png
    from jaxnlp.figures.pipeline import draw_schedule
    from jaxnlp.sharding.pipeline import SCHEDULES, bubble, idle, ticks, timetable

    p, m, v = STAGES.value, MICROBATCHES.value, VIRTUAL_STAGES.value
    for name, size in (("stages", p), ("microbatches", m), ("virtual_stages", v)):
        if size < 1:
            raise UserError(f"--{name}={size}: expected a positive number")
    if SCHEDULE.value not in SCHEDULES:
        raise UserError(f"--schedule={SCHEDULE.value}: expected one of {', '.join(SCHEDULES)}")
    if OUT.value is not None and not OUT.value.lower().endswith(".png"):
        raise UserError(f"--out={OUT.value}: expected a file name that ends in .png")
    kind = SCHEDULES[SCHEDULE.value]
    schedule = kind(virtual_stages=v) if SCHEDULE.value == "circular" else kind()
    if schedule.virtual_stages > 1 and m % p:
        raise UserError(f"--microbatches={m}: virtual stages need a multiple of --stages={p}; use {-(-m // p) * p}")
    table = timetable(schedule, p, m)
    print(f"{SCHEDULE.value}, {p} stages, {m} microbatches: {2 * ticks(schedule, p, m)} time slots")
    print(f"bubble, counted        {idle(table):.4f}")
    print(f"bubble, formula        {bubble(schedule, p, m):.4f} = {FORMULAS[SCHEDULE.value]}")
    print(f"(p - 1) / (m + p - 1)  {(p - 1) / (m + p - 1):.4f}")
    if OUT.value is not None:
        cells = [[None if w is None else (w.microbatch, w.forward, w.virtual_stage) for w in slot] for slot in table]
        title = f"{SCHEDULE.value}, {p} stages, {m} microbatches: bubble {100 * idle(table):.1f}%"
        save_png(draw_schedule(cells, title), local(OUT.value))
        print(f"written: {OUT.value}")


FORMULAS = {
    "naive": "1 - 1 / p",
    "gpipe": "(p - 1) / (m + p - 1)",
    "1f1b": "2 (p - 1) / (m + 2 (p - 1)), all stages in lockstep",
    "circular": "(p - 1) / (v m + p - 1)",
}


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.FIRST)
