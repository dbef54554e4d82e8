"""BERT, RoBERTa and sentence encoders based on them, in Hugging Face's layout: `bert` and `roberta` of transformers."""

from collections.abc import Collection
from typing import Any

from jaxnlp.interop.family import activation, activation_name, demand, dropout
from jaxnlp.interop.tensors import Tensor, linear, norm, table
from jaxnlp.models.bert import BertConfig
from jaxnlp.nn import mlp, norms, positions

MODEL_TYPES = ("bert", "roberta")
PREFIXES = ("bert.", "roberta.")
MASKED_LM_HEADS = ("cls.predictions", "cls.predictions.decoder", "lm_head", "lm_head.decoder")


def config(hf: dict[str, Any], names: Collection[str]) -> BertConfig:
    """Our config from config.json.

    Args:
        hf: the fields of config.json. names: names of the checkpoint's tensors, from which the heads are derived.

    Raises:
        UserError: a setting that is not supported.
    """
    demand(hf, {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False})
    roberta = hf["model_type"] == "roberta"
    first = hf.get("pad_token_id", 1) + 1 if roberta else 0  # RoBERTa's positions begin after its padding id
    heads = []
    if any(f"{head}.bias" in names for head in MASKED_LM_HEADS):
        heads.append("masked_lm")
    if "cls.seq_relationship.weight" in names:
        heads.append("next_sentence")
    elif any(name.endswith("pooler.dense.weight") for name in names):
        heads.append("pooler")
    return BertConfig(
        vocab_size=hf["vocab_size"],
        max_length=hf["max_position_embeddings"] - first,
        num_types=hf.get("type_vocab_size", 2),
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        embed_dim=hf["hidden_size"],
        mlp_dim=hf["intermediate_size"],
        positions=positions.Learned(first=first),
        norm=norms.LayerNorm(epsilon=hf.get("layer_norm_eps", 1e-12)),
        mlp=mlp.MLP(activation=activation(hf, "hidden_act", "gelu")),
        heads=tuple(heads),
        dropout_rate=dropout(hf, ("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.1),
    )


def accepts(c: Any) -> bool:
    """Whether one of our configs is equivalent to BERT or RoBERTa in transformers."""
    return (
        isinstance(c, BertConfig)
        and isinstance(c.positions, positions.Learned)
        and isinstance(c.norm, norms.LayerNorm)
        and c.norm.use_bias
        and isinstance(c.mlp, mlp.MLP)
        and c.norm_position == "post"
        and c.key_dim * c.num_heads == c.embed_dim
        and not (is_roberta(c) and "next_sentence" in c.heads)  # transformers' RoBERTa has no such head
    )


def is_roberta(c: BertConfig) -> bool:
    return _first(c) > 0


def _first(c: BertConfig) -> int:
    """The row of the position table that position 0 uses."""
    assert isinstance(c.positions, positions.Learned)  # as `accepts` has checked
    return c.positions.first


def to_json(c: BertConfig) -> dict[str, Any]:
    """config.json for transformers."""
    kind = "Roberta" if is_roberta(c) else "Bert"
    model = {
        ("masked_lm", "next_sentence"): "ForPreTraining",
        ("next_sentence",): "ForNextSentencePrediction",
        ("masked_lm",): "ForMaskedLM",
    }.get(tuple(head for head in ("masked_lm", "next_sentence") if head in c.heads), "Model")
    return {
        "architectures": [kind + model],
        "model_type": kind.lower(),
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_length + _first(c),
        "type_vocab_size": c.num_types,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "hidden_size": c.embed_dim,
        "intermediate_size": c.hidden_dim,
        "hidden_act": activation_name(c.mlp.activation),
        "layer_norm_eps": c.norm.epsilon,
        "hidden_dropout_prob": c.dropout_rate,
        "attention_probs_dropout_prob": c.dropout_rate,
        **({"pad_token_id": _first(c) - 1} if is_roberta(c) else {}),
    }


def tensors(c: BertConfig) -> list[Tensor]:
    """The tensors of a checkpoint and the parameters that they hold."""
    family_prefix = "roberta." if is_roberta(c) else "bert."
    prefix = family_prefix if _has_head(c) else ""
    rows = [
        table(f"{prefix}embeddings.word_embeddings.weight", "embed"),
        table(f"{prefix}embeddings.position_embeddings.weight", "positions"),
        table(f"{prefix}embeddings.token_type_embeddings.weight", "types"),
        *norm(f"{prefix}embeddings.LayerNorm", "embed_norm"),
    ]
    for i in range(c.num_layers):
        hf_layer, block = f"{prefix}encoder.layer.{i}", f"block_{i}"
        for name in ("query", "key", "value"):
            rows += linear(f"{hf_layer}.attention.self.{name}", f"{block}/attention/{name}")
        rows += [
            *linear(f"{hf_layer}.attention.output.dense", f"{block}/attention/out", num_in=2),
            *norm(f"{hf_layer}.attention.output.LayerNorm", f"{block}/attention_norm"),
            *linear(f"{hf_layer}.intermediate.dense", f"{block}/mlp/up"),
            *linear(f"{hf_layer}.output.dense", f"{block}/mlp/down"),
            *norm(f"{hf_layer}.output.LayerNorm", f"{block}/mlp_norm"),
        ]
    if "pooler" in c.heads or "next_sentence" in c.heads:
        rows += linear(f"{prefix}pooler.dense", "pooler")
    if "next_sentence" in c.heads:
        rows += linear("cls.seq_relationship", "next_sentence")
    if "masked_lm" in c.heads:
        head, dense, normed = ("lm_head", "dense", "layer_norm")
        if not is_roberta(c):
            head, dense, normed = ("cls.predictions", "transform.dense", "transform.LayerNorm")
        rows += [
            *linear(f"{head}.{dense}", "masked_lm/dense"),
            *norm(f"{head}.{normed}", "masked_lm/norm"),
            Tensor(f"{head}.bias", ("masked_lm/bias",), "vector"),
        ]
    return rows


def _has_head(c: BertConfig) -> bool:
    return "masked_lm" in c.heads or "next_sentence" in c.heads


def ignored(c: BertConfig) -> tuple[str, ...]:
    """Patterns of tensors that hold no parameters and are ignored."""
    return (r".*embeddings\.(position_ids|token_type_ids)",)


def copies(c: BertConfig) -> dict[str, str]:
    """{pattern of tensors that may be copies of a parameter: path of that parameter}.

    They are the tied output map, and its bias under another name.
    """
    head = r"(cls\.predictions|lm_head)\.decoder"
    return {rf"{head}\.weight": "embed/embedding", rf"{head}\.bias": "masked_lm/bias"}
