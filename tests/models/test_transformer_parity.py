"""The 2017 Transformer equals transformers' Marian with the paper's positions, and PyTorch's with pre-norm."""

import jax
import numpy as np
import pytest

from jaxnlp.interop.tensors import linear, norm, table
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.nn.positions import sinusoid
from jaxnlp.sharding.functional import abstract_params, make_apply, make_capture
from jaxnlp.sharding.rules import path_name

from ..reference import torch, transformers

B, S, T, V = 3, 11, 8, 37
RIGHT = np.asarray([[1] * S, [1] * (S - 4) + [0] * 4, [1] * 2 + [0] * (S - 2)])
CASES = {  # embed_dim, encoder and decoder layers, heads, feed-forward
    "even": (12, 2, 2, 3, 20),
    "deep decoder": (10, 1, 3, 1, 7),
    "deep encoder": (16, 3, 1, 4, 9),
}


def marian(dim, layers, decoder_layers, heads, inner):
    """Random weights, biases and norms included, the paper's positions, no dropout."""
    sides = {}
    for side, count in (("encoder", layers), ("decoder", decoder_layers)):
        sides |= {f"{side}_layers": count, f"{side}_attention_heads": heads, f"{side}_ffn_dim": inner}
    config = transformers.MarianConfig(
        vocab_size=V,
        d_model=dim,
        **sides,
        max_position_embeddings=24,
        activation_function="relu",
        scale_embedding=True,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        pad_token_id=0,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" in name:
                parameter.copy_(torch.from_numpy(np.array(sinusoid(np.arange(24), dim))))
            elif parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.3 if "shared" in name else 0.2))
    return model


def ours(model, dim, layers, decoder_layers, heads, inner):
    """Our config, and Marian's weights (or arrays of the same names, as gradients) as our parameters."""
    config = TransformerConfig(
        vocab_size=V,
        embed_dim=dim,
        num_layers=layers,
        num_decoder_layers=decoder_layers,
        num_heads=heads,
        mlp_dim=inner,
        dropout_rate=0.0,
    )
    tensors = [table("model.shared.weight", "embed")]
    for side, count in (("encoder", layers), ("decoder", decoder_layers)):
        for i in range(count):
            theirs, block = f"model.{side}.layers.{i}", f"{side}/block_{i}"
            kinds = {"self_attn": "attention"} | ({"encoder_attn": "cross_attention"} if side == "decoder" else {})
            for kind, name in kinds.items():
                for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
                    tensors += linear(f"{theirs}.{kind}.{short}_proj", f"{block}/{name}/{long}")
                tensors += linear(f"{theirs}.{kind}.out_proj", f"{block}/{name}/out", num_in=2)
                tensors += norm(f"{theirs}.{kind}_layer_norm", f"{block}/{name}_norm")
            for short, long in (("fc1", "up"), ("fc2", "down")):
                tensors += linear(f"{theirs}.{short}", f"{block}/mlp/{long}")
            tensors += norm(f"{theirs}.final_layer_norm", f"{block}/mlp_norm")
    shapes, _ = abstract_params(config.build(), *config.example_inputs(1, 1))
    by_path = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    state = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    converted = {}
    for tensor in tensors:
        converted |= tensor.to_params(state[tensor.name], by_path)
    return config, jax.tree_util.tree_map_with_path(lambda path, _: converted[path_name(path)], shapes)


def close(actual, wanted, name=""):
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    assert np.abs(actual - wanted).max() <= 2e-5 * np.abs(wanted).max(), name


def example(rng):
    ids, written = rng.integers(1, V, (B, S)), rng.integers(1, V, (B, T))
    theirs = {"input_ids": ids, "attention_mask": RIGHT, "decoder_input_ids": written}
    return {name: torch.from_numpy(x) for name, x in theirs.items()}, (ids, written)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_every_layer(case, rng):
    model = marian(*CASES[case])
    config, params = ours(model, *CASES[case])
    theirs, args = example(rng)
    with torch.no_grad():
        wanted = model(**theirs, output_hidden_states=True)
    logits, seen = jax.jit(make_capture(config.build()))(params, *args, input_segments=RIGHT)
    close(logits, wanted.logits)
    for side, states in (("encoder", wanted.encoder_hidden_states), ("decoder", wanted.decoder_hidden_states)):
        real = RIGHT.astype(bool) if side == "encoder" else np.ones((B, T), bool)
        for i, state in enumerate(states[1:]):
            close(seen[f"{side}/block_{i}/hidden"][real], state.numpy()[real], f"{side} {i}")


def test_gradients_of_the_smoothed_loss(rng):
    from jaxnlp.objectives.seq2seq import Seq2Seq

    model = marian(*CASES["even"])
    config, params = ours(model, *CASES["even"])
    theirs, (ids, written) = example(rng)
    targets = rng.integers(1, V, (B, T)).astype(np.int32)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum")
    loss(model(**theirs).logits.reshape(-1, V), torch.from_numpy(targets).long().reshape(-1)).backward()
    batch = {"inputs": ids, "input_segments": RIGHT, "tokens": written, "targets": targets}
    batch["weights"] = np.ones((B, T), np.float32)
    apply = make_apply(config.build())
    grads = jax.jit(jax.grad(lambda p: Seq2Seq(label_smoothing=0.1).loss(apply, p, batch, None)[0]))(params)
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    _, wanted = ours(model, *CASES["even"])

    def compare(path, a, b):
        assert np.abs(a - b).max() <= 5e-5 * np.abs(b).max() + 1e-5, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(compare, grads, wanted)


def test_pre_norm_equals_torch(rng):
    """Equals `torch.nn.Transformer(norm_first=True)`: an encoder layer and a decoder layer."""
    torch.manual_seed(0)
    kind = {"dropout": 0.0, "batch_first": True, "norm_first": True}
    theirs = torch.nn.Transformer(12, 3, 1, 1, 20, **kind).eval()
    config = TransformerConfig(
        vocab_size=V,
        embed_dim=12,
        num_layers=1,
        num_heads=3,
        mlp_dim=20,
        norm_position="pre",
        dropout_rate=0.0,
    )
    state = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    shapes, _ = abstract_params(config.build(), *config.example_inputs(1, 1))
    by_path = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    tensors = []
    for side in ("encoder", "decoder"):
        at, block = f"{side}.layers.0", f"{side}/block_0"
        kinds = {"self_attn": "attention", **({"multihead_attn": "cross_attention"} if side == "decoder" else {})}
        for i, (kind, name) in enumerate(kinds.items()):
            state[f"{at}.{kind}.in.weight"] = state[f"{at}.{kind}.in_proj_weight"]
            state[f"{at}.{kind}.in.bias"] = state[f"{at}.{kind}.in_proj_bias"]
            tensors += linear(f"{at}.{kind}.in", *(f"{block}/{name}/{x}" for x in ("query", "key", "value")))
            tensors += linear(f"{at}.{kind}.out_proj", f"{block}/{name}/out", num_in=2)
            tensors += norm(f"{at}.norm{i + 1}", f"{block}/{name}_norm")
        tensors += linear(f"{at}.linear1", f"{block}/mlp/up") + linear(f"{at}.linear2", f"{block}/mlp/down")
        tensors += norm(f"{at}.norm{len(kinds) + 1}", f"{block}/mlp_norm") + norm(f"{side}.norm", f"{side}/norm")
    embedding = rng.standard_normal((V, 12)).astype(np.float32)
    converted = {"embed/embedding": jax.numpy.asarray(embedding)}
    for tensor in tensors:
        converted |= tensor.to_params(state[tensor.name], by_path)
    params = jax.tree_util.tree_map_with_path(lambda path, _: converted[path_name(path)], shapes)
    ids, written = rng.integers(1, V, (B, S)), rng.integers(1, V, (B, T))
    embed = lambda x: torch.from_numpy(np.array(embedding[x] * 12**0.5 + sinusoid(np.arange(x.shape[1]), 12)))
    padding = torch.from_numpy(RIGHT == 0)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(T)
    with torch.no_grad():
        memory = theirs.encoder(embed(ids), src_key_padding_mask=padding)
        wanted = theirs.decoder(embed(written), memory, causal, memory_key_padding_mask=padding)
    logits = make_apply(config.build())(params, ids, written, input_segments=RIGHT)
    close(logits, wanted.numpy() @ embedding.T)
