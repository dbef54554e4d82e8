"""Evaluators of losses, predictions, generated texts and a head's ranks over eight devices.

Ranking by a language model is in `test_evaluators.py`.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxnlp.evals.evaluator import EvaluatedModel
from jaxnlp.evals.loss import LossEvaluator
from jaxnlp.evals.predictions import PredictionEvaluator
from jaxnlp.inference.bound_model import make_generator
from jaxnlp.nn.ring import Ring
from jaxnlp.sharding.presets import DDP, PP, TP, ZERO3
from jaxnlp.sharding.rules import Sharding
from jaxnlp.training.setup import prepare
from jaxnlp.training.step.program import build
from tests.evals import runs

MESHES = {
    "one device": Sharding(),
    "zero3": ZERO3.over(data=2, fsdp=4),
    "tensor": TP.over(data=4, tensor=2),
    "pipeline": PP.over(data=4, stage=2),
    "sequence": DDP.over(data=2, sequence=4),  # with Ring attention
}

TABLES = ("params", "gradients", "optimizer", "activations")


def without_vocab(rules):
    """The vocabulary of a byte tokenizer is not a multiple of two."""
    return None if rules is None else {**rules, "vocab": None}


def varied(params):
    """Initial parameters would give all records the same prediction."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + (x.ndim > 1) * rng.normal(0, 0.5, x.shape).astype("float32"), params)


RECORDS = {  # all different, more than a batch of eight
    "span": [{**runs.QA, "context": f"in a b {chr(99 + i)}" + "x" * (i % 6)} for i in range(12)],
    "pairs": [{"source": "abcdefghijkl"[i:], "target": "lkj"} for i in range(12)],
    "choice": [
        {"context": "a" * (i % 5 + 1), "options": [chr(98 + i), "c" * (i % 3 + 1), "dd"], "label": i % 3}
        for i in range(12)
    ],
}


def close(values):
    """The values of a prediction, which equal those with rounding errors in its numbers."""
    parts = [x if isinstance(x, list) else [x] for x in values.values()]
    return [pytest.approx(x, rel=1e-4, abs=1e-5) if isinstance(x, float) else x for part in parts for x in part]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_evaluations_over_a_mesh_are_those_of_one_device(name, tmp_path):
    """Losses and scores agree, and so does every prediction, with a last batch that padding completes."""
    runs.write(tmp_path, name)
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, RECORDS[name])))
    e = runs.get_config(f"{tmp_path},{name}")
    depth = {"num_layers": 2, "scan_layers": True} | ({"num_decoder_layers": 2} if name == "pairs" else {})
    e = dataclasses.replace(e, model=e.model.with_body(**depth))
    evaluators = [LossEvaluator(name="loss"), *e.evaluators]
    if name == "choice":  # ranked by the head, and predicted
        evaluators.append(PredictionEvaluator(name="options"))
    outcomes = {}
    for mesh, sharding in MESHES.items():
        tables = {field: without_vocab(getattr(sharding, field)) for field in TABLES}
        attention = {"attention": Ring()} if mesh == "sequence" else {}
        meshed = dataclasses.replace(e, sharding=dataclasses.replace(sharding, **tables))
        meshed = dataclasses.replace(meshed, model=meshed.model.with_body(**attention))
        meshed, tokenizer = prepare(meshed)
        program = build(meshed, jax.devices()[: 1 if mesh == "one device" else 8])
        params = varied(program.init().params)
        model = EvaluatedModel(program, params, tokenizer, lambda p=program, t=tokenizer: make_generator(p.bind(t)))
        outcomes[mesh] = [evaluator.evaluate(model) for evaluator in evaluators]
    wanted = outcomes.pop("one device")
    for outcome in wanted[1:]:
        assert len(outcome.rows) == 12 and len({str(row["prediction"]) for row in outcome.rows}) > 3
    for mesh, of_mesh in outcomes.items():
        for outcome, right in zip(of_mesh, wanted, strict=True):
            assert outcome.metrics == pytest.approx(right.metrics, rel=1e-4), mesh
            for row, right_row in zip(outcome.rows, right.rows, strict=True):
                flat = [x if isinstance(x, list) else [x] for x in row["prediction"].values()]
                assert [x for part in flat for x in part] == close(right_row["prediction"]), mesh
