"""Faults of the plain helpers: configs, the command line, trees, old names; and of figures."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        id="config/tuples-become-lists",
        file="config.py",
        old='return tuple(from_dict(v, f"{path}[{i}]") for i, v in enumerate(data))',
        new='return [from_dict(v, f"{path}[{i}]") for i, v in enumerate(data)]',
        fault="a tuple comes back from JSON as a list",
        tests=("tests/test_config.py::test_json_round_trip_keeps_values_and_classes",),
    ),
    Mutant(
        id="config/unknown-field-dropped",
        file="config.py",
        old="        if name not in field_names:\n            raise UserError(",
        new="        if name is field_names:\n            raise UserError(",
        fault="an unknown field of a saved config is not named",
        tests=("tests/test_config.py::test_json_with_an_unknown_field_says_which_and_what_is_near",),
    ),
    Mutant(
        id="config/truth-values-are-numbers",
        file="config.py",
        old="return isinstance(value, int) and not isinstance(value, bool)",
        new="return isinstance(value, int)",
        fault="a field of type int takes True",
        tests=("tests/test_config.py::test_check_names_field_value_and_remedy",),
    ),
    Mutant(
        id="uncaught/errors-exit-with-0",
        file="uncaught.py",
        old='return 2, f"error: {_line(error)}"',
        new='return 0, f"error: {_line(error)}"',
        fault="an entry point that failed exits with status 0",
        tests=("tests/experiments/test_split.py::test_bad_input_is_one_line",),
    ),
    Mutant(
        id="cli/none-is-a-string",
        file="cli.py",
        old='set_to_none = [a for a in overrides if a.endswith("=None")]',
        new="set_to_none = [a for a in overrides if a is None]",
        fault="--config.x=None does not set None",
        tests=("tests/experiments/test_entry_points.py", "tests/experiments/test_training.py"),
    ),
    Mutant(
        id="trees/base-wins",
        file="trees.py",
        old="return {**base, **{name: merge(base.get(name, {}), x) for name, x in tuned.items()}}",
        new="return {**{name: merge(base.get(name, {}), x) for name, x in tuned.items()}, **base}",
        fault="the base's parameters replace the tuned ones",
        tests=("tests/peft/test_properties.py::test_identity_at_the_start_and_merged_equals_live",),
    ),
    Mutant(
        id="renamed/old-fields-dropped",
        file="renamed.py",
        old='moved = f"{MODULES.get(module, module)}:{cls}"',
        new='moved = f"{module}:{cls}"',
        fault="configs that name a moved module do not load",
        tests=("tests/test_renamed.py::test_every_config_saved_before_the_renames_loads",),
    ),
    Mutant(
        id="figures/pipeline-row",
        file="figures/pipeline.py",
        old="axis.add_patch(Rectangle((t, stage), 1, 1,",
        new="axis.add_patch(Rectangle((stage, t), 1, 1,",
        fault="a pipeline's cells are drawn at (stage, time)",
        tests=("tests/figures/test_pipeline.py::test_every_cell_is_drawn_in_its_place",),
    ),
)
