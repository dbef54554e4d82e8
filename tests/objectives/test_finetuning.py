"""Fine-tuning objectives: means that are independent of microbatches, and scores computed from sums."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.errors import FieldError, UserError
from jaxnlp.evals.loss import evaluate, make_eval_step
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.heads import (
    ModelWithHead,
    MultipleChoiceHead,
    RegressionHead,
    SequenceClassificationHead,
    SpanExtractionHead,
    TokenClassificationHead,
)
from jaxnlp.objectives.classification_metrics import class_scores, class_sums
from jaxnlp.objectives.multiple_choice import MultipleChoice
from jaxnlp.objectives.objective import means
from jaxnlp.objectives.regression import Regression
from jaxnlp.objectives.sequence_classification import SequenceClassification
from jaxnlp.objectives.span_extraction import SpanExtraction
from jaxnlp.objectives.token_classification import TokenClassification
from jaxnlp.optim import OptimConfig
from jaxnlp.sharding.functional import init_params, make_apply
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build
from jaxnlp.training.step.state import new_state
from jaxnlp.training.step.step import make_step

B, C, T, N, V = 8, 2, 6, 3, 17
SIZES = {"vocab_size": V, "max_length": 8, "num_layers": 1, "num_heads": 2, "embed_dim": 8, "dropout_rate": 0.0}
GPT, BERT = GPTConfig(**SIZES), BertConfig(**SIZES, heads=())
TASKS = {
    "classify": (
        GPT,
        SequenceClassificationHead(num_classes=N),
        SequenceClassification(lm_weight=0.5, label_smoothing=0.1),
    ),
    "regress": (GPT, RegressionHead(), Regression(lm_weight=0.5)),
    "choice": (GPT, MultipleChoiceHead(), MultipleChoice(lm_weight=0.5)),
    "tag": (BERT, TokenClassificationHead(num_classes=N), TokenClassification()),
    "span": (BERT, SpanExtractionHead(), SpanExtraction()),
}


@functools.cache
def built(name):
    trunk, head, objective = TASKS[name]
    config = ModelWithHead(body=trunk, head=head, dropout_rate=0.0)
    zeros = [jnp.zeros(x.shape, x.dtype) for x in config.example_inputs(1, 4)]
    params = jax.jit(lambda: init_params(config.build(), jax.random.key(0), *zeros))()
    return config, jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params), objective


def batch_of(name, rng, rows=B):
    """A batch with some zeros in every weight; row 5 is padding."""
    of_tokens = name in ("tag", "span")
    shape = (rows, T) if of_tokens else (rows, C, T)
    lengths = rng.integers(2, T + 1, shape[:-1])
    batch = {"tokens": rng.integers(0, V, shape), "segment_ids": np.arange(T) < lengths[..., None]}
    batch |= {"token_type_ids": rng.integers(0, 2, shape), "weights": np.ones(rows, np.float32)}
    batch["segment_ids"][5], batch["weights"][5] = 0, 0
    if name == "tag":
        batch["labels"] = rng.integers(0, N, shape)
        batch["weights"] = ((rng.random(shape) < 0.5) & batch["segment_ids"]).astype(np.float32)
    elif name == "span":
        batch["starts"], batch["ends"] = rng.integers(0, 2, rows), rng.integers(0, 2, rows)
        batch["answer_mask"] = (np.arange(T) < 1 + lengths[..., None] // 2).astype(np.float32)
    else:
        batch["pool_positions"] = lengths - 1
        real = rng.standard_normal(rows).astype(np.float32) if name == "regress" else None
        batch["labels"] = rng.integers(0, N if name == "classify" else C, rows) if real is None else real
        batch["lm_targets"] = np.roll(batch["tokens"], -1, -1)
        shown = (np.arange(T) < lengths[..., None] - 1) & batch["segment_ids"]
        batch["lm_weights"] = shown.astype(np.float32)
    return {k: x if x.dtype == np.float32 else x.astype(np.int32) for k, x in batch.items()}


def run(name, batch, objective=None):
    """(loss, mean metrics, the model's output)."""
    config, params, default = built(name)
    objective, apply = objective or default, make_apply(config.build())

    @jax.jit
    def both(params, batch):
        extra = {k: batch[k] for k in ("token_type_ids", "segment_ids", "pool_positions") if k in batch}
        return objective.loss(apply, params, objective.prepare(batch), None), apply(params, batch["tokens"], **extra)

    (total, weight, metrics), out = both(params, batch)
    return float(total / weight), means(metrics, weight), out


def mean(x, weights):
    return float(np.sum(np.asarray(x) * weights) / np.sum(weights))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@pytest.mark.parametrize("name", ["classify", "regress", "choice"])
def test_the_loss_is_the_tasks_mean_plus_lambda_times_the_mean_of_the_tokens(name, rng):
    batch = batch_of(name, rng)
    loss, metrics, out = run(name, batch)
    logits, labels, weights = out["logits"], batch["labels"], batch["weights"]
    if name == "regress":
        nll = task = mean(np.square(logits - labels), weights)
    else:
        if name == "choice":  # an option without tokens does not count
            logits = np.where(batch["segment_ids"].any(-1), logits, -1e9)
        nll = task = mean(cross_entropy(logits, labels), weights)
        assert float(metrics["accuracy"]) == pytest.approx(mean(np.argmax(logits, -1) == labels, weights))
    if name == "classify":
        soft = optax.smooth_labels(jax.nn.one_hot(labels, N), 0.1)
        task = mean(optax.softmax_cross_entropy(logits, soft), weights)
    lm = mean(cross_entropy(out["lm"], batch["lm_targets"]), batch["lm_weights"])
    assert loss == pytest.approx(task + 0.5 * lm, rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(nll, rel=1e-5)
    assert float(metrics["lm_loss"]) == pytest.approx(lm, rel=1e-5)


def test_the_loss_of_tags_is_their_mean(rng):
    batch = batch_of("tag", rng)
    loss, metrics, out = run("tag", batch)
    assert loss == pytest.approx(mean(cross_entropy(out["logits"], batch["labels"]), batch["weights"]), rel=1e-5)
    right = np.argmax(out["logits"], -1) == batch["labels"]
    assert float(metrics["accuracy"]) == pytest.approx(mean(right, batch["weights"]))


def test_the_loss_of_a_span_is_over_the_places_where_an_answer_may_be(rng):
    batch = batch_of("span", rng)
    loss, metrics, out = run("span", batch)
    logits = np.where(batch["answer_mask"][..., None] > 0, out["logits"], -np.inf)
    both = [cross_entropy(logits[..., i], batch[name]) for i, name in enumerate(("starts", "ends"))]
    assert loss == pytest.approx(mean((both[0] + both[1]) / 2, batch["weights"]), rel=1e-5)
    right = [np.argmax(logits[..., i], -1) == batch[name] for i, name in enumerate(("starts", "ends"))]
    assert float(metrics["accuracy"]) == pytest.approx(mean(right[0] & right[1], batch["weights"]))
    assert float(metrics["end_accuracy"]) == pytest.approx(mean(right[1], batch["weights"]))


@pytest.mark.parametrize("name", ["classify", "choice"])
def test_lambda_0_is_no_auxiliary_loss(name, rng):
    config, params, objective = built(name)
    objective = dataclasses.replace(objective, lm_weight=0.0)
    batch, apply = batch_of(name, rng), make_apply(config.build())
    without = {key: x for key, x in batch.items() if not key.startswith("lm_")}

    @jax.jit
    def gradient(batch):
        return jax.value_and_grad(lambda p: objective.loss(apply, p, objective.prepare(batch), None)[0])(params)

    jax.tree.map(np.testing.assert_array_equal, gradient(batch), gradient(without))


@pytest.mark.parametrize("name", TASKS)
def test_microbatches_give_the_step_of_the_whole_batch(name, rng):
    config, params, objective = built(name)
    apply, optimizer, batch = make_apply(config.build()), optax.sgd(1.0), batch_of(name, rng)
    states, metrics = [], []
    for accum in (1, 4):
        step = jax.jit(make_step(apply, objective, optimizer, lambda step: 1.0, accum_steps=accum))
        state, step_metrics = step(new_state(params, optimizer, 0, None), batch)
        states.append(state.params)
        metrics.append(step_metrics)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *states)
    assert metrics[0].keys() == metrics[1].keys() and not {"classes", "moments"} & set(metrics[0])
    for key in ("loss", "accuracy" if name != "regress" else "lm_loss"):
        assert float(metrics[0][key]) == pytest.approx(float(metrics[1][key]), rel=1e-5)


def test_eight_devices_equal_one(rng):
    config, _, objective = built("classify")
    e = Experiment(
        model=config,
        data=DataConfig(seq_len=T, batch_size=B),
        objective=objective,
        optim=OptimConfig(name="sgd", learning_rate=0.5, schedule="constant", clip_norm=None),
    )
    batches, outcomes = [batch_of("classify", rng) for _ in range(2)], []
    for count in (1, 8):
        program = build(e, jax.devices()[:count])
        state, losses = program.init(), []
        for batch in batches:
            state, metrics = program.step(state, program.shard_batch(batch))
            losses.append([float(metrics[name]) for name in ("loss", "lm_loss", "accuracy")])
        outcomes.append((losses, jax.device_get(state.params)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *outcomes)


@pytest.mark.parametrize(("name", "scores"), [("classify", True), ("tag", True), ("regress", False)])
def test_a_split_in_batches_has_the_scores_of_the_whole(name, scores, rng):
    config, params, objective = built(name)
    batches = [batch_of(name, rng) for _ in range(3)]
    apply = make_apply(config.build())
    step = jax.jit(make_eval_step(apply, objective))
    metrics = evaluate(step, params, batches, objective)
    assert all(isinstance(x, float) for x in metrics.values())
    whole = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
    _, _, out = run(name, whole)
    real = whole["weights"] > 0
    logits, labels = np.asarray(out["logits"])[real], whole["labels"][real]
    if not scores:
        assert metrics["pearson"] == pytest.approx(np.corrcoef(logits, labels)[0, 1], abs=1e-4)
        assert metrics["loss"] == pytest.approx(np.square(logits - labels).mean(), rel=1e-5)
        assert "perplexity" not in metrics
        return
    predicted = logits.argmax(-1)
    # By definition, the correlation of indicator vectors, summed over the classes.
    x, y = (np.eye(N)[z] - np.eye(N)[z].mean(0) for z in (predicted, labels))
    assert metrics["matthews"] == pytest.approx((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()), abs=1e-5)
    each = []
    for k in range(N):
        hits = ((predicted == k) & (labels == k)).sum()
        wrong = ((predicted == k) != (labels == k)).sum()
        each.append(2 * hits / (2 * hits + wrong) if hits + wrong else 0.0)
    assert metrics["f1_macro"] == pytest.approx(np.mean(each), abs=1e-6)


def test_scores_of_two_classes(rng):
    labels = rng.integers(0, 2, 50)
    logits = np.eye(2)[np.where(rng.random(50) < 0.7, labels, 1 - labels)]
    scores = class_scores(class_sums(jnp.asarray(logits), jnp.asarray(labels), jnp.ones(50)))
    predicted = logits.argmax(-1)
    hits = (predicted & labels).sum()
    assert scores["precision"] == pytest.approx(hits / predicted.sum())
    assert scores["recall"] == pytest.approx(hits / labels.sum())
    assert scores["f1"] == pytest.approx(2 * hits / (predicted.sum() + labels.sum()))
    assert scores["matthews"] == pytest.approx(np.corrcoef(predicted, labels)[0, 1])
    constant = class_scores(class_sums(jnp.zeros((50, 2)), jnp.asarray(labels), jnp.ones(50)))
    assert constant["matthews"] == constant["f1"] == constant["precision"] == 0.0


def test_a_constant_prediction_has_no_correlation():
    moments = np.asarray([2.0, 3.0, 4.0, 10.0, 6.0])
    assert Regression().finalize_metrics({"moments": moments, "loss": 1.0}) == {"loss": 1.0, "pearson": 0.0}


def test_an_auxiliary_loss_needs_its_targets_and_a_language_model(rng):
    batch = batch_of("classify", rng)
    with pytest.raises(UserError, match=r"objective.lm_weight=0.5: .*no targets"):
        SequenceClassification(lm_weight=0.5).prepare({key: x for key, x in batch.items() if key != "lm_targets"})
    encoder = ModelWithHead(body=BERT, head=SequenceClassificationHead(num_classes=N))
    params = init_params(encoder.build(), jax.random.key(0), jnp.zeros((1, 1, 4), jnp.int32))
    objective = SequenceClassification(lm_weight=0.5)
    with pytest.raises(UserError, match=r"objective.lm_weight: the body is not a language model; use a decoder"):
        objective.loss(make_apply(encoder.build()), params, objective.prepare(batch), None)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (SequenceClassification(lm_weight=-1.0), "lm_weight=-1.0"),
        (SequenceClassification(label_smoothing=1.0), "label_smoothing=1.0"),
        (MultipleChoice(lm_weight=float("nan")), "lm_weight=nan"),
        (Regression(lm_weight=-0.5), "lm_weight=-0.5"),
    ],
)
def test_bad_fields_are_named(objective, message):
    with pytest.raises(FieldError, match=message):
        objective.check()
