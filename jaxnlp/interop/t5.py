"""T5 and mT5 in Hugging Face's layout: `t5` and `mt5` of transformers, versions 1.0 and 1.1."""

from collections.abc import Collection
from typing import Any

from jaxnlp.errors import UserError
from jaxnlp.interop.family import ACTIVATIONS, activation_name
from jaxnlp.interop.tensors import Tensor, linear, norm, table
from jaxnlp.models.t5 import T5Config
from jaxnlp.nn import mlp, norms, positions

MODEL_TYPES = ("t5", "mt5")
PREFIXES = ("transformer.",)  # of the models with another head; `save` writes none
TABLES = {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}


def config(hf: dict[str, Any], names: Collection[str]) -> T5Config:
    """Our config from config.json.

    Args:
        hf: the fields of config.json. names: names of the checkpoint's tensors, from which it is derived whether the
            output map is tied to the embedding.

    Raises:
        UserError: a setting that is not supported.
    """
    first = hf["model_type"] == "t5"  # mT5 is version 1.1
    tied = hf.get("tie_word_embeddings", first)
    apart = first and "tie_word_embeddings" in hf and not tied  # then its absence from the file is an error
    copied = first and tied and "scale_decoder_outputs" not in hf  # older files hold a copy of the embedding
    return T5Config(
        vocab_size=hf["vocab_size"],
        num_layers=hf["num_layers"],
        num_decoder_layers=hf.get("num_decoder_layers"),
        num_heads=hf["num_heads"],
        embed_dim=hf["d_model"],
        head_dim=hf["d_kv"],
        mlp_dim=hf["d_ff"],
        positions=positions.RelativeBuckets(
            num_buckets=hf.get("relative_attention_num_buckets", 32),
            max_distance=hf.get("relative_attention_max_distance", 128),
            bidirectional=True,
        ),
        norm=norms.RMSNorm(epsilon=hf.get("layer_norm_epsilon", 1e-6)),
        mlp=_mlp(hf.get("feed_forward_proj", "relu" if first else "gated-gelu")),
        tie_embeddings=copied or ("lm_head.weight" not in names and not apart) or not TABLES.intersection(names),
        scale_logits=first and hf.get("scale_decoder_outputs", tied),
        dropout_rate=hf.get("dropout_rate", 0.1),
    )


def _mlp(name: str) -> Any:
    gated, _, kind = name.rpartition("-")
    if gated not in ("", "gated") or kind not in ACTIVATIONS:
        names = ", ".join(ACTIVATIONS)
        raise UserError(f"config.json: feed_forward_proj={name!r} is not supported; expected one of {names}, or gated-")
    # transformers uses the tanh approximation for the name "gated-gelu" only.
    activation = "gelu_tanh" if name == "gated-gelu" else ACTIVATIONS[kind]
    return mlp.GatedMLP(activation=activation) if gated else mlp.MLP(activation=activation)


def accepts(c: Any) -> bool:
    """Whether one of our configs is equivalent to T5 in transformers."""
    return (
        isinstance(c, T5Config)
        and isinstance(c.positions, positions.RelativeBuckets)
        and c.positions.bidirectional
        and isinstance(c.norm, norms.RMSNorm)
        and isinstance(c.mlp, (mlp.MLP, mlp.GatedMLP))
        and not (c.mlp.gated and c.mlp.activation == "gelu")  # which transformers has no name for
    )


def to_json(c: T5Config) -> dict[str, Any]:
    """config.json for transformers."""
    kind = activation_name(c.mlp.activation)
    assert isinstance(c.positions, positions.RelativeBuckets)  # as `accepts` has checked
    if c.mlp.gated:
        kind = "gated-gelu" if c.mlp.activation == "gelu_tanh" else f"gated-{kind}"
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": c.vocab_size,
        "num_layers": c.num_layers,
        "num_decoder_layers": c.decoder.num_layers,
        "num_heads": c.num_heads,
        "d_model": c.embed_dim,
        "d_kv": c.head_dim,
        "d_ff": c.mlp_dim,
        "relative_attention_num_buckets": c.positions.num_buckets,
        "relative_attention_max_distance": c.positions.max_distance,
        "layer_norm_epsilon": c.norm.epsilon,
        "feed_forward_proj": kind,
        "dropout_rate": c.dropout_rate,
        "tie_word_embeddings": c.tie_embeddings,
        "scale_decoder_outputs": c.scale_logits,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def tensors(c: T5Config) -> list[Tensor]:
    """The tensors of a checkpoint and the parameters that they hold."""
    rows = [table("shared.weight", "embed")]
    for side, layers in (("encoder", c.num_layers), ("decoder", c.decoder.num_layers)):
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rows += [table(bias, f"{side}/position_bias"), *norm(f"{side}.final_layer_norm", f"{side}/norm", bias=False)]
        for i in range(layers):
            hf_layer, block = f"{side}.block.{i}.layer", f"{side}/block_{i}"
            rows += _attention(f"{hf_layer}.0", "SelfAttention", block, "attention")
            if side == "decoder":
                rows += _attention(f"{hf_layer}.1", "EncDecAttention", block, "cross_attention")
            rows += _feed_forward(c, f"{hf_layer}.{2 if side == 'decoder' else 1}", block)
    return rows if c.tie_embeddings else [*rows, *linear("lm_head", "head", bias=False)]


def _attention(hf_layer: str, kind: str, block: str, name: str) -> list[Tensor]:
    rows = norm(f"{hf_layer}.layer_norm", f"{block}/{name}_norm", bias=False)
    for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
        rows += linear(f"{hf_layer}.{kind}.{short}", f"{block}/{name}/{long}", bias=False)
    return [*rows, *linear(f"{hf_layer}.{kind}.o", f"{block}/{name}/out", num_in=2, bias=False)]


def _feed_forward(c: T5Config, hf_layer: str, block: str) -> list[Tensor]:
    maps = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if c.mlp.gated else {"wi": "up", "wo": "down"}
    rows = norm(f"{hf_layer}.layer_norm", f"{block}/mlp_norm", bias=False)
    for short, long in maps.items():
        rows += linear(f"{hf_layer}.DenseReluDense.{short}", f"{block}/mlp/{long}", bias=False)
    return rows


def ignored(c: T5Config) -> tuple[str, ...]:
    """Patterns of tensors that are ignored: a bias that old checkpoints have and no model uses."""
    return (r".*decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)


def copies(c: T5Config) -> dict[str, str]:
    """{pattern of tensors that may be present as copies of a parameter: path of that parameter}."""
    tables = {r"(encoder|decoder)\.embed_tokens\.weight": "embed/embedding"}
    return {**tables, r"lm_head\.weight": "embed/embedding"} if c.tie_embeddings else tables
