"""TunedModel methods as transforms: a few tuned parameters beside a base that stays, on a model that knows of neither.

Tuned parameters lie in the base's tree: new names beside a module's own (`lora_a` beside `kernel`), or the same name
in place of it (`bias` under BitFit). So they are stacked, scanned, computed again and sharded as what they stand by,
and `join(base, tuned)` is a tree of parameters like any other. `TunedModel.apply` runs the model on such a tree:
where a module has tuned parameters beside its own, the method changes its call.

    tuning = attach(LoRA(targets=("query", "value")), module, tokens)
    tuned = tuning.init(key, base)
    logits = tuning.apply(make_apply(module))(join(base, tuned), tokens)
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnlp.config import did_you_mean
from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn import trace_context
from jaxnlp.nn.interceptors import ModuleCall, intercept_calls, intercept_calls_at
from jaxnlp.nn.partitioning import gather_for_compute
from jaxnlp.nn.policy import FLOATS
from jaxnlp.nn.quantised import BITS, Blocks, Quantised, codes_kept, dequantised, quantise
from jaxnlp.peft.method import SHARED, AdapterParam, PEFTMethod, picked
from jaxnlp.peft.quantised import chosen_blocks
from jaxnlp.peft.targets import KERNEL, Parameter, Target, find_targets
from jaxnlp.sharding.functional import abstract_params
from jaxnlp.trees import Path, get_at, set_at, without


@dataclasses.dataclass(frozen=True)
class TunedModel:
    """A method on a model.

    leaves: the parameters added beside a module's own, by module and name. They are tuned, or with `shared` parameters
        computed from those, which are tuned then.
    replaced: paths of the model's own parameters that are tuned.
    outer: path of a module around the targets whose call changes too.
    shapes, base_axes: of all parameters of the base, as from `sharding.functional.abstract_params`.
    blocks: how each quantised kernel is quantised.
    num_adapters: how many adapters the tuned parameters hold on an axis of their own (`peft/multi_adapter.py`); None
        for a single one, without that axis.
    """

    method: PEFTMethod
    targets: dict[Path, Target]
    leaves: dict[Path, dict[str, AdapterParam]]
    shared: dict[str, AdapterParam]
    replaced: list[Path]
    outer: Path | None
    shapes: Any
    base_axes: Any
    blocks: dict[Path, Blocks] = dataclasses.field(default_factory=dict)
    num_adapters: int | None = None

    def init(self, key: jax.Array, base: Any) -> Any:
        """Tuned parameters at the start, a nested dict; the same on any mesh, and whatever else is tuned.

        Args:
            base: the base's parameters; those that are tuned themselves begin as they are there.
        """
        tuned: Any = {}
        for path, leaf in self._tuned():
            target = self.targets.get(path[:-1])
            own, stack = ({}, ()) if target is None else (self._own(base, path[:-1]), target.stack)
            k = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
            make = lambda k, own, leaf=leaf: jnp.asarray(leaf.init(k, own), jnp.dtype(leaf.dtype))
            tuned = set_at(tuned, path, _over_layers(make, stack)(k, own))
        for path in self.replaced:
            x = get_at(base, path)
            tuned = set_at(tuned, path, jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True))
        return tuned

    def _tuned(self) -> list[tuple[Path, AdapterParam]]:
        """The tuned parameters that are not the model's own."""
        if self.shared:
            return [((SHARED, name), leaf) for name, leaf in self.shared.items()]
        return [((*path, name), leaf) for path, leaves in self.leaves.items() for name, leaf in leaves.items()]

    def frozen(self, base: Any) -> Any:
        """The base without what is tuned in its place, in its dtype: with the tuned, all that a run needs of it."""
        for path in self.replaced:
            base = without(base, path)
        for path, how in self.blocks.items():
            base = set_at(base, path, quantise(get_at(base, path), how))
        dtype = self.method.base_dtype
        return base if dtype is None or dtype in BITS else jax.tree.map(lambda x: x.astype(dtype), base)

    @property
    def frozen_axes(self) -> Any:
        """Logical axes of what is frozen, as a tree like it."""
        axes = self.base_axes
        for path in self.replaced:
            axes = without(axes, path)
        for path, how in self.blocks.items():
            axes = set_at(axes, path, Quantised(get_at(axes, path), get_at(axes, path), how))
        return axes

    def _own(self, tree: Any, path: Path) -> dict[str, jax.Array]:
        found = get_at(tree, path) or {}
        return {name: x for name, x in found.items() if not isinstance(x, Mapping)}

    @property
    def axes(self) -> Any:
        """Logical axes of each tuned parameter, as a tree like them."""
        tree: Any = {}
        for path, leaf in self._tuned():
            target = self.targets.get(path[:-1])
            tree = set_at(tree, path, leaf.axes if target is None else (*target.stack_axes, *leaf.axes))
        for path in self.replaced:
            tree = set_at(tree, path, get_at(self.base_axes, path))
        return tree

    def rates(self, tuned: Any) -> Any:
        """By what each tuned parameter's learning rate is multiplied, as a tree like them; None: all by 1."""
        if {self.method.rate(path[-1]) for path, _ in self._tuned()} <= {1.0}:
            return None
        return jax.tree_util.tree_map_with_path(lambda path, _: self.method.rate(str(path[-1].key)), tuned)

    def apply(self, apply: Callable, path: Path = ()) -> Callable:
        """`apply(params, *args, adapter_ids=None, **kwargs)` of the model, where params is `join(base, tuned)`.

        With the parameters of the base alone it computes what the base does.

        Args:
            path: of a module of the model, if `apply` is that of the module alone and takes its parameters.

        The function takes `adapter_ids` (B,) if there are several adapters (`peft/multi_adapter.py`): an argument like
        the tokens, so that a jitted function serves any choice of adapters.
        """

        def tuned_apply(params, *args, adapter_ids=None, **kwargs):
            intercepted = intercept_calls_at(path, (self._change,)) if path else intercept_calls(self._change)
            with trace_context.replaced(adapter_ids=self._checked(adapter_ids)), intercepted:
                return apply(self.expanded(params), *args, **kwargs)

        return tuned_apply

    def _checked(self, adapter_ids: Any) -> jax.Array | None:
        if adapter_ids is None:
            return None
        if self.num_adapters is None:
            raise UserError(
                "adapter_ids: given to a model with one adapter; expected None, or a model of stack_adapters"
            )
        return checked_adapter_ids(adapter_ids, self.num_adapters)

    def expanded(self, params: Any) -> Any:
        """Parameters with what the shared ones stand for in their place: what is left to keep once tuning is done."""
        if SHARED not in params or not self.shared:
            return params
        rest = {name: x for name, x in params.items() if name != SHARED}
        shared = {name: gather_for_compute(params[SHARED][name], leaf.axes) for name, leaf in self.shared.items()}
        for path, leaves in self.method.computed(shared, list(self.targets.values())).items():
            for name, x in leaves.items():
                rest = set_at(rest, (*path, name), x)
        return rest

    def begin_cache(self, run: Callable, params: Any, cache: Any) -> Any:
        """A decoder's empty cache (`init_cache`) with the prompt or prefix in it, whose room it takes.

        Args:
            run: the tuned model. params: base and tuned together.
        """
        return self.method.begin_cache(run, self.expanded(params), cache)

    def _change(self, call: ModuleCall, fn: Callable, args: tuple, kwargs: dict) -> Any:
        if call.path == self.outer and call.method == "__call__" and not call.module.is_initializing():
            return self._change_outer(call, fn, args, kwargs)
        leaves = self.leaves.get(call.path)
        if (*call.path, KERNEL) in self.blocks:
            fn = codes_kept(fn, call.module, KERNEL)
        if leaves is None or call.method not in self.method.methods or call.module.is_initializing():
            return fn(*args, **kwargs)
        if not call.module.has_variable("params", next(iter(leaves))):
            return fn(*args, **kwargs)
        given = {
            name: gather_for_compute(call.module.get_variable("params", name), leaf.axes)
            for name, leaf in leaves.items()
        }
        return self.method.call(given, self.targets[call.path], call, fn, args, kwargs)

    def _change_outer(self, call: ModuleCall, fn: Callable, args: tuple, kwargs: dict) -> Any:
        path = next(iter(self.leaves))
        beside = get_at(call.module.variables.get("params", {}), path[len(call.path) :])
        # None: a pipeline has taken the layers out, to run them elsewhere.
        if beside is not None and next(iter(self.leaves[path])) not in beside:
            return fn(*args, **kwargs)
        return self.method.call_outer(call, fn, args, kwargs)

    def merge(self, base: Any, tuned: Any) -> Any:
        """The base with what was tuned worked into its own parameters: the same outputs, and no more work.

        Of a quantised base they are floats, of all its parameters.

        Raises:
            UserError: a method that cannot.
        """
        return self._changed(base, tuned, self.method.merged)

    def unmerge(self, merged: Any, tuned: Any) -> Any:
        """The way back, to rounding; parameters trained whole stay as trained, for what they were is not known here.

        Raises:
            UserError: a method that cannot, or values that it cannot be done with.
        """
        for path, leaves in self.leaves.items():
            self.method.check_unmerged("/".join(path), {name: get_at(tuned, (*path, name)) for name in leaves})
        return self._changed(merged, tuned, self.method.unmerged)

    def _changed(self, base: Any, tuned: Any, fn: Callable) -> Any:
        base = dequantised(base)
        for path in self.replaced:
            x = get_at(tuned, path)
            base = set_at(base, path, x.astype(get_at(self.shapes, path).dtype))
        for path in self.leaves:
            target, own = self.targets[path], self._own(base, path)
            leaves = {name: get_at(tuned, (*path, name)) for name in self.leaves[path]}
            one = lambda own, leaves, target=target: fn(target, own, leaves)
            new = _vmapped(one, target.layers)(own, leaves)
            for name, x in new.items():
                base = set_at(base, (*path, name), x.astype(own[name].dtype))
        return base

    def report(self) -> str:
        """Where the method acts and what it trains, for people."""
        trained, total = self.counts()
        kept = total - sum(math.prod(get_at(self.shapes, path).shape) for path in self.replaced)
        places = _grouped(self.targets)
        lines = [f"tuning: {type(self.method).__name__}() on {len(self.leaves)} modules: {', '.join(places)}"]
        if not self.leaves:
            lines = [f"tuning: {type(self.method).__name__}()"]
        if self.replaced:
            lines.append(f"  trained themselves: {', '.join(_grouped(dict.fromkeys(self.replaced)))}")
        lines.append(f"  trained parameters: {trained:,}, {100 * trained / total:.3f}% of the model's {total:,}")
        if self.blocks:
            lines += self._told_blocks()
        lines.append(
            f"  of the {kept:,} that are not: no gradients and no optimizer state, {12 * kept / 1e6:,.1f} MB less "
            "(Adam in float32)"
        )
        return "\n".join(lines)

    def _told_blocks(self) -> list[str]:
        """Of the quantised kernels, how many there are, how large, and what of the base is left as it was."""
        frozen = jax.eval_shape(self.frozen, self.shapes)
        held = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
        found = [get_at(self.shapes, path) for path in self.blocks]
        before, after = held(found), held([get_at(frozen, path) for path in self.blocks])
        sizes = "/".join(str(size) for size in sorted({how.size for how in self.blocks.values()}))
        rest = held(frozen) - after
        return [
            f"  {self.method.base_dtype} in blocks of {sizes}: {len(found)} kernels, {sum(x.size for x in found):,} "
            f"parameters in {after / 1e6:,.1f} MB instead of {before / 1e6:,.1f}; the rest of the base has "
            f"{rest / 1e6:,.1f} MB"
        ]

    def counts(self) -> tuple[int, int]:
        """(trained parameters, parameters of the base)."""
        own = sum(math.prod(get_at(self.shapes, path).shape) for path in self.replaced)
        new = 0
        for path, leaf in self._tuned():
            target = self.targets.get(path[:-1])
            new += math.prod((*(target.stack if target else ()), *leaf.shape))
        return own + new, sum(math.prod(x.shape) for x in jax.tree.leaves(self.shapes))


def attach(method: PEFTMethod, module: Any, *inputs: Any, head: tuple[str, ...] = ()) -> TunedModel:
    """What a method tunes of a model.

    Args:
        module: a Linen module. inputs: abstract or real example inputs.
        head: patterns of parameters that are new, which `PEFTMethod.modules_to_save` of None trains.

    Raises:
        UserError: a pattern that matches nothing, or what the method cannot serve; nothing to train.
    """
    if method.base_dtype not in (None, *FLOATS, *BITS):
        near = did_you_mean(method.base_dtype, [*FLOATS, *BITS])
        known = f"expected one of {', '.join((*FLOATS, *BITS))}, or None{near}"
        raise FieldError("peft.base_dtype", method.base_dtype, known)
    method.check()
    targets = {t.path: t for t in find_targets(module, *inputs)}
    shapes, axes = abstract_params(module, *inputs)
    chosen = method.choose(list(targets.values()))
    leaves = {t.path: method.leaves(t) for t in chosen}
    for path, named in leaves.items():
        clash = set(named) & set(targets[path].parameters)
        if clash:
            raise UserError(f"{'/'.join(path)}: has a parameter {sorted(clash)[0]!r} of its own; rename the model's")
    own = {}
    for path, x in jax.tree_util.tree_leaves_with_path(shapes):
        names = tuple(str(k.key) for k in path)
        own["/".join(names)] = Parameter(x.shape, get_at(axes, names), x.dtype)
    fully_trained = method.modules_to_save if method.modules_to_save is not None else head
    whole = picked(own, fully_trained, "peft.modules_to_save")
    picks = method.picks(own)
    replaced = sorted(tuple(name.split("/")) for name in {*picks, *whole})
    if not leaves and not replaced:
        raise FieldError("peft", f"{type(method).__name__}()", "nothing of this model would be trained")
    return TunedModel(
        method,
        {path: targets[path] for path in leaves},
        leaves,
        method.shared(chosen),
        replaced,
        method.outer(list(targets.values()), chosen),
        shapes,
        axes,
        chosen_blocks(method, list(targets.values()), picks, replaced) if method.base_dtype in BITS else {},
    )


def checked_adapter_ids(adapter_ids: Any, num_adapters: int) -> jax.Array:
    """Adapter ids as an array (B,). Raises UserError for ids of a wrong type, or, outside of a trace, out of range."""
    ids = jnp.asarray(adapter_ids)
    if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise UserError(f"adapter_ids: {adapter_ids!r}; expected one whole number for each row of the batch")
    if not isinstance(ids, Tracer):
        wrong = [i for i in np.asarray(ids).tolist() if not -1 <= i < num_adapters]
        if wrong:
            raise UserError(
                f"adapter_ids: {wrong[0]} is out of range; expected 0 to {num_adapters - 1}, or -1 for the base alone"
            )
    return ids


def _over_layers(make: Callable, stack: tuple[int, ...]) -> Callable:
    """make(key, own) of each layer, with its own key."""
    for count in stack:
        make = lambda key, own, one=make, n=count: jax.vmap(one)(jax.random.split(key, n), own)
    return make


def _vmapped(fn: Callable, times: int) -> Callable:
    for _ in range(times):
        fn = jax.vmap(fn)
    return fn


def _grouped(paths: Mapping[Path, Any]) -> list[str]:
    """Paths as text, with those that differ by a block's number as one: "block_*/attention/query (12)"."""
    counts: dict[str, int] = {}
    for path in paths:
        name = "/".join("block_*" if part.startswith("block_") else part for part in path)
        counts[name] = counts.get(name, 0) + 1
    return [name if n == 1 else f"{name} ({n})" for name, n in counts.items()]
