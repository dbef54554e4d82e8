"""Values of the fields that a config.json leaves out: the defaults of transformers' config class, as of version 5.

transformers writes fields with their default values or leaves them out, depending on its version, and reads a missing
field as its class's default. A field that is present as null is not missing.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_GPT2 = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1),
    "tie_word_embeddings": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
_BERT = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_QWEN2 = {
    **{name: value for name, value in _LLAMA.items() if name not in ("bos_token_id", "eos_token_id")},
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
_T5 = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "eos_token_id": 1,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gpt2": _GPT2,
        "bert": _BERT,
        "roberta": {**_BERT, "vocab_size": 50265, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        "llama": _LLAMA,
        "mistral": {
            **_LLAMA,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        "qwen2": _QWEN2,
        "qwen3": {**_QWEN2, "head_dim": 128},
        "t5": _T5,
        "mt5": {
            **_T5,
            "vocab_size": 250112,
            "d_ff": 1024,
            "num_layers": 8,
            "num_heads": 6,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": 0,
        },
    }
)
"""By model_type. A field whose default depends on other fields is not here; the families compute it."""

_T5_NAMES = {"hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
OTHER_NAMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "gpt2": {
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
        "t5": {**_T5_NAMES, "head_dim": "d_kv"},
        "mt5": {**_T5_NAMES, "head_dim": "d_kv"},
    }
)
"""By model_type, names that transformers also reads (`attribute_map`), and the fields that they set."""


def with_defaults(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json, and the defaults of those that are missing."""
    kind = str(hf.get("model_type"))
    renamed = {field: hf[name] for name, field in OTHER_NAMES.get(kind, {}).items() if name in hf}
    return {**DEFAULTS.get(kind, {}), **renamed, **hf}
