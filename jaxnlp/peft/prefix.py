"""Prefixes: learned keys and values prepended to those of the text in the attention of every layer.

Prefix tuning (Li and Liang 2021, arXiv:2101.00190) produces them with a small network during training. P-tuning v2 (Liu
et al. 2022, arXiv:2110.07602), also called deep prompts, learns them directly. Every query may attend to them. The
positions of the text start after the prefix, at P.

Shape legend: P prefix length, B batch, S key length, N key and value heads, K head size, L layers, D model, H units.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn import trace_context
from jaxnlp.nn.interceptors import ModuleCall
from jaxnlp.peft.method import AdapterParam, PEFTMethod
from jaxnlp.peft.prompt import check_room, takes, uniform
from jaxnlp.peft.targets import Target, choose
from jaxnlp.trees import Path

KEY, VALUE = "prefix_key", "prefix_value"


@dataclasses.dataclass(kw_only=True)
class Prefix(PEFTMethod):
    """Learned keys and values prepended in each attention layer.

    length: P.
    targets: patterns of attention layers: `nn.attention.MultiHeadAttention`, or modules with its method `keys_values`.
    hidden_dim: units of the network that produces them during training; None: they are learned directly (P-tuning v2).
    """

    length: int = 16
    targets: tuple[str, ...] = ("attention",)
    hidden_dim: int | None = None

    intercepted_methods = ("__call__", "keys_values")

    def check(self) -> None:
        super().check()
        if self.length < 1:
            raise FieldError("length", self.length, "expected a positive number of keys and values")
        if self.hidden_dim is not None and self.hidden_dim < 1:
            raise FieldError("hidden_dim", self.hidden_dim, "expected a positive number of units, or None")

    @property
    def num_virtual_tokens(self) -> int:
        return self.length

    def check_pipeline(self, stages: int) -> None:
        if self.hidden_dim is not None:
            message = f"the network does not support pipeline stages (mesh.stage={stages}); use None"
            raise FieldError("peft.hidden_dim", self.hidden_dim, message)

    def choose(self, targets: list[Target]) -> list[Target]:
        serves = lambda t: "keys_values" in t.others and {"num_kv_heads", "head_dim"} <= set(t.fields)
        chosen = choose(targets, self.targets, serves, "attention with a `keys_values` method", "peft.targets")
        sizes = {(t.fields["num_kv_heads"], t.fields["head_dim"]) for t in chosen}
        if self.hidden_dim is not None and len(sizes) > 1:
            message = "the network produces keys of one shape, and these layers need several; use None"
            raise FieldError("peft.hidden_dim", self.hidden_dim, message)
        return chosen

    def leaves(self, target: Target) -> dict[str, AdapterParam]:
        shape = (self.length, target.fields["num_kv_heads"], target.fields["head_dim"])
        draw = lambda key, weights: 0.02 * jax.random.normal(key, shape)
        return {name: AdapterParam(shape, ("length", "kv_heads", "kv"), draw) for name in (KEY, VALUE)}

    def shared(self, chosen: list[Target]) -> dict[str, AdapterParam]:
        if self.hidden_dim is None:
            return {}
        (N, K), H = (chosen[0].fields[name] for name in ("num_kv_heads", "head_dim")), self.hidden_dim
        D = N * K
        L = sum(t.stack[0] if t.stack else 1 for t in chosen)
        out = (H, L, 2, N, K)
        return {
            "inputs": AdapterParam(
                (self.length, D), ("length", None), lambda key, weights: jax.random.normal(key, (self.length, D))
            ),
            "dense_0_kernel": uniform((D, H), D),
            "dense_0_bias": uniform((H,), D),
            "dense_1_kernel": dataclasses.replace(uniform(out, H), axes=(None, None, None, "kv_heads", "kv")),
            "dense_1_bias": dataclasses.replace(uniform(out[1:], H), axes=(None, None, "kv_heads", "kv")),
        }

    def computed(self, shared, chosen):
        h_PH = jnp.tanh(shared["inputs"] @ shared["dense_0_kernel"] + shared["dense_0_bias"])
        out_PLcNK = jnp.tensordot(h_PH, shared["dense_1_kernel"], axes=1) + shared["dense_1_bias"]
        leaves: dict[Path, dict[str, jax.Array]] = {}
        start = 0
        for target in chosen:
            count = target.stack[0] if target.stack else 1
            pairs = jnp.moveaxis(out_PLcNK[:, start : start + count], 0, 2)  # (layers, 2, P, N, K)
            pairs = pairs if target.stack else pairs[0]
            leaves[target.path] = {KEY: pairs[..., 0, :, :, :], VALUE: pairs[..., 1, :, :, :]}
            start += count
        return leaves

    def outer(self, targets: list[Target], chosen: list[Target]) -> Path | None:
        tables = [t for t in targets if t.is_table and len(t.inputs or ()) == 2]
        return tables[0].path[:-1] if tables else None

    def call(self, leaves, target, call: ModuleCall, fn, args, kwargs):
        if call.method == "keys_values":
            k_BSNK, v_BSNK = fn(*args, **kwargs)
            if trace_context.current().prefix_is_cached:
                return k_BSNK, v_BSNK
            return _after(leaves[KEY], k_BSNK), _after(leaves[VALUE], v_BSNK)
        x, mask, *rest = args
        cached = kwargs.get("cache") is not None
        with trace_context.replaced(prefix_is_cached=cached):
            if cached:
                return fn(*args, **kwargs)
            bias = kwargs.get("bias")
            if bias is not None:
                kwargs = {**kwargs, "bias": jnp.pad(bias, ((0, 0),) * 3 + ((self.length, 0),))}
            return fn(x, dataclasses.replace(mask, num_prefix_keys=self.length), *rest, **kwargs)

    def call_outer(self, call: ModuleCall, fn, args, kwargs):
        if kwargs.get("cache") is not None or not takes(call.module, "positions"):
            return fn(*args, **kwargs)
        tokens_BT, P = args[0], self.length
        check_room(call, P, tokens_BT.shape[1], "peft.length")
        positions = kwargs.get("positions")
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        return fn(*args, **{**kwargs, "positions": positions + P})

    def begin_cache(self, run, params, cache):
        """The cache of a decoder-only model (`nn.stack.empty_cache`) with the prefix in its first P positions."""
        P, layers = self.length, cache["layers"]
        if isinstance(layers, list):
            prefixes = [_of(params.get(f"block_{i}", {})) for i in range(len(layers))]
            layers = [tuple(map(_filled, pair, prefix)) for pair, prefix in zip(layers, prefixes, strict=True)]
        else:
            layers = tuple(map(_filled, layers, _of(params.get("blocks", {}))))
        return {"layers": layers, "segments": cache["segments"].at[:, :P].set(1), "offset": cache["offset"] + P}


def _of(block: Any) -> tuple[Any, Any]:
    """(keys, values) of the prefix in a block, (..., P, N, K). Raises UserError unless one attention layer has it."""
    prefixed = [params for params in block.values() if isinstance(params, dict) and KEY in params]
    if len(prefixed) != 1:
        raise UserError("Prefix(): generation needs one attention layer in each block, as in a decoder-only model")
    return prefixed[0][KEY], prefixed[0][VALUE]


def _filled(cache: jax.Array, prefix: jax.Array) -> jax.Array:
    """A cache (..., B, N, S, K) with a prefix (..., P, N, K) written to its first P positions."""
    front = jnp.swapaxes(prefix, -3, -2)[..., None, :, :, :].astype(cache.dtype)
    P = prefix.shape[-3]
    return cache.at[..., :P, :].set(jnp.broadcast_to(front, (*cache.shape[:-2], P, cache.shape[-1])))


def _after(prefix_PNK: jax.Array, x_BSNK: jax.Array) -> jax.Array:
    front = jnp.broadcast_to(prefix_PNK.astype(x_BSNK.dtype), (x_BSNK.shape[0], *prefix_PNK.shape))
    return jnp.concatenate([front, x_BSNK], axis=1)
