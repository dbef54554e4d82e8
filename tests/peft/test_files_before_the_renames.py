"""Files of tuned parameters saved by an earlier version, one per method, load and give that version's logits.

`fixtures/peft_files_of_november.tar.xz` holds the files, and the logits of the tuned model at the last of TOKENS. Their
base is `filled(..., 0)`, and what was tuned `filled(..., 1)`.
"""

import json
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.models.gpt import GPTConfig
from jaxnlp.peft.adapter import PFEIFFER, Adapter
from jaxnlp.peft.bitfit import BitFit
from jaxnlp.peft.files import load, read
from jaxnlp.peft.full import Full
from jaxnlp.peft.ia3 import IA3
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.method import PEFTMethod
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import Prompt, PTuning
from jaxnlp.sharding.functional import init_params, make_apply
from jaxnlp.trees import merge
from tests.entry import ROOT

TOKENS = np.array([[1, 5, 2]])
METHODS: dict[str, PEFTMethod] = {
    "lora": LoRA(rank=2, alpha=3.0, lora_plus_ratio=4.0),
    "rslora": LoRA(targets=("up", "down"), rank=4, use_rslora=True, init="gaussian"),
    "dora": LoRA(rank=1, use_dora=True),
    "lora_and_norm": LoRA(rank=1, modules_to_save=("norm/*",), base_dtype="bfloat16"),
    "lora_on_int8": LoRA(rank=1, base_dtype="int8", base_block=2, skip_modules=("up", "down")),
    "houlsby": Adapter(bottleneck=2),
    "pfeiffer": Adapter(targets=PFEIFFER, bottleneck=2, activation="relu"),
    "ia3": IA3(),
    "bitfit": BitFit(),
    "full": Full(frozen=("embed/*",)),
    "prefix": Prefix(length=2),
    "prefix_network": Prefix(length=2, hidden_dim=2),
    "prompt": Prompt(length=2),
    "p_tuning": PTuning(length=2, encoder="lstm", hidden_dim=2),
    "p_tuning_mlp": PTuning(length=2, encoder="mlp", hidden_dim=2),
}


def filled(tree, shift):
    """Element i of each leaf is ((i + shift) % 7 - 3) / 8."""
    values = lambda x: ((np.arange(x.size).reshape(x.shape) + shift) % 7 - 3) / 8
    return jax.tree.map(lambda x: jnp.asarray(values(x), x.dtype), tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(the folder of the files, the model, the parameters of their base)."""
    folder = tmp_path_factory.mktemp("saved")
    with tarfile.open(ROOT / "tests" / "fixtures" / "peft_files_of_november.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    module = GPTConfig(vocab_size=8, max_length=8, num_layers=1, num_heads=2, embed_dim=4, mlp_dim=4).build()
    base = filled(jax.eval_shape(lambda: init_params(module, jax.random.key(0), TOKENS)), 0)
    return folder / "peft_files_of_november", module, base


def test_every_file_has_its_method_and_its_tensors(saved):
    folder = saved[0]
    assert {path.stem for path in folder.glob("*.safetensors")} == set(METHODS)
    for name, method in METHODS.items():
        saved_method, _, arrays = read(folder / f"{name}.safetensors")
        assert saved_method == method and arrays
        jax.tree.map(np.testing.assert_array_equal, arrays, filled(arrays, 1))


@pytest.mark.parametrize("name", METHODS)
def test_the_tuned_model_is_what_it_was(name, saved):
    folder, module, base = saved
    tuning, tuned = load(folder / f"{name}.safetensors", base, module, TOKENS, method=METHODS[name])
    logits = jax.jit(tuning.apply(make_apply(module)))(merge(tuning.frozen(base), tuned), TOKENS)
    wanted = json.loads((folder / "logits.json").read_text())[name]
    # The norm rounds to bfloat16 where the base is in it.
    np.testing.assert_allclose(logits[0, -1], wanted, atol=2e-3 if tuning.method.base_dtype == "bfloat16" else 5e-5)
