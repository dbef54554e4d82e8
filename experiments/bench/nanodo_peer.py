"""nanodo as a contender: its model and loss, with AdamW and gradient clipping. Runs in its own environment.

python nanodo_peer.py --shape=baby --nanodo=CHECKOUT [--keep]
"""

import argparse
import importlib
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import harness
from shapes import SHAPES

parser = argparse.ArgumentParser()
parser.add_argument("--shape", default="baby")
parser.add_argument("--nanodo", required=True)
parser.add_argument("--keep", action="store_true", help="the allocator settings of jaxnlp.runtime")


def main() -> None:
    out = harness.protocol()
    a = parser.parse_args()
    if a.keep:
        harness.keep_freed_memory()
    sys.path.insert(0, a.nanodo)
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    nanodo: Any = importlib.import_module("nanodo.model")
    if a.keep:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    s = SHAPES[a.shape]
    config = nanodo.DoConfig(
        D=s["dim"], H=s["heads"], L=s["length"], N=s["layers"], V=s["vocab"], F=4 * s["dim"], fsdp_enabled=False
    )
    model = nanodo.TransformerDo(config)
    data = np.random.default_rng(0).integers(0, s["vocab"], (16, s["batch"], s["length"] + 1)).astype(np.int32)
    params = jax.jit(model.init)(jax.random.PRNGKey(0), data[0, :, :-1])["params"]
    decay = lambda params: jax.tree.map(lambda x: x.ndim >= 2, params)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, 0.9, 0.99, weight_decay=0.1, mask=decay))

    def loss(params, rows):
        logits = model.apply({"params": params}, rows[:, :-1])
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:])
        weights = jnp.ones_like(losses)
        return (losses * weights).sum() / weights.sum()

    def train_step(state, rows):
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, rows)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    jitted = jax.jit(train_step, donate_argnums=0)
    current = {"state": (params, optimizer.init(params)), "loss": None, "i": 0}

    def step():
        current["state"], current["loss"] = jitted(current["state"], data[current["i"] % 16])
        current["i"] += 1

    harness.serve(out, step, lambda: float(current["loss"]), info={"jax": jax.__version__})


if __name__ == "__main__":
    main()
