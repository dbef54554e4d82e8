"""Faults of the accounts of memory, operations and traffic."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        id="planning/zero-stage-of-gradients",
        file="planning/memory_formulas.py",
        old="split(gradient, 2)",
        new="split(gradient, 3)",
        fault="ZeRO 2 keeps whole gradients in the formula",
        tests=("tests/planning/test_memory_formulas.py::test_states_of_7_5_billion_parameters_over_64_devices",),
    ),
    Mutant(
        id="planning/sequence-parallel-memory",
        file="planning/memory_formulas.py",
        old="sbh * (10 * residual + (24 + scores) / tensor)",
        new="sbh * (10 + (24 + scores) / tensor)",
        fault="sequence parallelism does not divide norms and dropout",
        tests=("tests/planning/test_memory_formulas.py::test_a_layer_of_gpt3",),
    ),
    Mutant(
        id="planning/loop-trips-unrolled",
        file="planning/hlo.py",
        old="-(-max(limits) // self.stride(condition, body))",
        new="max(limits)",
        fault="an unrolled loop's collectives count twice",
        tests=("tests/planning/test_hlo.py::test_a_loops_turns_from_its_condition_and_its_stride",),
    ),
    Mutant(
        id="planning/all-reduce-bytes",
        file="planning/hlo.py",
        old='(2 if self.kind == "all-reduce" else 1)',
        new="1",
        fault="an all-reduce sends as much as a reduce-scatter",
        tests=("tests/planning/test_hlo.py::test_what_a_ring_sends",),
    ),
    Mutant(
        id="planning/torus-always-wraps",
        file="planning/network.py",
        old="sum(2 if length == side >= chip.min_ring else 1 for",
        new="sum(2 for",
        fault="a part of a torus's side sends both ways",
        tests=("tests/planning/test_network.py",),
    ),
    Mutant(
        id="planning/donated-outputs-count",
        file="planning/planner.py",
        old="memory.output_size_in_bytes - memory.alias_size_in_bytes",
        new="memory.output_size_in_bytes",
        fault="donated outputs count in the compiler's account",
        tests=("tests/planning/test_planner.py::test_an_output_in_the_place_of_a_donated_argument_costs_nothing",),
    ),
    Mutant(
        id="planning/gradient-accumulators",
        file="planning/dry_run.py",
        old="width = lambda x: 4 * summed +",
        new="width = lambda x: 2 * summed +",
        fault="accumulated gradients count as 16-bit numbers",
        tests=("tests/planning/test_dry_run.py::test_the_sum_over_microbatches_is_counted_in_float32",),
    ),
    Mutant(
        id="planning/search-ranks-backwards",
        file="planning/search.py",
        old="key=lambda p: (p.step_seconds or 0.0, sum(p.seconds.values()))",
        new="key=lambda p: (-(p.step_seconds or 0.0), sum(p.seconds.values()))",
        fault="a search puts the slowest table first",
        tests=("tests/planning/test_planner.py::test_a_search_ranks_what_fits_and_tells_of_each",),
        tier="slow",
    ),
    Mutant(
        id="planning/1f1b-inputs-held",
        file="planning/activation_memory.py",
        old="(2 * stages + 1) * between",
        new="(2 * e.accum_steps + 1) * between",
        fault="1F1B's memory grows with the microbatches",
        tests=("tests/planning/test_activation_memory.py::test_a_stage_keeps_what_its_schedule_has_under_way",),
    ),
)
