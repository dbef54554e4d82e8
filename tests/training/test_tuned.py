"""PEFT in runs: meshes equal one device, bit-exact resuming, and loading with the run's base."""

import dataclasses
import functools
import json
from typing import Any

import jax
import numpy as np
import pytest

from jaxnlp import config as configs
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.tasks.text_pairs import TextPairs
from jaxnlp.data.tokenizer import ByteTokenizer
from jaxnlp.errors import FieldError, UserError
from jaxnlp.inference.bound_model import make_generator
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.heads import ModelWithHead, SequenceClassificationHead
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.objectives.causal_lm import CausalLM
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.optim import OptimConfig
from jaxnlp.peft.adapter import Adapter
from jaxnlp.peft.bitfit import BitFit
from jaxnlp.peft.files import fingerprint
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import Prompt
from jaxnlp.planning.dry_run import estimate_memory, parameter_count
from jaxnlp.sharding.presets import DP_PP_TP, TP_SP, ZERO3
from jaxnlp.sharding.rules import TENSOR, Sharding
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.init.pretrained import Pretrained
from jaxnlp.training.load import load
from jaxnlp.training.loops.supervised import train
from jaxnlp.training.run_folder import resume
from jaxnlp.training.step.program import build
from jaxnlp.trees import select

from ..experiments import small
from .test_meshes import B, T, batch
from .test_pretrained import CLASSES, GPT
from .test_pretrained import run as pretrained_run

METHODS = {
    "lora": LoRA(
        rank=2, targets=("query", "value", "out", "up", "down", "embed"), dropout_rate=0.1, lora_plus_ratio=4.0
    ),
    "dora": LoRA(rank=2, targets=("query", "down"), use_dora=True, base_dtype="bfloat16"),
    "nf4": LoRA(rank=2, targets=("query", "value", "out", "up", "down"), base_dtype="nf4", base_block=4),
    "int8": Adapter(bottleneck=4, base_dtype="int8", base_block=4),
    "adapter": Adapter(bottleneck=4),
    "bitfit": BitFit(),
    "prefix": Prefix(length=2),
    "prefix of a network": Prefix(length=2, hidden_dim=4),
}
ZERO3_TP = dataclasses.replace(
    ZERO3.over(fsdp=4, tensor=2),
    params={**TENSOR, "embed": "fsdp"},
    gradients={**TENSOR, "embed": "fsdp"},
    optimizer={**TENSOR, "embed": "fsdp"},
)
MESHES = {
    "zero3 tp": ZERO3_TP,
    "tp sp": TP_SP.over(data=4, tensor=2),
    "three": DP_PP_TP.over(data=2, stage=2, tensor=2),
}


def experiment(method: str, sharding: Sharding) -> Experiment:
    model = GPTConfig(
        vocab_size=64, max_length=T + 2, num_layers=2, num_heads=2, embed_dim=16, dropout_rate=0.1, scan_layers=True
    )
    return Experiment(
        model=model,
        objective=CausalLM(),
        data=DataConfig(seq_len=T, batch_size=B, attend_across_documents=True),
        optim=OptimConfig(name="sgd", learning_rate=0.5, schedule="constant", weight_decay=0.0),
        peft=METHODS[method],
        sharding=sharding,
        accum_steps=2,
        num_steps=10,
    )


def trained(method: str, sharding: Sharding, devices: int):
    """(losses, tuned parameters, the fingerprint of the frozen ones before and after) of three steps."""
    program = build(experiment(method, sharding), jax.devices()[:devices])
    state, losses = program.init(), []
    before = fingerprint(state.frozen)
    shapes = jax.tree.map(lambda x: x.shape, state.opt_state)
    assert len(jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple))) < 4 * len(jax.tree.leaves(state.params))
    for i in range(3):
        state, metrics = program.step(state, program.shard_batch(batch("gpt", i)))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params), (before, fingerprint(state.frozen))


@functools.cache
def on_one(method: str):
    return trained(method, Sharding(), 1)


ALSO = {"tp sp": ("nf4", "prefix of a network"), "three": ("lora", "prefix")}


def marks(*case: str):
    return {("lora", "zero3 tp"): (), ("nf4", "tp sp"): pytest.mark.full}.get(case, pytest.mark.slow)


@pytest.mark.parametrize(
    ("method", "mesh"),
    [
        pytest.param(method, mesh, marks=marks(method, mesh))
        for method in METHODS
        for mesh in MESHES
        if mesh == "zero3 tp" or method in ALSO[mesh]
    ],
)
def test_tuned_over_a_mesh_as_on_one_device(method, mesh):
    losses, params, frozen = trained(method, MESHES[mesh], 8)
    wanted_losses, wanted, (begun, _) = on_one(method)
    assert frozen == (begun, begun)
    assert len(set(losses)) == 3
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale), params, wanted)


def untuned(corpus, **changes) -> Experiment:
    e = small.get_config(str(corpus))
    optim = dataclasses.replace(e.optim, schedule="constant")
    return dataclasses.replace(
        e, **{"num_steps": 4, "sample_tokens": 0, "sharding": Sharding(), "optim": optim, **changes}
    )


@pytest.fixture(scope="module")
def base(corpus, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    train(untuned(corpus), folder)
    return str(folder)


def tuned_run(corpus, base: str, **changes) -> Experiment:
    fields = {"peft": LoRA(rank=2, targets=("query", "value", "embed")), "init_from": Pretrained(path=base), **changes}
    e = dataclasses.replace(untuned(corpus), **{"num_steps": 8, **fields})
    return dataclasses.replace(e, data=dataclasses.replace(e.data, attend_across_documents=True))


def test_a_run_resumes_to_the_bit_and_its_checkpoints_hold_what_was_trained(corpus, base, tmp_path):
    straight = train(tuned_run(corpus, base), tmp_path / "straight")
    train(tuned_run(corpus, base, num_steps=4), tmp_path / "halves")
    halves = train(tuned_run(corpus, base), tmp_path / "halves")
    jax.tree.map(np.testing.assert_array_equal, halves.state.params, straight.state.params)
    loaded = load(tmp_path / "halves")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, straight.state.all_params)
    trained = set(json.loads((tmp_path / "halves/checkpoints/8/MANIFEST.json").read_text()))
    assert sum(x.size for x in jax.tree.leaves(straight.state.params)) == 2 * 2 * 2 * 16 + 2 * (257 + 16)
    assert any("params" in name for name in trained)
    generated = loaded.generator().generate(loaded.params, [[5, 6, 7]], 4)
    assert len(generated[0].ids) <= 4


@pytest.mark.parametrize("method", [Prompt(length=3), Prefix(length=3)])
def test_texts_are_written_after_a_prompt_as_the_whole_pass_reads_them(method, corpus, base, tmp_path):
    """The log-probability of each generated token equals that of one pass over prompt and text."""
    train(tuned_run(corpus, base, peft=method, num_steps=4), tmp_path)
    run = load(tmp_path)
    prompts = [[5, 6, 7], [9]]
    for generation, prompt in zip(run.generator().generate(run.params, prompts, 4), prompts, strict=True):
        text = [run.saved.tokenizer.eos_id, *prompt, *generation.ids]
        with run.program.context(any_length=True, batch=None):
            logits = run.program.apply(run.params, np.asarray([text]))
        wanted = jax.nn.log_softmax(logits[0, :, :257])
        for i, (token, value) in enumerate(zip(generation.ids, generation.log_probs, strict=True)):
            np.testing.assert_allclose(wanted[len(prompt) + i, token], value, rtol=1e-3, atol=1e-4)


def test_an_encoder_decoder_writes_after_a_prompt_that_its_encoder_read():
    sizes: dict[str, Any] = {"vocab_size": 257, "num_layers": 1, "num_heads": 2, "embed_dim": 16, "mlp_dim": 24}
    e = Experiment(
        model=TransformerConfig(**sizes, max_length=12),
        data=DataConfig(seq_len=8, batch_size=2, task=TextPairs(target_len=8)),
        objective=Seq2Seq(),
        peft=Prompt(length=3),
    )
    program = build(e, jax.devices()[:1])
    params = program.init().all_params
    generator = make_generator(program.bind(ByteTokenizer()))
    assert generator.num_virtual_tokens == 0 and generator.prefill_prefix is None
    with program.context(any_length=True, batch=None):
        apply = jax.jit(program.apply)
        for source, generation in zip(([5, 6, 7], [9]), generator.generate(params, [[5, 6, 7], [9]], 4), strict=True):
            read, text = [*source, *generator.source_end_ids], [*generator.start_ids, *generation.ids]
            wanted = jax.nn.log_softmax(apply(params, np.asarray([read]), np.asarray([text]))[0])
            for i, (token, value) in enumerate(zip(generation.ids, generation.log_probs, strict=True)):
                np.testing.assert_allclose(wanted[i, token], value, rtol=1e-3, atol=1e-4)


def test_a_base_that_changed_or_went_and_a_method_that_changed(corpus, base, tmp_path):
    train(tuned_run(corpus, base, num_steps=4), tmp_path / "run")
    with pytest.raises(UserError, match="peft.rank: the checkpoint has 2 and the config has 3"):
        train(tuned_run(corpus, base, peft=LoRA(rank=3, targets=("query", "value", "embed"))), tmp_path / "run")
    other = train(untuned(corpus, seed=1), tmp_path / "b")
    assert other.state.frozen is None
    train(tuned_run(corpus, str(tmp_path / "b"), num_steps=4), tmp_path / "moved")
    (tmp_path / "b").rename(tmp_path / "away")
    with pytest.raises(UserError, match="init_from.path.*no such folder"):
        load(tmp_path / "moved")
    train(untuned(corpus, seed=2), tmp_path / "b")
    with pytest.raises(UserError, match="its parameters are not those that this run was tuned on"):
        load(tmp_path / "moved")


def test_a_new_head_is_trained_whole_and_a_fresh_trunk_must_be(tmp_path):
    path, _ = pretrained_run(tmp_path, GPT)
    data = DataConfig(seq_len=8, batch_size=4, task=CLASSES)
    model = ModelWithHead(body=GPT, head=SequenceClassificationHead(num_classes=3))
    e = Experiment(model=model, data=data, num_steps=1, peft=LoRA(rank=2), init_from=Pretrained(path=path))
    program = build(e, jax.devices()[:1])
    assert {"trunk", "head"} == set(program.abstract.params)
    state = program.init_from_params(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), program.base_params_spec[0]))
    assert "head" not in state.frozen
    assert program.tuning is not None
    assert "fully trained: head/" in program.tuning.report()


def test_a_quantised_base_is_made_again_from_its_run(corpus, base, tmp_path):
    """Requantised bit-exactly from its run; the PEFT run learns, resumes bit-exactly, is merged and generates."""
    method = LoRA(rank=2, targets=("query", "value", "embed"), base_dtype="nf4")
    straight = train(tuned_run(corpus, base, peft=method), tmp_path / "straight")
    train(tuned_run(corpus, base, peft=method, num_steps=4), tmp_path / "halves")
    halves = train(tuned_run(corpus, base, peft=method), tmp_path / "halves")
    jax.tree.map(np.testing.assert_array_equal, halves.state.params, straight.state.params)
    loaded, trained = load(tmp_path / "halves"), load(base)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, straight.state.all_params)
    tuning = loaded.program.tuning
    assert tuning is not None and len(tuning.blocks) == 6
    frozen = tuning.frozen(trained.params)
    jax.tree.map(np.testing.assert_array_equal, select(loaded.params, frozen), frozen)
    sizes = sum(x.nbytes for x in jax.tree.leaves(loaded.params))
    assert estimate_memory(loaded.program)["parameters"] == sizes
    tuned = select(loaded.params, loaded.program.abstract.params)
    assert parameter_count(loaded.program) == sum(x.size for x in jax.tree.leaves((trained.params, tuned)))
    merged = tuning.merge(select(loaded.params, tuning.shapes), tuned)
    assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, trained.params)
    tokens = np.arange(8)[None]
    with loaded.program.context(any_length=True, batch=None):
        live = loaded.program.apply(loaded.params, tokens)
        np.testing.assert_allclose(trained.program.apply(merged, tokens), live, rtol=1e-4, atol=1e-5)
    written = loaded.generator().generate(loaded.params, [[5, 6, 7]], 4)
    again = trained.generator().generate(merged, [[5, 6, 7]], 4)
    assert [g.ids for g in written] == [g.ids for g in again]


def test_what_cannot_be_tuned_is_told_before_anything_is_compiled():
    e = experiment("lora", Sharding())
    with pytest.raises(FieldError, match=r"peft='lora': expected a method of jaxnlp.peft, as LoRA\(rank=8\)"):
        configs.check(dataclasses.replace(e, peft="lora"))
    packed = dataclasses.replace(e.data, attend_across_documents=False)
    with pytest.raises(FieldError, match="peft=.Prompt.*needs one document per row"):
        dataclasses.replace(e, peft=Prompt(), data=packed).check()
    with pytest.raises(FieldError, match="peft.base_dtype='int9': expected one of float32"):
        build(dataclasses.replace(e, peft=LoRA(base_dtype="int9")), jax.devices()[:1])
    nf4 = LoRA(base_dtype="nf4")
    with pytest.raises(FieldError, match="peft.base_dtype='nf4': does not support pipeline stages .mesh.stage=2."):
        build(dataclasses.replace(e, peft=nf4, sharding=MESHES["three"]), jax.devices())
    wide = dataclasses.replace(e, peft=nf4, model=dataclasses.replace(e.model, embed_dim=96), sharding=ZERO3_TP)
    message = (
        "peft.base_block=64: .*query/kernel has embed=96 over fsdp=4 devices, which leaves no full .* of 48 .* use 24"
    )
    with pytest.raises(FieldError, match=message):
        build(wide, jax.devices())
    assert build(dataclasses.replace(wide, peft=LoRA(base_dtype="nf4", base_block=24)), jax.devices())
    with pytest.raises(
        FieldError, match="peft.hidden_dim=4: the network does not support pipeline stages .mesh.stage=2."
    ):
        build(experiment("prefix of a network", MESHES["three"]), jax.devices())
    assert resume.changes(e, dataclasses.replace(e, log_every=3))
