"""PEFT as transforms of parameters and module calls: the base is frozen and the model code is unchanged.

Tuned parameters live in the base's tree: under new names next to a module's own (`lora_a` next to `kernel`), or under
the same name in place of it (`bias` with BitFit). They are therefore stacked, scanned, rematerialised and sharded like
the module's own, and `merge(base, tuned)` is an ordinary parameter tree (`jaxnlp.trees.merge`). `TunedModel.apply` runs
the model on such a tree: the method changes the calls of modules that have added parameters.

    tuning = attach(LoRA(targets=("query", "value")), module, tokens)
    tuned = tuning.init(key, base)
    logits = tuning.apply(make_apply(module))(merge(base, tuned), tokens)
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
from jaxnlp.trees import Path, PyTree, get_at, set_at, without


@dataclasses.dataclass(frozen=True)
class TunedModel:
    """A PEFT method attached to a model.

    targets: the modules that have added parameters, by path.
    leaves: the added parameters, by module path and name. They are tuned, unless there are `shared` parameters.
    shared: parameters that are tuned instead of the leaves, which are computed from them.
    replaced: paths of the model's own parameters that are tuned.
    outer: path of a module around the targets whose call changes as well, or None.
    shapes, base_axes: of all parameters of the base, from `sharding.functional.abstract_params`.
    blocks: quantisation of each quantised kernel, by path.
    num_adapters: number of adapters in the tuned parameters, which then have an adapter axis
        (`peft/multi_adapter.py`); None for a single adapter without that axis.
    """

    method: PEFTMethod
    targets: dict[Path, Target]
    leaves: dict[Path, dict[str, AdapterParam]]
    shared: dict[str, AdapterParam]
    replaced: list[Path]
    outer: Path | None
    shapes: PyTree
    base_axes: PyTree
    blocks: dict[Path, Blocks] = dataclasses.field(default_factory=dict)
    num_adapters: int | None = None

    def init(self, key: jax.Array, base: Any) -> Any:
        """Initial tuned parameters, a nested dict. Independent of the mesh and of which other parameters are tuned.

        Args:
            base: parameters of the base. Those that are tuned in place start from their values there, at least float32.
        """
        tuned: Any = {}
        for path, leaf in self._tuned():
            target = self.targets.get(path[:-1])
            weights, stack = ({}, ()) if target is None else (self._own(base, path[:-1]), target.stack)
            k = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
            initialise = lambda k, weights, leaf=leaf: jnp.asarray(leaf.init(k, weights), jnp.dtype(leaf.dtype))
            tuned = set_at(tuned, path, _over_layers(initialise, stack)(k, weights))
        for path in self.replaced:
            x = get_at(base, path)
            tuned = set_at(tuned, path, jnp.array(x, jnp.promote_types(x.dtype, jnp.float32), copy=True))
        return tuned

    def _tuned(self) -> list[tuple[Path, AdapterParam]]:
        """(path, parameter) of the tuned parameters that are not the model's own."""
        if self.shared:
            return [((SHARED, name), leaf) for name, leaf in self.shared.items()]
        return [((*path, name), leaf) for path, leaves in self.leaves.items() for name, leaf in leaves.items()]

    def frozen(self, base: Any) -> Any:
        """The frozen part of the base (parameters not tuned in place), cast or quantised to `base_dtype`."""
        for path in self.replaced:
            base = without(base, path)
        for path, how in self.blocks.items():
            base = set_at(base, path, quantise(get_at(base, path), how))
        dtype = self.method.base_dtype
        return base if dtype is None or dtype in BITS else jax.tree.map(lambda x: x.astype(dtype), base)

    @property
    def frozen_axes(self) -> Any:
        """Logical axes of the frozen parameters, a tree of the same structure."""
        axes = self.base_axes
        for path in self.replaced:
            axes = without(axes, path)
        for path, how in self.blocks.items():
            axes = set_at(axes, path, Quantised(get_at(axes, path), get_at(axes, path), how))
        return axes

    def _own(self, tree: Any, path: Path) -> dict[str, jax.Array]:
        params = get_at(tree, path) or {}
        return {name: x for name, x in params.items() if not isinstance(x, Mapping)}

    @property
    def axes(self) -> Any:
        """Logical axes of the tuned parameters, a tree of the same structure."""
        tree: Any = {}
        for path, leaf in self._tuned():
            target = self.targets.get(path[:-1])
            tree = set_at(tree, path, leaf.axes if target is None else (*target.stack_axes, *leaf.axes))
        for path in self.replaced:
            tree = set_at(tree, path, get_at(self.base_axes, path))
        return tree

    def rates(self, tuned: Any) -> Any:
        """Learning-rate multipliers, a tree of the same structure as `tuned`; None if all are 1."""
        if {self.method.rate(path[-1]) for path, _ in self._tuned()} <= {1.0}:
            return None
        return jax.tree_util.tree_map_with_path(lambda path, _: self.method.rate(str(path[-1].key)), tuned)

    def apply(self, apply: Callable, path: Path = ()) -> Callable:
        """The tuned model: `apply(params, *args, adapter_ids=None, **kwargs)`, where params is `merge(base, tuned)`.

        With the parameters of the base alone, it computes the base model. With several adapters
        (`peft/multi_adapter.py`) it requires `adapter_ids` (B,), an array argument like the tokens, so that one
        jitted function serves any choice of adapters.

        Args:
            path: path of a submodule, if `apply` runs only that submodule on the submodule's parameters.
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
                "adapter_ids: a model with one adapter has none to choose from; expected None, or use stack_adapters"
            )
        return checked_adapter_ids(adapter_ids, self.num_adapters)

    def expanded(self, params: Any) -> Any:
        """`params` with the shared parameters replaced by the leaves computed from them, e.g. for export."""
        if SHARED not in params or not self.shared:
            return params
        result = {name: x for name, x in params.items() if name != SHARED}
        shared = {name: gather_for_compute(params[SHARED][name], leaf.axes) for name, leaf in self.shared.items()}
        for path, leaves in self.method.computed(shared, list(self.targets.values())).items():
            for name, x in leaves.items():
                result = set_at(result, (*path, name), x)
        return result

    def begin_cache(self, run: Callable, params: Any, cache: Any) -> Any:
        """A decoder's empty cache (`init_cache`) with the prompt or prefix in it, which takes up the first positions.

        Args:
            run: the tuned model. params: `merge(base, tuned)`.
        """
        return self.method.begin_cache(run, self.expanded(params), cache)

    def _change(self, call: ModuleCall, fn: Callable, args: tuple, kwargs: dict) -> Any:
        if call.path == self.outer and call.method == "__call__" and not call.module.is_initializing():
            return self._change_outer(call, fn, args, kwargs)
        leaves = self.leaves.get(call.path)
        if (*call.path, KERNEL) in self.blocks:
            fn = codes_kept(fn, call.module, KERNEL)
        if leaves is None or call.method not in self.method.intercepted_methods or call.module.is_initializing():
            return fn(*args, **kwargs)
        if not call.module.has_variable("params", next(iter(leaves))):
            return fn(*args, **kwargs)
        values = {
            name: gather_for_compute(call.module.get_variable("params", name), leaf.axes)
            for name, leaf in leaves.items()
        }
        return self.method.call(values, self.targets[call.path], call, fn, args, kwargs)

    def _change_outer(self, call: ModuleCall, fn: Callable, args: tuple, kwargs: dict) -> Any:
        path = next(iter(self.leaves))
        params = get_at(call.module.variables.get("params", {}), path[len(call.path) :])
        # None: a pipeline has removed the layers from this module, to run them on their stages.
        if params is not None and next(iter(self.leaves[path])) not in params:
            return fn(*args, **kwargs)
        return self.method.call_outer(call, fn, args, kwargs)

    def merge(self, base: Any, tuned: Any) -> Any:
        """The base with the tuned parameters merged into its own: same outputs without extra computation.

        A quantised base is dequantised.

        Raises:
            UserError: the method cannot be merged.
        """
        return self._changed(base, tuned, self.method.merged)

    def unmerge(self, merged: Any, tuned: Any) -> Any:
        """Inverse of `merge`, up to rounding.

        Fully trained parameters keep their trained values, since the originals are not stored.

        Raises:
            UserError: the method, or these values of its parameters, cannot be unmerged.
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
            target, weights = self.targets[path], self._own(base, path)
            leaves = {name: get_at(tuned, (*path, name)) for name in self.leaves[path]}
            change = lambda weights, leaves, target=target: fn(target, weights, leaves)
            new = _vmapped(change, target.layers)(weights, leaves)
            for name, x in new.items():
                base = set_at(base, (*path, name), x.astype(weights[name].dtype))
        return base

    def report(self) -> str:
        """Human-readable summary: targets, number of trained parameters, and memory saved."""
        trained, total = self.counts()
        num_frozen = total - sum(math.prod(get_at(self.shapes, path).shape) for path in self.replaced)
        modules = _grouped(self.targets)
        count = f"{len(self.leaves)} module{'s' * (len(self.leaves) != 1)}"
        lines = [f"tuning: {type(self.method).__name__}() on {count}: {', '.join(modules)}"]
        if not self.leaves:
            lines = [f"tuning: {type(self.method).__name__}()"]
        if self.replaced:
            lines.append(f"  fully trained: {', '.join(_grouped(dict.fromkeys(self.replaced)))}")
        lines.append(f"  trained parameters: {trained:,}, {100 * trained / total:.3f}% of the model's {total:,}")
        if self.blocks:
            lines += self._block_lines()
        lines.append(
            f"  frozen parameters: {num_frozen:,}, without gradients and optimizer state: "
            f"{12 * num_frozen / 1e6:,.1f} MB less (Adam in float32)"
        )
        return "\n".join(lines)

    def _block_lines(self) -> list[str]:
        """Report line on quantised kernels: their number and size, and the size of the rest of the base."""
        frozen = jax.eval_shape(self.frozen, self.shapes)
        num_bytes = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
        kernels = [get_at(self.shapes, path) for path in self.blocks]
        float_bytes, quantised_bytes = num_bytes(kernels), num_bytes([get_at(frozen, path) for path in self.blocks])
        sizes = " and ".join(str(size) for size in sorted({how.size for how in self.blocks.values()}))
        other_bytes = num_bytes(frozen) - quantised_bytes
        return [
            f"  {self.method.base_dtype} in blocks of {sizes}: {len(kernels)} kernels, "
            f"{sum(x.size for x in kernels):,} parameters in {quantised_bytes / 1e6:,.1f} MB "
            f"instead of {float_bytes / 1e6:,.1f}; the rest of the base: {other_bytes / 1e6:,.1f} MB"
        ]

    def counts(self) -> tuple[int, int]:
        """(trained parameters, parameters of the base)."""
        replaced = sum(math.prod(get_at(self.shapes, path).shape) for path in self.replaced)
        added = 0
        for path, leaf in self._tuned():
            target = self.targets.get(path[:-1])
            added += math.prod((*(target.stack if target else ()), *leaf.shape))
        return replaced + added, sum(math.prod(x.shape) for x in jax.tree.leaves(self.shapes))


def attach(method: PEFTMethod, module: Any, *inputs: Any, head: tuple[str, ...] = ()) -> TunedModel:
    """Attaches a PEFT method to a model: finds its targets and the parameters to train.

    Args:
        module: a Linen module. inputs: abstract or real example inputs.
        head: patterns of new parameters, which are trained if `method.modules_to_save` is None.

    Raises:
        UserError: a pattern matches nothing or only unsupported modules, an added parameter's name is already taken,
            a field of the method is invalid, or there is nothing to train.
    """
    if method.base_dtype not in (None, *FLOATS, *BITS):
        near = did_you_mean(method.base_dtype, [*FLOATS, *BITS])
        expected = f"expected one of {', '.join((*FLOATS, *BITS))}, or None{near}"
        raise FieldError("peft.base_dtype", method.base_dtype, expected)
    method.check()
    targets = {t.path: t for t in find_targets(module, *inputs)}
    shapes, axes = abstract_params(module, *inputs)
    chosen = method.choose(list(targets.values()))
    leaves = {t.path: method.leaves(t) for t in chosen}
    for path, added in leaves.items():
        clash = set(added) & set(targets[path].parameters)
        if clash:
            raise UserError(f"{'/'.join(path)}: already has a parameter {sorted(clash)[0]!r}; rename it in the model")
    parameters = {}
    for path, x in jax.tree_util.tree_leaves_with_path(shapes):
        names = tuple(str(k.key) for k in path)
        parameters["/".join(names)] = Parameter(x.shape, get_at(axes, names), x.dtype)
    fully_trained = method.modules_to_save if method.modules_to_save is not None else head
    saved_modules = picked(parameters, fully_trained, "peft.modules_to_save")
    picks = method.picks(parameters)
    replaced = sorted(tuple(name.split("/")) for name in {*picks, *saved_modules})
    if not leaves and not replaced:
        raise FieldError("peft", f"{type(method).__name__}()", "trains no parameter of this model")
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
    """Adapter ids as an array (B,). Raises UserError for ids of another type, or, outside of tracing, out of range."""
    ids = jnp.asarray(adapter_ids)
    if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise UserError(f"adapter_ids: {adapter_ids!r}; expected one integer for each row of the batch")
    if not isinstance(ids, Tracer):
        wrong = [i for i in np.asarray(ids).tolist() if not -1 <= i < num_adapters]
        if wrong:
            raise UserError(
                f"adapter_ids: {wrong[0]} is out of range; expected 0 to {num_adapters - 1}, or -1 for the base alone"
            )
    return ids


def _over_layers(initialise: Callable, stack: tuple[int, ...]) -> Callable:
    """initialise(key, weights), vmapped over stacked layers with one key per layer."""
    for count in stack:
        initialise = lambda key, weights, inner=initialise, n=count: jax.vmap(inner)(jax.random.split(key, n), weights)
    return initialise


def _vmapped(fn: Callable, times: int) -> Callable:
    for _ in range(times):
        fn = jax.vmap(fn)
    return fn


def _grouped(paths: Mapping[Path, Any]) -> list[str]:
    """Paths as text; paths that differ only in the block number are grouped: "block_*/attention/query (12)"."""
    counts: dict[str, int] = {}
    for path in paths:
        name = "/".join("block_*" if part.startswith("block_") else part for part in path)
        counts[name] = counts.get(name, 0) + 1
    return [name if n == 1 else f"{name} ({n})" for name, n in counts.items()]
