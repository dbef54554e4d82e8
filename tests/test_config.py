"""Configs: checks that name a field's full path, JSON round trip, comparison."""

import dataclasses
import json

import pytest

from jaxnlp import config as configs
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn import kernels, mlp, norms, positions
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment


def experiment(**fields) -> Experiment:
    model = GPTConfig(
        vocab_size=65, max_length=32, num_layers=2, num_heads=2, embed_dim=16, positions=positions.Rotary(base=500.0)
    )
    return Experiment(**{"model": model, "data": DataConfig(seq_len=16, batch_size=4), **fields})


def test_json_round_trip_keeps_values_and_classes(tmp_path):
    model = GPTConfig(
        norm=norms.RMSNorm(), mlp=mlp.GatedMLP(), attention=kernels.Blocked(block=8), qk_norm=norms.RMSNorm()
    )
    old = experiment(model=model, optim=OptimConfig(no_decay=("a", "b")))
    configs.save_json(old, tmp_path / "c.json")
    new = configs.load_json(tmp_path / "c.json")
    assert new == old
    assert isinstance(new.model.norm, norms.RMSNorm) and new.optim.no_decay == ("a", "b")
    assert new.sharding.activations["batch"] == ("data", "fsdp")


def test_diff_names_leaves_and_classes():
    old = experiment()
    new = dataclasses.replace(old, num_steps=7, model=dataclasses.replace(old.model, positions=positions.Learned()))
    changes = configs.diff(old, new)
    assert ("num_steps", 1000, 7) in changes
    assert ("model.positions", "Rotary()", "Learned()") in changes
    assert ("model.positions.base", 500.0, "-") in changes
    assert configs.diff(old, experiment()) == []


def test_a_fork_differs_from_the_class_of_its_name():
    fork = dataclasses.make_dataclass(
        "GPTConfig", [], bases=(GPTConfig,), kw_only=True, namespace={"__module__": "my_model"}
    )
    assert configs.diff(experiment(model=GPTConfig()), experiment(model=fork())) == [
        ("model", "jaxnlp.models.gpt:GPTConfig()", "my_model:GPTConfig()")
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: setattr(e, "num_steps", "100"), r"^num_steps='100': expected int, got str$"),
        (lambda e: setattr(e, "num_steps", 0), r"^num_steps=0: expected a positive number$"),
        (lambda e: setattr(e.model, "num_layers", -2), r"^model.num_layers=-2: "),
        (lambda e: setattr(e.model, "num_heads", 3), r"^model.num_heads=3: does not divide embed_dim=16; use 2"),
        (lambda e: setattr(e.model, "num_kv_heads", 4), r"^model.num_kv_heads=4: does not divide num_heads=2"),
        (
            lambda e: setattr(e.model.policy, "compute_dtype", "bf16"),
            r"^model.policy.compute_dtype='bf16': expected one of",
        ),
        (lambda e: setattr(e.model.positions, "base", -1.0), r"^model.positions.base=-1.0: "),
        (
            lambda e: setattr(e.model, "attention_softcap", 2) or setattr(e.model, "attention", kernels.DotProduct()),
            "softcap",
        ),
        (lambda e: setattr(e.data, "seq_len", 16.0), r"^data.seq_len=16.0: expected int, got float"),
        (lambda e: setattr(e.data, "batch_size", True), r"^data.batch_size=True: expected int, got bool"),
        (lambda e: setattr(e, "accum_steps", 3), r"^accum_steps=3: does not divide data.batch_size=4"),
        (lambda e: setattr(e, "steps_per_call", 7), r"^num_steps=1000: not a multiple of steps_per_call=7"),
        (lambda e: setattr(e.optim, "learning_rate", -0.1), r"^optim.learning_rate=-0.1: "),
        (
            lambda e: setattr(e.optim, "warmup_steps", 2000),
            r"^optim.warmup_steps=2000: expected fewer than the schedule's 1000",
        ),
        (lambda e: setattr(e.optim, "no_decay", ("(",)), r"^optim.no_decay='\(': not a regular expression"),
        (lambda e: setattr(e.sharding.mesh, "fsdp", -1), r"^sharding.mesh.fsdp=-1: only one axis"),
        (lambda e: e.sharding.params.update(mlp="model"), r"^sharding.params\['mlp'\]='model': no such mesh axis"),
        (lambda e: setattr(e, "on_nonfinite", "ignore"), r"^on_nonfinite='ignore': expected 'stop' or 'skip'"),
    ],
)
def test_check_names_field_value_and_remedy(change, message):
    e = experiment()
    configs.check(e)
    change(e)
    with pytest.raises(FieldError, match=message):
        configs.check(e)


def test_learned_positions_bound_the_sequence():
    e = experiment(model=GPTConfig(max_length=8, num_heads=2, embed_dim=16))
    with pytest.raises(FieldError, match=r"^data.seq_len=16: exceeds model.max_length=8"):
        configs.check(e)


def test_json_with_an_unknown_field_says_which_and_what_is_near(tmp_path):
    data = configs.to_dict(experiment())
    data["model"]["num_layer"] = 3
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"model.num_layer: GPTConfig has no such field; did you mean 'num_layers'\?"):
        configs.load_json(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "invalid JSON"),
        ("[1]", "not a config"),
        ('{"class": "nowhere:X"}', "'nowhere:X' cannot be imported"),
        ('{"class": "json:dumps"}', "is not a dataclass"),
    ],
)
def test_json_that_is_no_config(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match=message):
        configs.load_json(tmp_path / "c.json")


def test_override_paths():
    configs.check_path(experiment(), "model.positions.base")
    with pytest.raises(
        UserError, match=r"--config.model.num_layer: GPTConfig has no field 'num_layer'; did you mean 'num_layers'\?"
    ):
        configs.check_path(experiment(), "model.num_layer")
    with pytest.raises(UserError, match="has no fields"):
        configs.check_path(experiment(), "num_steps.x")


def test_configs_saved_before_the_kernels_moved_still_load():
    data = configs.to_dict(Experiment(model=GPTConfig()))
    text = json.dumps(data).replace("jaxnlp.nn.kernels:", "jaxnlp.nn.attention:")
    assert text != json.dumps(data)
    assert configs.from_dict(json.loads(text)) == Experiment(model=GPTConfig())
