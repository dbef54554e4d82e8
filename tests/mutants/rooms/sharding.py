"""Faults of meshes, tables and pipeline schedules."""

from tests.mutants.mutant import Mutant

ZERO = "tests/sharding/test_constraints.py::test_zeros_stages_split_one_thing_more_each"
ONE_F_ONE_B = "tests/training/test_pipeline_step.py::test_a_pipelined_step_equals_one_without[gpt-1f1b-2 2 2]"

MUTANTS = (
    Mutant(
        id="sharding/zero1-tables-swapped",
        file="sharding/presets.py",
        old="ZERO1 = Sharding(gradients=REPLICATED, optimizer=FSDP)",
        new="ZERO1 = Sharding(gradients=FSDP, optimizer=REPLICATED)",
        fault="ZeRO 1 splits gradients in place of the optimizer's state",
        tests=(ZERO,),
    ),
    Mutant(
        id="sharding/zero3-parameters-whole",
        file="sharding/presets.py",
        old="ZERO3 = Sharding(params=FSDP, gradients=FSDP, optimizer=FSDP)",
        new="ZERO3 = Sharding(params=REPLICATED, gradients=FSDP, optimizer=FSDP)",
        fault="ZeRO 3 keeps whole parameters",
        tests=(ZERO,),
    ),
    Mutant(
        id="sharding/tensor-table-without-feed-forward",
        file="sharding/rules.py",
        old='"mlp": "tensor",\n    "heads": "tensor",\n    "kv_heads": "tensor",\n    "vocab"',
        new='"mlp": None,\n    "heads": "tensor",\n    "kv_heads": "tensor",\n    "vocab"',
        fault="tensor parallelism replicates the feed-forward layers",
        tests=("tests/sharding/test_constraints.py::test_tensor_parallel_splits_matrices_and_logits",),
    ),
    Mutant(
        id="sharding/zero3-gather-missing",
        file="sharding/rules.py",
        old="tuple(a for a in as_tuple(axes) if a not in batch)",
        new="tuple(a for a in as_tuple(axes) if a)",
        fault="parameters split over the batch's axes are not gathered where they are used",
        tests=(ZERO, "tests/sharding/test_constraints.py::test_gathered_parameters_are_let_go_and_gathered_again"),
    ),
    Mutant(
        id="sharding/mesh-axis-of-the-rest",
        file="sharding/mesh.py",
        old="sizes[axis] = num_devices // fixed",
        new="sizes[axis] = num_devices // (fixed + 1)",
        fault="an axis of -1 takes too few devices",
        tests=("tests/sharding/test_rules.py::test_mesh_sizes",),
    ),
    Mutant(
        id="sharding/pipeline-output-a-tick-early",
        file="sharding/pipeline.py",
        old="leaving = sorted((i, t + p - 1)",
        new="leaving = sorted((i, t + p - 2)",
        fault="what leaves a pipeline is taken a tick early",
        tests=("tests/training/test_meshes.py::test_eight_devices_equal_one[gpt-PP data 4 stage 2, circular]",),
    ),
    Mutant(
        id="sharding/1f1b-ring-too-short",
        file="sharding/pipeline.py",
        old="count, ring_size = m + 2 * (p - 1), 2 * p - 1",
        new="count, ring_size = m + 2 * (p - 1), 2 * p - 4",  # the first stage computes its inputs: 2 p - 3 would do
        fault="1F1B overwrites an input that its backward pass still reads",
        tests=("tests/training/test_pipeline_step.py::test_a_pipelined_step_equals_one_without[gpt-1f1b-stage 4]",),
        tier="slow",
    ),
    Mutant(
        id="sharding/1f1b-sums-of-every-stage",
        file="sharding/pipeline.py",
        old="masked(valid & is_last, sums)",
        new="masked(valid, sums)",
        fault="1F1B adds up the loss of every stage",
        tests=(ONE_F_ONE_B,),
    ),
    Mutant(
        id="sharding/1f1b-sum-over-devices-dropped",
        file="sharding/pipeline.py",
        old="return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), total)",
        new="return jax.tree.map(lambda leaf: leaf[0], total)",
        fault="gradients of 1F1B are those of the first device's rows",
        tests=(ONE_F_ONE_B,),
    ),
    Mutant(
        id="sharding/bubble-without-virtual-stages",
        file="sharding/pipeline.py",
        old="return 1 - schedule.virtual_stages * microbatches / ticks(schedule, stages, microbatches)",
        new="return 1 - microbatches / ticks(schedule, stages, microbatches)",
        fault="the circular schedule's bubble is overstated",
        tests=("tests/sharding/test_pipeline.py::test_the_bubble_counted_is_the_formula",),
    ),
    Mutant(
        id="sharding/data-parallel-sum-dropped",
        file="sharding/data_parallel.py",
        old="total = jax.tree.map(lambda *g: sum(g), *grads)",
        new="total = jax.tree.map(lambda *g: g[0], *grads)",
        fault="naive data parallelism updates by the first device's gradients",
        tests=("tests/experiments/test_data_parallel.py::test_both_train_as_one_device",),
        tier="slow",
    ),
    Mutant(
        id="sharding/ring-bytes",
        file="sharding/data_parallel.py",
        old="return 2 * size * (num_devices - 1) // num_devices",
        new="return size * (num_devices - 1) // num_devices",
        fault="the formula of a ring's all-reduce counts one of its two passes",
        tests=("tests/experiments/test_data_parallel.py::test_the_bytes_moved_are_the_formulas",),
        tier="slow",
    ),
)
