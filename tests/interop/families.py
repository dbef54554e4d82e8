"""Models of transformers with unusual shapes and random weights, a few per family."""

import copy

from ..reference import torch, transformers

T = transformers
SMALL = {"vocab_size": 37, "attn_implementation": "eager"}


def bert_like(hidden, layers, heads, inner, **kw):
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": 24,
        **SMALL,
        **kw,
    }


def gpt2(dim, layers, heads, **kw):
    return T.GPT2Config(n_embd=dim, n_layer=layers, n_head=heads, n_positions=24, **SMALL, **kw)


def llama_like(hidden, layers, heads, kv_heads, head_dim, inner, **kw):
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": inner,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        **SMALL,
        **kw,
    }


def t5(dim, layers, decoder_layers, heads, head_dim, inner, **kw):
    return T.T5Config(
        d_model=dim,
        num_layers=layers,
        num_decoder_layers=decoder_layers,
        num_heads=heads,
        d_kv=head_dim,
        d_ff=inner,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=9,
        decoder_start_token_id=0,
        **SMALL,
        **kw,
    )


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8}
MT5_FIELDS = (
    *("vocab_size", "d_model", "num_layers", "num_decoder_layers", "num_heads", "d_kv", "d_ff"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "decoder_start_token_id"),
)
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}

mt5 = {name: value for name, value in t5(8, 2, 1, 2, 6, 11).to_dict().items() if name in MT5_FIELDS}

CASES = {
    "gpt2": (T.GPT2LMHeadModel, gpt2(12, 2, 3)),
    "gpt2-untied": (T.GPT2LMHeadModel, gpt2(10, 3, 1, tie_word_embeddings=False, n_inner=17)),
    "gpt2-bare": (T.GPT2Model, gpt2(8, 1, 2, activation_function="relu", layer_norm_epsilon=1e-3)),
    "bert": (T.BertForPreTraining, T.BertConfig(**bert_like(12, 2, 3, 20))),
    "bert-masked": (T.BertForMaskedLM, T.BertConfig(**bert_like(10, 3, 1, 7, hidden_act="gelu_new"))),
    "bert-bare": (T.BertModel, T.BertConfig(**bert_like(8, 1, 2, 9, type_vocab_size=3, layer_norm_eps=1e-3))),
    "roberta": (T.RobertaForMaskedLM, T.RobertaConfig(**bert_like(12, 2, 3, 20, type_vocab_size=1))),
    "llama": (T.LlamaForCausalLM, T.LlamaConfig(**llama_like(12, 2, 4, 2, 6, 20))),
    "llama-3.1": (T.LlamaForCausalLM, T.LlamaConfig(**llama_like(9, 3, 3, 1, 8, 7, rope_parameters=LLAMA3))),
    "llama-yarn": (T.LlamaForCausalLM, T.LlamaConfig(**llama_like(8, 1, 2, 2, 10, 9, rope_parameters=YARN))),
    "llama-biased": (
        T.LlamaForCausalLM,
        T.LlamaConfig(**llama_like(8, 2, 2, 2, 4, 9, rope_parameters=LINEAR, attention_bias=True)),
    ),
    "mistral": (T.MistralForCausalLM, T.MistralConfig(**llama_like(12, 2, 4, 2, 6, 20, sliding_window=4))),
    "qwen2": (T.Qwen2ForCausalLM, T.Qwen2Config(**llama_like(12, 2, 4, 2, 4, 20, tie_word_embeddings=True))),
    "qwen3": (T.Qwen3ForCausalLM, T.Qwen3Config(**llama_like(12, 2, 4, 2, 6, 20))),
    "t5": (T.T5ForConditionalGeneration, t5(12, 2, 2, 3, 5, 20)),
    "t5-1.1": (
        T.T5ForConditionalGeneration,
        t5(10, 1, 3, 2, 7, 9, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
    "t5-deep": (T.T5ForConditionalGeneration, t5(9, 3, 1, 1, 4, 7, feed_forward_proj="gated-silu")),
    "mt5": (T.MT5ForConditionalGeneration, T.MT5Config(**mt5, attn_implementation="eager")),
    "roberta-bare": (T.RobertaModel, T.RobertaConfig(**bert_like(6, 3, 2, 11, type_vocab_size=1))),
}


def build(name: str, seed: int = 0):
    """(model, its config) with random weights, biases and norms included, and without dropout."""
    kind, config = copy.deepcopy(CASES[name])
    torch.manual_seed(seed)
    model = kind(config).eval()
    if getattr(config, "scale_decoder_outputs", True) is False:  # T5 1.1 has a separate output matrix
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        config.tie_word_embeddings = model.config.tie_word_embeddings = False
    return randomised(model, 2.0 if hasattr(config, "d_kv") else 6.0)  # T5's scores are not scaled down


def randomised(model, factor: float = 6.0):
    """The model with random norms and biases, and matrices large enough that attention is far from uniform."""
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif not any(name in path for name in ("embeddings", "wte", "wpe", "shared", "lm_head")):
                parameter.mul_(factor)
    return model
