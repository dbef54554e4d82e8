"""Parity matrix: every table over eight devices trains as one device, with dropout, padding and accumulation.

SGD with momentum: the change of its trace in a step is the step's gradient, so losses, gradients and parameters are
all compared at every step, each relative to the largest number of its tensor.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxnlp.data import encoder_decoder
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.tasks.text_pairs import TextPairs
from jaxnlp.data.text.packing import FILL, pack
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.llama import LlamaConfig
from jaxnlp.models.t5 import T5Config
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.nn.kernels import Einsum
from jaxnlp.nn.ring import Ring
from jaxnlp.objectives.causal_lm import CausalLM
from jaxnlp.objectives.masked_lm import MaskedLM
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.optim import OptimConfig
from jaxnlp.sharding.presets import DDP, DP_PP_TP, PP, STAGED, TP, TP_SP, ZERO1, ZERO2, ZERO3
from jaxnlp.sharding.rules import FSDP, TENSOR, Sharding
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

V, B, T, M, ACCUM, MOMENTUM = 32, 16, 16, 3, 2, 0.9
SIZES = {"vocab_size": V, "num_layers": 4, "num_heads": 8, "embed_dim": 16, "mlp_dim": 32, "dropout_rate": 0.1}
SIZES["scan_layers"] = True  # pipeline stages need it, and a scanned stack compiles as fast as one layer
MODELS = {
    "gpt": GPTConfig(max_length=T, **SIZES),
    "bert": BertConfig(max_length=T, **SIZES),
    "t5": T5Config(head_dim=4, **SIZES),
    "transformer": TransformerConfig(max_length=T, **SIZES),
}
PAIRS = ("t5", "transformer")
LLAMA = {**SIZES, "num_kv_heads": 4, "window": 7, "remat": "full"}
LLAMA.pop("dropout_rate")
UNROLLED = {"gpt unrolled": dataclasses.replace(MODELS["gpt"], num_layers=2, scan_layers=False)}
RINGS = {
    "gpt of a ring": dataclasses.replace(MODELS["gpt"], attention=Ring(block=2)),
    "bert of a ring": dataclasses.replace(MODELS["bert"], attention=Ring()),
    "llama of a ring": LlamaConfig(attention=Ring(), **LLAMA),
}

SPLIT = {**TENSOR, "embed": "fsdp"}
ZERO3_TP = Sharding(params=SPLIT, gradients=SPLIT, optimizer=SPLIT)
ZERO3_TP_SP = Sharding(params=SPLIT, gradients=SPLIT, optimizer=SPLIT, activations=TP_SP.activations)
OVER_BOTH = {**FSDP, "embed": ("data", "fsdp")}
STAGED_ZERO2 = dataclasses.replace(PP, gradients={**PP.params, **FSDP, **STAGED}, optimizer={**FSDP, **STAGED})
STAGED_ZERO3 = dataclasses.replace(DP_PP_TP, params={**SPLIT, **STAGED})
ONE_F_ONE_B = dataclasses.replace(DP_PP_TP, pipeline="1f1b")
CIRCULAR = dataclasses.replace(PP, pipeline="circular")
MESHES = {
    "DDP data 8": DDP,
    "ZERO1 fsdp 8": ZERO1.over(fsdp=8),
    "ZERO2 fsdp 8": ZERO2.over(fsdp=8),
    "ZERO3 fsdp 8": ZERO3.over(fsdp=8),
    "ZERO3 data 2 fsdp 4": ZERO3.over(data=2, fsdp=4),
    "ZERO3 over data 4 and fsdp 2": Sharding(params=OVER_BOTH).over(data=4, fsdp=2),
    "TP tensor 8": TP.over(tensor=8),
    "TP data 2 tensor 4": TP.over(data=2, tensor=4),
    "TP_SP tensor 8": TP_SP.over(tensor=8),
    "TP_SP data 2 tensor 4": TP_SP.over(data=2, tensor=4),
    "ZERO1 data 2 fsdp 2 sequence 2": ZERO1.over(data=2, fsdp=2, sequence=2),
    "DDP sequence 8": DDP.over(sequence=8),
    "ZERO2 fsdp 2 sequence 4": ZERO2.over(fsdp=2, sequence=4),
    "ZERO3 and TP, fsdp 2 tensor 4": ZERO3_TP.over(fsdp=2, tensor=4),
    "ZERO3 and TP, 2 2 2": ZERO3_TP.over(data=2, fsdp=2, tensor=2),
    "ZERO3 and TP_SP, 2 2 2": ZERO3_TP_SP.over(data=2, fsdp=2, tensor=2),
    "ZERO3 and TP_SP, fsdp 2 sequence 2 tensor 2": ZERO3_TP_SP.over(fsdp=2, sequence=2, tensor=2),
    "PP data 2 stage 4": PP.over(data=2, stage=4),
    "PP data 4 stage 2, circular": CIRCULAR.over(data=4, stage=2),
    "PP and ZERO2, stage 2 fsdp 4": STAGED_ZERO2.over(stage=2, fsdp=4),
    "PP data 2 stage 2 sequence 2": PP.over(data=2, stage=2, sequence=2),
    "DP_PP_TP data 2 stage 2 tensor 2": DP_PP_TP.over(data=2, stage=2, tensor=2),
    "DP_PP_TP data 2 stage 2 tensor 2, 1F1B": ONE_F_ONE_B.over(data=2, stage=2, tensor=2),
    "DP_PP_TP and ZERO3, stage 2 fsdp 2 tensor 2": STAGED_ZERO3.over(stage=2, fsdp=2, tensor=2),
    "DP_PP_TP stage 2 sequence 2 tensor 2": DP_PP_TP.over(stage=2, sequence=2, tensor=2),
}
# Models and tables are independent by design: GPT runs on all meshes, the others on those that could break them, for
# their own axes, masks and two stacks. Only `make test-all` runs the full product.
FAST = {
    ("gpt", "ZERO1 data 2 fsdp 2 sequence 2"),
    ("gpt", "ZERO3 and TP_SP, 2 2 2"),
    ("gpt", "PP data 4 stage 2, circular"),
    ("gpt of a ring", "ZERO2 fsdp 2 sequence 4"),
}
COVERING = {
    "gpt": set(MESHES),
    "bert": {
        "ZERO3 and TP_SP, 2 2 2",
        "ZERO2 fsdp 2 sequence 4",
        "DP_PP_TP stage 2 sequence 2 tensor 2",
        "PP data 4 stage 2, circular",
    },
    "t5": {"ZERO3 and TP_SP, 2 2 2", "DP_PP_TP data 2 stage 2 tensor 2", "PP data 4 stage 2, circular"},
}
COVERING["transformer"] = COVERING["bert"]
REST = (  # of the full product
    "DDP data 8",
    "ZERO1 data 2 fsdp 2 sequence 2",
    "ZERO2 fsdp 8",
    "ZERO3 data 2 fsdp 4",
    "TP data 2 tensor 4",
    "TP_SP data 2 tensor 4",
    "PP data 2 stage 4",
    "DP_PP_TP data 2 stage 2 tensor 2",
    "DDP sequence 8",
    "ZERO3 and TP, 2 2 2",
    "PP and ZERO2, stage 2 fsdp 4",
    "PP data 2 stage 2 sequence 2",
)
RINGED = "ZERO2 fsdp 2 sequence 4"


T5_REST = {"DDP data 8", "ZERO3 data 2 fsdp 4", "TP_SP data 2 tensor 4"}  # covered by the other encoder-decoder


def marks(name: str, mesh: str):
    covering = mesh in COVERING.get(name, {"ZERO3 and TP, 2 2 2", RINGED})
    return () if (name, mesh) in FAST else pytest.mark.slow if covering else pytest.mark.full


CASES = [
    (name, mesh)
    for name in MODELS
    for mesh in MESHES
    if mesh in COVERING[name] or mesh in (T5_REST if name == "t5" else REST)
]
CASES += [("gpt unrolled", "ZERO3 and TP, 2 2 2"), *((name, RINGED) for name in RINGS)]
CASES = [pytest.param(*case, marks=marks(*case)) for case in CASES]


def batch(name: str, seed: int) -> dict[str, np.ndarray]:
    """Rows that end in padding of different lengths."""
    random = np.random.default_rng(seed)
    if name in PAIRS:
        text = lambda: random.integers(0, V - 1, random.integers(1, T + 1))
        return encoder_decoder.collate_pairs(
            [(text(), text()) for _ in range(B)], T, T, fill=V - 1, decoder_start_id=V - 1
        )
    if name in ("gpt", "llama"):
        windows = random.integers(0, V - 1, (B, T + 1)).astype(np.int32)
        windows[random.random((B, T + 1)) < 0.15] = V - 1
        for i, length in enumerate(random.integers(1, T + 1, B)):
            windows[i, length + 1 :] = FILL
        return pack(windows, V - 1)
    integers = lambda high, *shape: random.integers(0, high, shape).astype(np.int32)
    return {
        "tokens": integers(V, B, T),
        "token_type_ids": np.sort(integers(2, B, T), axis=1),
        "segment_ids": (np.arange(T) < random.integers(5, T + 1, (B, 1))).astype(np.int32),
        "masked_positions": integers(5, B, M),
        "targets": integers(V, B, M),
        "weights": (random.random((B, M)) < 0.6).astype(np.float32),
        "next_sentence": integers(2, B),
        "pair_weights": np.ones(B, np.float32),
    }


def program(name: str, sharding: Sharding, devices: int):
    """One device has no ring and uses `Einsum`."""
    model, name = {**MODELS, **UNROLLED, **RINGS}[name], name.split()[0]
    if devices == 1:
        model = dataclasses.replace(model, attention=Einsum())
    causal, pairs = CausalLM(z_loss=1e-3), Seq2Seq(label_smoothing=0.1)
    objectives = {"gpt": causal, "llama": causal, "bert": MaskedLM(), "t5": pairs, "transformer": pairs}
    e = Experiment(
        model=model,
        objective=objectives[name],
        data=DataConfig(seq_len=T, batch_size=B, **({"task": TextPairs(target_len=T)} if name in PAIRS else {})),
        optim=OptimConfig(
            name="sgd", learning_rate=0.1, schedule="constant", clip_norm=None, weight_decay=0.0, b1=MOMENTUM
        ),
        sharding=sharding,
        accum_steps=ACCUM,
        num_steps=10,
    )
    return build(e, jax.devices()[:devices])


def trained(program, state, name: str):
    """(losses, the gradient of each step, parameters) of three steps."""
    losses, gradients, before = [], [], []
    for i in range(3):
        state, metrics = program.step(state, program.shard_batch(batch(name.split()[0], i)))
        losses.append(float(metrics["loss"]))
        shapes = {x.shape for x in jax.tree.leaves(state.params)}
        trace = [np.asarray(x) for x in jax.tree.leaves(state.opt_state) if x.shape in shapes and x.ndim]
        gradient = [now - MOMENTUM * old for now, old in zip(trace, before or [0.0] * len(trace), strict=True)]
        gradients.append(jax.tree.unflatten(jax.tree.structure(state.params), gradient))
        before = trace
    return losses, gradients, jax.device_get(state.params)


@functools.cache
def first_parameters(name: str):
    return jax.device_get(program(name, Sharding(), 1).init().params)


@functools.cache
def first_state(name: str):
    return jax.device_get(program(name, Sharding(), 1).init_from_params(first_parameters(name)))


def placed(program, name: str):
    """The same initial state on every mesh; copied, not computed, so that a case compiles only its step."""
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), first_state(name), program.abstract)


@functools.cache
def one_device(name: str):
    single = program(name, Sharding(), 1)
    return trained(single, placed(single, name), name)


def close(actual, wanted):
    """Each tensor within 1e-5 of its largest number; biases of keys, whose gradient is zero up to rounding
    (softmax is invariant to them), within 1e-7 of the largest number of all."""
    actual, wanted = jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(wanted)
    largest = max(np.abs(x).max() for x in wanted)
    for (path, a), b in zip(actual, wanted, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        blind = name.endswith("key/bias")
        scale = 1e-2 * largest if blind else np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=name)
        assert not blind or np.abs(b).max() < scale


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_eight_devices_equal_one(name, mesh):
    many = program(name, MESHES[mesh], 8)
    losses, gradients, params = trained(many, placed(many, name), name)
    wanted_losses, wanted_gradients, wanted_params = one_device(name)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    close(gradients, wanted_gradients)
    close(params, wanted_params)


@pytest.mark.parametrize("mesh", ["ZERO3 and TP, 2 2 2", pytest.param("PP data 2 stage 4", marks=pytest.mark.slow)])
def test_a_run_begins_with_the_same_numbers_on_any_mesh(mesh):
    params = jax.device_get(program("gpt", MESHES[mesh], 8).init().params)
    jax.tree.map(np.testing.assert_array_equal, params, first_parameters("gpt"))
