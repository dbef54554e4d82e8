"""Evaluators of losses, predictions and generated texts over eight devices; ranking is in `test_evaluators.py`."""

import dataclasses

import jax
import pytest

from jaxnlp.evals.evaluator import EvaluatedModel
from jaxnlp.evals.loss import LossEvaluator
from jaxnlp.inference.bound_model import make_generator
from jaxnlp.sharding.presets import PP, TP, ZERO3
from jaxnlp.sharding.rules import Sharding
from jaxnlp.training.setup import prepare
from jaxnlp.training.step.program import build
from tests.evals import runs

MESHES = {
    "one device": Sharding(),
    "zero3": ZERO3.over(data=2, fsdp=4),
    "tensor": TP.over(data=4, tensor=2),
    "pipeline": PP.over(data=4, stage=2),
}


def without_vocab(rules):
    """The vocabulary of a byte tokenizer is not a multiple of two."""
    return None if rules is None else {**rules, "vocab": None}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["span", "tags", "pairs"])
def test_evaluations_over_a_mesh_are_those_of_one_device(name, tmp_path):
    """Losses and scores agree, and so does every prediction, with a last batch that padding completes."""
    runs.write(tmp_path, name, copies=4)
    e = runs.get_config(f"{tmp_path},{name}")
    depth = {"num_layers": 2, "scan_layers": True} | ({"num_decoder_layers": 2} if name == "pairs" else {})
    e = dataclasses.replace(e, model=e.model.with_body(**depth))
    outcomes = {}
    for mesh, sharding in MESHES.items():
        tables = {field: without_vocab(getattr(sharding, field)) for field in ("params", "gradients", "optimizer")}
        meshed, tokenizer = prepare(dataclasses.replace(e, sharding=dataclasses.replace(sharding, **tables)))
        program = build(meshed, jax.devices()[: 1 if mesh == "one device" else 8])
        params = jax.tree.map(lambda x: x * 8, program.init().params)  # initial parameters give nearly equal logits
        model = EvaluatedModel(program, params, tokenizer, lambda p=program, t=tokenizer: make_generator(p.bind(t)))
        outcomes[mesh] = [evaluator.evaluate(model) for evaluator in (LossEvaluator(name="loss"), *e.evaluators)]
    loss, scores = outcomes.pop("one device")
    assert len(scores.rows) == 12 and loss.metrics["loss"] > 0
    assert len({str(row["prediction"]) for row in scores.rows}) > 1
    for mesh, (meshed_loss, meshed_scores) in outcomes.items():
        assert meshed_loss.metrics == pytest.approx(loss.metrics, rel=1e-4), mesh
        assert meshed_scores.metrics == pytest.approx(scores.metrics, rel=1e-4), mesh
        assert [row["prediction"] for row in meshed_scores.rows] == [row["prediction"] for row in scores.rows], mesh
