"""Logits, losses and gradients of fine-tuned models equal transformers', with random weights and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.interop.huggingface import load
from jaxnlp.models.heads import (
    ModelWithHead,
    MultipleChoiceHead,
    RegressionHead,
    SequenceClassificationHead,
    SpanExtractionHead,
    TokenClassificationHead,
)
from jaxnlp.objectives.multiple_choice import MultipleChoice
from jaxnlp.objectives.objective import means
from jaxnlp.objectives.regression import Regression
from jaxnlp.objectives.sequence_classification import SequenceClassification
from jaxnlp.objectives.span_extraction import SpanExtraction
from jaxnlp.objectives.token_classification import TokenClassification
from jaxnlp.sharding.functional import make_apply

from ..interop.families import bert_like, gpt2, llama_like, randomised
from ..reference import torch, transformers

B, C, T, N = 3, 2, 11, 5
LENGTHS = np.asarray([T, 7, 2])


def bert(**kw):
    return transformers.BertConfig(**bert_like(12, 2, 3, 20), **kw)


def llama(**kw):
    return transformers.LlamaConfig(**llama_like(12, 2, 4, 2, 6, 20, tie_word_embeddings=True, **kw))


CASES = {  # class of transformers, its config, our head
    "bert classes": ("BertForSequenceClassification", bert(num_labels=N), SequenceClassificationHead(num_classes=N)),
    "bert number": ("BertForSequenceClassification", bert(num_labels=1), RegressionHead()),
    "bert tokens": ("BertForTokenClassification", bert(num_labels=N), TokenClassificationHead(num_classes=N)),
    "bert span": ("BertForQuestionAnswering", bert(num_labels=2), SpanExtractionHead()),
    "bert choice": ("BertForMultipleChoice", bert(), MultipleChoiceHead()),
    "roberta tokens": (
        "RobertaForTokenClassification",
        transformers.RobertaConfig(**bert_like(10, 3, 1, 7, type_vocab_size=1, num_labels=N)),
        TokenClassificationHead(num_classes=N),
    ),
    "gpt2 classes": (
        "GPT2ForSequenceClassification",
        gpt2(12, 2, 3, num_labels=N, pad_token_id=0),
        SequenceClassificationHead(num_classes=N),
    ),
    "gpt2 number": ("GPT2ForSequenceClassification", gpt2(8, 1, 2, num_labels=1, pad_token_id=0), RegressionHead()),
    "gpt2 tokens": ("GPT2ForTokenClassification", gpt2(10, 3, 1, num_labels=N), TokenClassificationHead(num_classes=N)),
    "gpt2 choice": ("GPT2DoubleHeadsModel", gpt2(12, 2, 3), MultipleChoiceHead()),
    "llama classes": ("LlamaForSequenceClassification", llama(num_labels=N), SequenceClassificationHead(num_classes=N)),
}
OBJECTIVES = {
    SequenceClassificationHead: SequenceClassification,
    RegressionHead: Regression,
    TokenClassificationHead: TokenClassification,
    SpanExtractionHead: SpanExtraction,
    MultipleChoiceHead: MultipleChoice,
}
LINEAR = ("classifier", "qa_outputs", "score", "multiple_choice_head.summary")


def head_of(model, config):
    """The head's linear map as our parameters: its weights, or its gradients after a backward pass."""
    name, module = next((name, m) for name, m in model.named_modules() if name in LINEAR)
    weights = {"kernel": jnp.asarray(module.weight.detach().numpy().T)}
    if config.head.use_bias:  # some heads in transformers have no bias
        bias = np.zeros(config.head.features) if module.bias is None else module.bias.detach().numpy()
        weights["bias"] = jnp.asarray(bias, jnp.float32)
    return name, module, weights


def read(model, head, folder):
    """(config, params) of a transformers model, through its files."""
    model.save_pretrained(folder)
    trunk, params, _ = load(folder, ignore=[f"{name}.*" for name in LINEAR])
    config = ModelWithHead(body=trunk, head=head, dropout_rate=0.0)
    config.check()
    return config, {"trunk": params, "head": head_of(model, config)[2]}


def batches(config, model, rng):
    """(arguments of transformers with labels, our batch), padded on the right with the padding id."""
    head, sequences = config.head, C if isinstance(config.head, MultipleChoiceHead) else 1
    shape = (B, T) if head.of_tokens else (B, sequences, T)
    lengths = LENGTHS if head.of_tokens else np.stack([np.roll(LENGTHS, i) for i in range(sequences)], 1)
    if isinstance(head, SpanExtractionHead):  # no padding: transformers allows answers in it
        lengths = np.full(B, T)
    real = (np.arange(T) < lengths[..., None]).astype(np.int32)
    pad = model.config.pad_token_id or 0
    ours = {"tokens": np.where(real, rng.integers(3, 37, shape), pad), "segment_ids": real}
    theirs = {"input_ids": ours["tokens"], "attention_mask": real}
    if getattr(config.body, "num_types", 1) > 1:
        ours["token_type_ids"] = theirs["token_type_ids"] = np.sort(rng.integers(0, 2, shape), -1)
    ours["weights"] = np.ones(B, np.float32)
    if isinstance(head, SpanExtractionHead):
        ours["starts"], ours["ends"] = rng.integers(0, 5, B), rng.integers(5, T, B)
        theirs |= {"start_positions": ours["starts"], "end_positions": ours["ends"]}
        ours["answer_mask"] = np.ones((B, T), np.float32)
    elif isinstance(head, TokenClassificationHead):
        ours["labels"], ours["weights"] = rng.integers(0, N, (B, T)), (real * (rng.random((B, T)) < 0.7)).astype("f4")
        theirs["labels"] = np.where(ours["weights"] > 0, ours["labels"], -100)
    elif isinstance(head, RegressionHead):
        ours["labels"] = theirs["labels"] = rng.standard_normal(B).astype(np.float32)
    else:
        ours["labels"] = theirs["labels"] = rng.integers(0, N if head.features > 1 else C, B)
    if (config.body.kind == "decoder") and not head.of_tokens:
        ours["pool_positions"] = lengths - 1
    if isinstance(head, MultipleChoiceHead) and (config.body.kind == "decoder"):  # with a language-model loss
        theirs["mc_token_ids"], theirs["mc_labels"] = ours["pool_positions"], theirs.pop("labels")
        theirs["labels"] = np.where(real, ours["tokens"], -100)
        ours["lm_targets"] = np.roll(ours["tokens"], -1, -1)
        ours["lm_weights"] = (np.arange(T) < lengths[..., None] - 1).astype(np.float32)
    if not isinstance(head, MultipleChoiceHead):
        theirs = {name: x[:, 0] if x.ndim == 3 else x for name, x in theirs.items()}
    return {
        name: torch.from_numpy(x if x.dtype == np.float32 else x.astype(np.int64)) for name, x in theirs.items()
    }, ours


def close(actual, wanted, scale=2e-5):
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    assert actual.shape == wanted.shape
    assert np.abs(actual - wanted).max() <= scale * np.abs(wanted).max()


@pytest.mark.parametrize("name", CASES)
def test_logits_and_loss_equal_transformers(name, rng, tmp_path):
    kind, theirs_config, head = CASES[name]
    torch.manual_seed(0)
    model = randomised(getattr(transformers, kind)(theirs_config).eval())
    config, params = read(model, head, tmp_path)
    theirs, batch = batches(config, model, rng)
    with torch.no_grad():
        out = model(**theirs)
    wanted = out["mc_logits"] if "mc_logits" in out else out.get("logits")
    if wanted is None:
        wanted = torch.stack([out["start_logits"], out["end_logits"]], -1)
    _, linear, _ = head_of(model, config)
    if not head.use_bias:  # transformers has a bias here, which the softmax cancels
        wanted = wanted - linear.bias.detach()
    wanted = wanted[:, 0] if isinstance(head, RegressionHead) else wanted
    apply, objective = make_apply(config.build()), OBJECTIVES[type(head)]()
    lm_weight = 0.5 if "lm_targets" in batch else 0.0
    if lm_weight:
        objective.lm_weight = lm_weight

    @jax.jit
    def run(params):
        extra = {name: batch[name] for name in ("token_type_ids", "segment_ids", "pool_positions") if name in batch}
        return apply(params, batch["tokens"], **extra), objective.loss(apply, params, objective.prepare(batch), None)

    outputs, (total, weight, metrics) = run(params)
    real = batch["segment_ids"].astype(bool) if head.of_tokens else slice(None)
    close(outputs["logits"][real], wanted.numpy()[real])
    task_loss = out["mc_loss"] if lm_weight else out["loss"]
    expected = task_loss.item() + (lm_weight * out["loss"].item() if lm_weight else 0.0)
    assert float(total / weight) == pytest.approx(expected, rel=2e-5)
    if lm_weight:
        real = batch["segment_ids"].astype(bool)
        close(outputs["lm"][real], out["logits"].numpy()[real])
        assert float(means(metrics, weight)["lm_loss"]) == pytest.approx(out["loss"].item(), rel=2e-5)


@pytest.mark.parametrize("name", ["bert classes", "gpt2 choice"])
def test_gradients_equal_transformers(name, rng, tmp_path):
    kind, theirs_config, head = CASES[name]
    torch.manual_seed(1)
    model = randomised(getattr(transformers, kind)(theirs_config).eval(), 3.0)
    config, params = read(model, head, tmp_path / "weights")
    theirs, batch = batches(config, model, rng)
    out = model(**theirs)
    objective = OBJECTIVES[type(head)](lm_weight=0.5 if "mc_loss" in out else 0.0)
    (out["mc_loss"] + 0.5 * out["loss"] if "mc_loss" in out else out["loss"]).backward()
    apply = make_apply(config.build())

    def loss(params):
        total, weight, _ = objective.loss(apply, params, objective.prepare(batch), None)
        return total / weight

    grads = jax.jit(jax.grad(loss))(params)
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    _, wanted = read(model, head, tmp_path / "gradients")

    def compare(path, a, b):
        assert np.abs(a - b).max() <= 5e-5 * np.abs(b).max() + 1e-6, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(compare, grads, wanted)
