"""GPT-2 in Hugging Face's layout: `gpt2` of transformers."""

from collections.abc import Collection
from typing import Any

from jaxnlp.interop.family import activation, activation_name, demand, dropout
from jaxnlp.interop.tensors import Tensor, linear, norm, table
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn import mlp, norms, positions

MODEL_TYPES = ("gpt2",)
PREFIXES = ("transformer.",)
# Attention masks, which old checkpoints stored with the parameters.
IGNORED = (r".*h\.\d+\.(attn|crossattention)\.(masked_)?bias",)


def config(hf: dict[str, Any], names: Collection[str]) -> GPTConfig:
    """Our config from config.json.

    Args:
        hf: the fields of config.json. names: names of the checkpoint's tensors; not used.

    Raises:
        UserError: a setting that is not supported.
    """
    demand(hf, {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False})
    return GPTConfig(
        vocab_size=hf["vocab_size"],
        max_length=hf["n_positions"],
        num_layers=hf["n_layer"],
        num_heads=hf["n_head"],
        embed_dim=hf["n_embd"],
        mlp_dim=hf.get("n_inner"),
        norm=norms.LayerNorm(epsilon=hf.get("layer_norm_epsilon", 1e-5)),
        mlp=mlp.MLP(activation=activation(hf, "activation_function", "gelu_new")),
        dropout_rate=dropout(hf, ("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1),
        tie_embeddings=hf.get("tie_word_embeddings", True),
    )


def accepts(c: Any) -> bool:
    """Whether one of our configs is equivalent to GPT-2 in transformers."""
    return (
        isinstance(c, GPTConfig)
        and isinstance(c.positions, positions.Learned)
        and not c.positions.first
        and isinstance(c.norm, norms.LayerNorm)
        and isinstance(c.mlp, mlp.MLP)
        and (c.norm_position, c.qk_norm, c.window, c.attention_softcap, c.logit_softcap) == ("pre", *[None] * 4)
        and c.use_bias
        and c.norm.use_bias
        and c.kv_heads == c.num_heads
        and c.key_dim * c.num_heads == c.embed_dim
    )


def to_json(c: GPTConfig) -> dict[str, Any]:
    """config.json for transformers."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocab_size,
        "n_positions": c.max_length,
        "n_embd": c.embed_dim,
        "n_layer": c.num_layers,
        "n_head": c.num_heads,
        "n_inner": c.mlp_dim,
        "activation_function": activation_name(c.mlp.activation),
        "layer_norm_epsilon": c.norm.epsilon,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), c.dropout_rate),
        "tie_word_embeddings": c.tie_embeddings,
    }


def tensors(c: GPTConfig) -> list[Tensor]:
    """The tensors of a checkpoint and the parameters that they hold."""
    rows = [
        table("transformer.wte.weight", "embed"),
        table("transformer.wpe.weight", "positions"),
        *norm("transformer.ln_f", "norm"),
    ]
    for i in range(c.num_layers):
        hf_layer, block = f"transformer.h.{i}", f"block_{i}"
        qkv = [f"{block}/attention/{name}" for name in ("query", "key", "value")]
        rows += [
            *norm(f"{hf_layer}.ln_1", f"{block}/attention_norm"),
            *linear(f"{hf_layer}.attn.c_attn", *qkv, kind="conv1d"),
            *linear(f"{hf_layer}.attn.c_proj", f"{block}/attention/out", kind="conv1d", num_in=2),
            *norm(f"{hf_layer}.ln_2", f"{block}/mlp_norm"),
            *linear(f"{hf_layer}.mlp.c_fc", f"{block}/mlp/up", kind="conv1d"),
            *linear(f"{hf_layer}.mlp.c_proj", f"{block}/mlp/down", kind="conv1d"),
        ]
    return rows if c.tie_embeddings else [*rows, *linear("lm_head", "head", bias=False)]


def ignored(c: GPTConfig) -> tuple[str, ...]:
    """Patterns of tensors that hold no parameters and are ignored."""
    return IGNORED


def copies(c: GPTConfig) -> dict[str, str]:
    """{pattern of tensors that may be present as copies of a parameter: path of that parameter}."""
    return {r"lm_head\.weight": "embed/embedding"} if c.tie_embeddings else {}
