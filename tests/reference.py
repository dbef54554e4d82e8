"""Reference implementations for parity tests, and their weights as our parameter trees.

Skips, saying so, where torch and transformers are not installed (the test extra, on Python 3.11).
"""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity tests need torch==2.13.0 (pip install -e .[test] on Python 3.11)")
transformers = pytest.importorskip("transformers", reason="parity tests need transformers (pip install -e .[test])")


def gpt2(*, layers=2, heads=4, dim=32, vocab=65, length=24, seed=0):
    """A transformers GPT-2 with random weights, biases and norms included, and without dropout."""
    config = transformers.GPT2Config(
        vocab_size=vocab,
        n_positions=length,
        n_embd=dim,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "wte" not in name and "wpe" not in name:
                parameter.mul_(3.0)  # so that attention is far from uniform
    return model


def gpt2_params(model, heads: int):
    """GPT-2's weights as parameters of `jaxnlp.models.gpt` with the default components."""
    state = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    dim = state["transformer.wte.weight"].shape[1]
    per_head = (heads, dim // heads)

    def norm(name):
        return {"scale": jnp.asarray(state[f"{name}.weight"]), "bias": jnp.asarray(state[f"{name}.bias"])}

    def linear(name, inputs, outputs):
        kernel, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return {"kernel": jnp.asarray(kernel.reshape(*inputs, *outputs)), "bias": jnp.asarray(bias.reshape(outputs))}

    params = {
        "embed": {"embedding": jnp.asarray(state["transformer.wte.weight"])},
        "positions": {"embedding": jnp.asarray(state["transformer.wpe.weight"])},
        "norm": norm("transformer.ln_f"),
    }
    for i in range(model.config.n_layer):
        at = f"transformer.h.{i}"
        kernels = np.split(state[f"{at}.attn.c_attn.weight"], 3, axis=1)
        biases = np.split(state[f"{at}.attn.c_attn.bias"], 3)
        attention = {
            name: {"kernel": jnp.asarray(k.reshape(dim, *per_head)), "bias": jnp.asarray(b.reshape(per_head))}
            for name, k, b in zip(("query", "key", "value"), kernels, biases, strict=True)
        }
        attention["out"] = linear(f"{at}.attn.c_proj", per_head, (dim,))
        params[f"block_{i}"] = {
            "attention": attention,
            "attention_norm": norm(f"{at}.ln_1"),
            "mlp": {
                "up": linear(f"{at}.mlp.c_fc", (dim,), (4 * dim,)),
                "down": linear(f"{at}.mlp.c_proj", (4 * dim,), (dim,)),
            },
            "mlp_norm": norm(f"{at}.ln_2"),
        }
    return params
