"""Llama, Mistral, Qwen2 and Qwen3 in Hugging Face's layout."""

from collections.abc import Collection
from typing import Any

from jaxnlp.errors import UserError
from jaxnlp.interop.family import activation, activation_name, demand
from jaxnlp.interop.tensors import Tensor, linear, norm, table
from jaxnlp.models.llama import LlamaConfig
from jaxnlp.nn import mlp, norms, positions

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
PREFIXES = ("model.",)


def config(hf: dict[str, Any], names: Collection[str]) -> LlamaConfig:
    """Our config from config.json.

    Args:
        hf: the fields of config.json. names: names of the checkpoint's tensors; not used.

    Raises:
        UserError: a setting that is not supported.
    """
    kind = hf["model_type"]
    demand(hf, {"mlp_bias": False, "attention_dropout": 0.0, "use_sliding_window": False, "pretraining_tp": 1})
    attention_bias = hf.get("attention_bias", False)
    epsilon = hf["rms_norm_eps"]
    return LlamaConfig(
        vocab_size=hf["vocab_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        num_kv_heads=hf.get("num_key_value_heads"),
        embed_dim=hf["hidden_size"],
        head_dim=hf.get("head_dim"),
        mlp_dim=hf["intermediate_size"],
        positions=_rotary(hf),
        norm=norms.RMSNorm(epsilon=epsilon),
        mlp=mlp.GatedMLP(activation=activation(hf, "hidden_act", "silu")),
        qk_norm=norms.RMSNorm(epsilon=epsilon) if kind == "qwen3" else None,
        window=hf.get("sliding_window") if kind == "mistral" else None,
        qkv_bias=kind == "qwen2" or attention_bias,
        out_bias=kind != "qwen2" and attention_bias,
        tie_embeddings=hf.get("tie_word_embeddings", False),
    )


def _rotary(hf: dict[str, Any]) -> positions.Rotary:
    """Rotary positions from `rope_parameters`, or from the older fields `rope_theta` and `rope_scaling`."""
    rope = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    base = rope.get("rope_theta", hf.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    longest = rope.get("original_max_position_embeddings") or hf["max_position_embeddings"]
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"config.json: partial_rotary_factor={rope['partial_rotary_factor']} is not supported")
    scaling: Any = None
    if kind == "linear":
        scaling = positions.LinearScaling(factor=rope["factor"])
    elif kind == "llama3":
        scaling = positions.Llama3Scaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_max_length=longest,
        )
    elif kind == "yarn":
        demand(rope, {"mscale": None, "mscale_all_dim": None})
        scaling = positions.Yarn(
            factor=rope["factor"],
            original_max_length=longest,
            beta_fast=rope.get("beta_fast") or 32.0,
            beta_slow=rope.get("beta_slow") or 1.0,
            attention_factor=rope.get("attention_factor"),
            truncate=rope.get("truncate", True),
        )
    elif kind != "default":
        raise UserError(
            f"config.json: rope_type={kind!r} is not supported; expected one of default, linear, llama3, yarn"
        )
    return positions.Rotary(base=base, scaling=scaling)


def accepts(c: Any) -> bool:
    """Whether one of our configs is equivalent to Llama, Mistral, Qwen2 or Qwen3 in transformers."""
    return (
        isinstance(c, LlamaConfig)
        and isinstance(c.positions, positions.Rotary)
        and isinstance(c.norm, norms.RMSNorm)
        and isinstance(c.mlp, mlp.GatedMLP)
        and (c.qk_norm is None or c.qk_norm == c.norm)
        and c.embed_dim % c.num_heads == 0
        and _kind(c) is not None
    )


def _kind(c: LlamaConfig) -> str | None:
    """The model_type that transformers uses for this combination of options, or None."""
    options = (c.qk_norm is not None, c.window is not None, c.qkv_bias, c.out_bias)
    return {
        (True, False, False, False): "qwen3",
        (True, False, True, True): "qwen3",
        (False, True, False, False): "mistral",
        (False, False, True, False): "qwen2",
        (False, False, False, False): "llama",
        (False, False, True, True): "llama",
    }.get(options)


def to_json(c: LlamaConfig) -> dict[str, Any]:
    """config.json for transformers."""
    kind, rotary = _kind(c), c.positions
    assert kind is not None and isinstance(rotary, positions.Rotary)  # as `accepts` has checked
    max_length, rope = _rope_json(rotary)
    return {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "vocab_size": c.vocab_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.kv_heads,
        "hidden_size": c.embed_dim,
        "head_dim": c.key_dim,
        "intermediate_size": c.mlp_dim,
        "rms_norm_eps": c.norm.epsilon,
        "hidden_act": activation_name(c.mlp.activation),
        "max_position_embeddings": max_length,
        "tie_word_embeddings": c.tie_embeddings,
        "rope_parameters": rope,
        "rope_theta": rotary.base,  # where older readers look
        **({"rope_scaling": rope} if rotary.scaling is not None else {}),
        **({"attention_bias": c.out_bias} if kind in ("llama", "qwen3") else {}),
        **({"sliding_window": c.window} if kind == "mistral" else {}),
    }


def _rope_json(rotary: positions.Rotary) -> tuple[int, dict[str, Any]]:
    """(max_position_embeddings, rope_parameters)."""
    s = rotary.scaling
    rope = {"rope_theta": rotary.base}
    if s is None:
        return 32768, {**rope, "rope_type": "default"}
    if isinstance(s, positions.LinearScaling):
        return 32768, {**rope, "rope_type": "linear", "factor": s.factor}
    assert isinstance(s, positions.Llama3Scaling | positions.Yarn), f"unknown scaling {type(s).__name__}"
    rope |= {"factor": s.factor, "original_max_position_embeddings": s.original_max_length}
    max_length = round(s.factor * s.original_max_length)
    if isinstance(s, positions.Llama3Scaling):
        ramp = {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
        return max_length, {**rope, "rope_type": "llama3", **ramp}
    ramp = {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow, "truncate": s.truncate}
    factor = {} if s.attention_factor is None else {"attention_factor": s.attention_factor}
    return max_length, {**rope, "rope_type": "yarn", **ramp, **factor}


def tensors(c: LlamaConfig) -> list[Tensor]:
    """The tensors of a checkpoint and the parameters that they hold."""
    rows = [table("model.embed_tokens.weight", "embed"), *norm("model.norm", "norm", bias=False)]
    for i in range(c.num_layers):
        hf_layer, block = f"model.layers.{i}", f"block_{i}"
        for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
            rows += linear(f"{hf_layer}.self_attn.{short}_proj", f"{block}/attention/{name}", bias=c.qkv_bias)
        rows += linear(f"{hf_layer}.self_attn.o_proj", f"{block}/attention/out", num_in=2, bias=c.out_bias)
        if c.qk_norm is not None:
            for short, name in (("q", "query"), ("k", "key")):
                rows += norm(f"{hf_layer}.self_attn.{short}_norm", f"{block}/attention/{name}_norm", bias=False)
        rows += norm(f"{hf_layer}.input_layernorm", f"{block}/attention_norm", bias=False)
        rows += norm(f"{hf_layer}.post_attention_layernorm", f"{block}/mlp_norm", bias=False)
        for name in ("gate", "up", "down"):
            rows += linear(f"{hf_layer}.mlp.{name}_proj", f"{block}/mlp/{name}", bias=False)
    return rows if c.tie_embeddings else [*rows, *linear("lm_head", "head", bias=False)]


def ignored(c: LlamaConfig) -> tuple[str, ...]:
    """Patterns of tensors that hold no parameters and are ignored."""
    return (r".*rotary_emb\.inv_freq",)


def copies(c: LlamaConfig) -> dict[str, str]:
    """{pattern of tensors that may be present as copies of a parameter: path of that parameter}."""
    return {r"lm_head\.weight": "embed/embedding"} if c.tie_embeddings else {}
