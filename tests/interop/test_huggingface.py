"""Checkpoints of transformers, imported and exported: logits, every layer, gradients, and what is rejected."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxnlp.errors import UserError
from jaxnlp.interop.huggingface import load, save
from jaxnlp.models.bert import BertConfig, roberta
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.t5 import T5Config
from jaxnlp.nn import norms
from jaxnlp.sharding.functional import init_params, make_apply, make_capture
from jaxnlp.sharding.mesh import MeshConfig, make_mesh
from jaxnlp.sharding.rules import TENSOR

from ..reference import torch, transformers
from .families import CASES, build

B, T = 3, 11
PADDING = np.asarray([[1] * T, [0] * 4 + [1] * (T - 4), [1] * T])  # left padding, as in generation
RIGHT = np.asarray([[1] * T, [1] * (T - 4) + [0] * 4, [1] * 2 + [0] * (T - 2)])


def inputs(config, rng):
    """(arguments of transformers' model, arguments of ours, mask of real positions)."""
    ids = rng.integers(3, 37, (B, T))
    if isinstance(config, T5Config):
        written = rng.integers(3, 37, (B, T - 3))
        theirs = {"input_ids": ids, "attention_mask": RIGHT, "decoder_input_ids": written}
        return theirs, ((ids, written), {"input_segments": RIGHT}), np.ones_like(written, bool)
    if not isinstance(config, BertConfig):
        places = np.maximum(np.cumsum(PADDING, 1) - 1, 0)
        theirs = {"input_ids": ids, "attention_mask": PADDING, "position_ids": places}
        return theirs, ((ids,), {"segment_ids": PADDING, "positions": places}), PADDING.astype(bool)
    token_type_ids = rng.integers(0, config.num_types, (B, T))
    padded = np.where(RIGHT, ids, config.positions.first and 1)  # RoBERTa's positions start after its padding id
    theirs = {"input_ids": padded, "attention_mask": RIGHT, "token_type_ids": token_type_ids}
    return theirs, ((padded,), {"segment_ids": RIGHT, "token_type_ids": token_type_ids}), RIGHT.astype(bool)


def outputs_of_theirs(model, arguments):
    out = model(**{k: torch.from_numpy(v) for k, v in arguments.items()}, output_hidden_states=True)
    names = {
        "logits": "masked_lm",
        "prediction_logits": "masked_lm",
        "seq_relationship_logits": "next_sentence",
        "pooler_output": "pooled",
        "last_hidden_state": "hidden",
    }
    sides = {"": "hidden_states", "encoder/": "encoder_hidden_states", "decoder/": "decoder_hidden_states"}
    layers = {side: out[theirs] for side, theirs in sides.items() if theirs in out}
    return {ours: out[theirs] for theirs, ours in names.items() if out.get(theirs) is not None}, layers


def close(actual, wanted, scale=2e-5, name=""):
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    assert np.abs(actual - wanted).max() <= scale * np.abs(wanted).max(), name


@pytest.mark.parametrize("name", CASES)
def test_logits_and_every_layer_equal_transformers_and_it_reads_what_we_write(name, rng, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "theirs")
    config, params, _ = load(tmp_path / "theirs")
    theirs, (args, kwargs), real = inputs(config, rng)
    with torch.no_grad():
        wanted, layers = outputs_of_theirs(model, theirs)
    out, seen = jax.jit(make_capture(config.build()))(params, *args, **kwargs)
    out = out if isinstance(out, dict) else {"masked_lm": out}
    if name == "gpt2-bare":  # no logits; its last state is after the norm
        wanted = {}
    for key, value in wanted.items():
        at = real if value.ndim == 3 else slice(None)
        close(out[key][at], value.numpy()[at], name=key)
    for side, states in layers.items():
        at = RIGHT.astype(bool) if side == "encoder/" else real
        count = len(states) - 1 - (not isinstance(config, BertConfig))  # a decoder's last state is after its norm
        for i in range(count):
            close(seen[f"{side}block_{i}/hidden"][at], states[i + 1].numpy()[at], name=f"{side}{i}")

    save(tmp_path / "ours", config, params)
    again = type(model).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    with torch.no_grad():
        written, _ = outputs_of_theirs(again, theirs)
        for key, value in outputs_of_theirs(model, theirs)[0].items():
            close(written[key], value, 1e-6, key)


@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta", "llama-yarn", "qwen3", "t5-1.1"])
def test_gradients_equal_transformers(name, rng, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    config, params, _ = load(tmp_path)
    theirs, (args, kwargs), real = inputs(config, rng)
    wanted, _ = outputs_of_theirs(model, theirs)
    weights = {key: rng.standard_normal(value.shape).astype(np.float32) for key, value in wanted.items()}
    weights = {key: w * real[..., None] if w.ndim == 3 else w for key, w in weights.items()}
    sum((value * torch.from_numpy(weights[key])).sum() for key, value in wanted.items()).backward()
    apply = make_apply(config.build())

    def loss(params):
        out = apply(params, *args, **kwargs)
        out = out if isinstance(out, dict) else {"masked_lm": out}
        return sum((out[key] * w).sum() for key, w in weights.items())

    grads = jax.jit(jax.grad(loss))(params)
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    model.save_pretrained(tmp_path / "gradients")
    _, wanted, _ = load(tmp_path / "gradients")

    def compare(path, a, b):
        limit = 5e-5 * np.abs(b).max() + 1e-5
        assert np.abs(a - b).max() <= limit, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(compare, grads, wanted)


def tiny(**kw):
    return GPTConfig(vocab_size=37, max_length=24, num_layers=2, num_heads=4, embed_dim=16, **kw)


def params_of(config, seed=0):
    return init_params(config.build(), jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))


@pytest.mark.parametrize(
    "config", [tiny(), BertConfig(vocab_size=37, max_length=24, num_layers=2, num_heads=2, embed_dim=8, mlp_dim=9)]
)
def test_round_trip_is_exact_also_in_shards(config, tmp_path):
    params = params_of(config)
    save(tmp_path, config, params)
    save(tmp_path, config, params, max_shard_bytes=2000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2 and not (tmp_path / "model.safetensors").exists()
    again, loaded, tokenizer = load(tmp_path)
    assert tokenizer is None and again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    save(tmp_path, config, params)  # one file again, without the old shards
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_scanned_layers_are_written_apart(tmp_path):
    scanned = tiny(scan_layers=True)
    params = params_of(scanned)
    save(tmp_path, scanned, params)
    config, loaded, _ = load(tmp_path)
    ids = jnp.arange(8)[None]
    close(make_apply(config.build())(loaded, ids), make_apply(scanned.build())(params, ids), 1e-6)


def test_parameters_go_straight_to_their_shards(tmp_path):
    config = tiny()
    params = params_of(config)
    save(tmp_path, config, params)
    mesh = make_mesh(MeshConfig(data=1, tensor=4), jax.devices()[:4])
    rules = {**TENSOR, "vocab": None}
    _, loaded, _ = load(tmp_path, mesh=mesh, rules=rules)
    kernel = loaded["block_0"]["attention"]["query"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {(16, 1, 4)}
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_half_precision_files_are_read(tmp_path):
    config = tiny()
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(config))
    save(tmp_path, config, params)
    _, loaded, _ = load(tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), loaded, params)


def edit(folder, change):
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    change(arrays)
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")


WTE = "transformer.wte.weight"
BAD = {
    "missing": (lambda a: a.pop("transformer.h.1.ln_1.bias"), r"tensor transformer\.h\.1\.ln_1\.bias is missing"),
    "surplus": (
        lambda a: a.update(classifier=a[WTE]),
        r"tensor classifier matches no parameter.*ignore=\['classifier'\]",
    ),
    "shape": (
        lambda a: a.update({WTE: a[WTE][:-1]}),
        r"wte\.weight has shape \(36, 16\); config\.json expects \(37, 16\)",
    ),
    "copy": (
        lambda a: a.update({"lm_head.weight": a[WTE] + (np.arange(37) == 36)[:, None].astype(np.float32)}),
        r"lm_head\.weight differs from transformer\.wte\.weight, which it should equal",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_tensor_that_does_not_fit_is_named(case, tmp_path):
    save(tmp_path, tiny(), params_of(tiny()))
    change, message = BAD[case]
    edit(tmp_path, change)
    with pytest.raises(UserError, match=message):
        load(tmp_path)
    if case == "surplus":
        load(tmp_path, ignore=["class*"])
    if case == "copy":
        load(tmp_path, ignore=["lm_head.weight"])
        edit(tmp_path, lambda a: a.update({"lm_head.weight": a[WTE]}))
        load(tmp_path)


def test_a_tensor_that_an_index_does_not_name_is_left_over_too(tmp_path):
    save(tmp_path, tiny(), params_of(tiny()), max_shard_bytes=2000)
    shard = next(tmp_path.glob("model-00001*"))
    arrays = safetensors.numpy.load_file(shard)
    safetensors.numpy.save_file({**arrays, "extra": np.zeros(3, np.float32)}, shard)
    with pytest.raises(UserError, match="tensor extra matches no parameter"):
        load(tmp_path)
    load(tmp_path, ignore=["extra"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_every_kind_of_t5_is_read_as_it_was_written(tied, scaled, tmp_path, rng):
    config = T5Config(
        vocab_size=37, num_layers=1, num_decoder_layers=1, num_heads=2, embed_dim=8, head_dim=3, mlp_dim=9
    )
    config.tie_embeddings, config.scale_logits = tied, scaled
    params = init_params(config.build(), jax.random.key(0), *(np.zeros((1, 4), np.int32),) * 2)
    save(tmp_path, config, params, special_ids={"decoder_start_token_id": 5, "pad_token_id": 5, "eos_token_id": 36})
    assert load(tmp_path)[0] == config
    ids = rng.integers(3, 37, (2, 7))
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert (theirs.config.eos_token_id, theirs.config.decoder_start_token_id) == (36, 5)
    with torch.no_grad():
        wanted = theirs(input_ids=torch.from_numpy(ids), decoder_input_ids=torch.from_numpy(ids)).logits
    close(make_apply(config.build())(params, ids, ids), wanted.numpy())
    if not tied:
        edit(tmp_path, lambda arrays: arrays.pop("lm_head.weight"))
        with pytest.raises(UserError, match=r"tensor lm_head\.weight is missing"):
            load(tmp_path)


def test_other_bad_checkpoints_have_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nothing here")
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        load(tmp_path)
    save(tmp_path, tiny(), params_of(tiny()))
    good = json.loads((tmp_path / "config.json").read_text())
    for change, message in [
        ({"model_type": "mamba"}, r"model_type='mamba' is not supported; expected one of gpt2, bert, roberta, llama"),
        ({"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx=True is not supported"),
        ({"activation_function": "mish"}, r"activation_function='mish'"),
        ({"resid_pdrop": 0.3}, r"resid_pdrop=0\.3, embd_pdrop=0\.0"),
        ({"n_head": 3}, r"n_head=3"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(UserError, match=message):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in good.items() if k != "n_head"}))
    with pytest.raises(UserError, match="num_heads=12|n_head=12"):  # the default of transformers' class
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(good))
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: not a safetensors file, or truncated"):
        load(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"neither model\.safetensors nor .*pytorch_model\.bin is a pickle"):
        load(tmp_path)


def test_a_model_transformers_does_not_have_is_not_written(tmp_path):
    config = tiny(norm=norms.RMSNorm())
    with pytest.raises(UserError, match="transformers has no class for this GPTConfig"):
        save(tmp_path, config, params_of(config))
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    config = tiny()
    save(tmp_path, config, params_of(config))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    real = safetensors.numpy.save_file

    def full(arrays, path, **kw):  # the second file finds the disk full
        if "00002" in path.name:
            raise OSError(28, "No space left on device")
        real(arrays, path, **kw)

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(UserError, match="No space left on device.*existing files are unchanged"):
        save(tmp_path, config, params_of(config, 1), max_shard_bytes=2000)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_roberta_with_a_next_sentence_head_is_not_written(tmp_path):
    config = roberta(vocab_size=37, max_length=8, num_layers=1, num_heads=1, embed_dim=4, heads=("next_sentence",))
    with pytest.raises(UserError, match="transformers has no class for this BertConfig"):
        save(tmp_path, config, params_of(config))
