"""Pipeline schedules: every microbatch passes all stages in order, one work item per stage and slot; the bubble."""

import pytest

from jaxnlp import config
from jaxnlp.errors import FieldError
from jaxnlp.sharding.pipeline import (
    Circular,
    GPipe,
    Naive,
    OneFOneB,
    Work,
    bubble,
    check_stages,
    idle,
    ticks,
    timetable,
)

SCHEDULES = [
    Naive(),
    GPipe(),
    OneFOneB(),
    Circular(virtual_stages=1),
    Circular(virtual_stages=2),
    Circular(virtual_stages=3),
]
SIZES = [(p, m) for p in (2, 4, 8) for m in range(p, 8 * p + 1)]


def when(schedule, p, m):
    """(work, stage) -> slot. A table has one cell per stage and slot, so no stage has two work items in a slot."""
    slots = {}
    for slot, row in enumerate(timetable(schedule, p, m)):
        assert len(row) == p
        for stage, work in enumerate(row):
            if work is not None:
                assert (work, stage) not in slots, "run twice"
                slots[work, stage] = slot
    return slots


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_microbatch_passes_every_stage_in_order_and_back(schedule):
    for p, m in SIZES:
        if m % p and schedule.virtual_stages > 1:
            continue
        slot_of = when(schedule, p, m)
        assert len(slot_of) == 2 * m * p * schedule.virtual_stages
        for i in range(m):
            way = [(Work(i, True, v), s) for v in range(schedule.virtual_stages) for s in range(p)]
            way += [(Work(i, False, work.virtual_stage), s) for work, s in reversed(way)]
            slots = [slot_of[step] for step in way]
            assert slots == sorted(set(slots)), (p, m, i)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_bubble_counted_is_the_formula(schedule):
    v = schedule.virtual_stages
    for p, m in SIZES:
        if m % p and v > 1:
            continue
        wanted = {
            Naive: 1 - 1 / p,
            GPipe: (p - 1) / (m + p - 1),
            OneFOneB: 2 * (p - 1) / (m + 2 * (p - 1)),
            Circular: (p - 1) / (v * m + p - 1),
        }[type(schedule)]
        table = timetable(schedule, p, m)
        assert idle(table) == pytest.approx(wanted) == bubble(schedule, p, m)
        assert len(table) == 2 * ticks(schedule, p, m)


def test_1f1b_holds_the_inputs_of_at_most_two_p_less_one_microbatches():
    for p, m in SIZES:
        slot_of = when(OneFOneB(), p, m)
        for s in range(p):
            spans = [(slot_of[Work(i, True), s], slot_of[Work(i, False), s]) for i in range(m)]
            in_flight = max(sum(a <= t < b for a, b in spans) for t in range(2 * ticks(OneFOneB(), p, m)))
            assert in_flight == min(m, 2 * (p - 1 - s) + 1) <= 2 * p - 1


def test_gpipe_holds_them_all():
    slot_of = when(GPipe(), 4, 16)
    assert max(slot_of[Work(i, True), 0] for i in range(16)) < min(slot_of[Work(i, False), 0] for i in range(16))


def test_what_cannot_be_cut_is_told():
    with pytest.raises(FieldError, match=r"model.num_layers=6: does not divide over mesh.stage=4 stages; use 8"):
        check_stages(GPipe(), 4, 6, 8)
    with pytest.raises(FieldError, match=r"model.num_layers=12: .* mesh.stage=4 x virtual_stages=2 stages; use 16"):
        check_stages(Circular(virtual_stages=2), 4, 12, 8)
    with pytest.raises(FieldError, match=r"accum_steps=6: Circular\(\) needs a multiple of mesh.stage=4; use 8"):
        check_stages(Circular(virtual_stages=2), 4, 16, 6)
    check_stages(GPipe(), 4, 8, 6)
    with pytest.raises(FieldError, match="virtual_stages=0: expected a positive number"):
        config.check(Circular(virtual_stages=0))
