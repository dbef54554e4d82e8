"""Functions on parameters as nested dicts: select, set and remove by path, and merge. Inputs are never modified."""

from collections.abc import Mapping
from typing import Any

Path = tuple[str, ...]

PyTree = Any
"""A tree of arrays, or a tree of the same structure with a shape, an axis name or a sharding for each array."""

Params = Any
"""Parameters: nested dicts of arrays, by the names of modules."""


def merge(base: Any, tuned: Any) -> Any:
    """The union of two trees. A parameter in both is taken from `tuned`."""
    if not isinstance(tuned, Mapping):
        return tuned
    return {**base, **{name: merge(base.get(name, {}), x) for name, x in tuned.items()}}


def select(tree: Any, structure: Any) -> Any:
    """The part of `tree` at the paths of `structure`."""
    if not isinstance(structure, Mapping):
        return tree
    return {name: select(tree[name], x) for name, x in structure.items()}


def set_at(tree: Any, path: Path, leaf: Any) -> Any:
    """A new tree with `leaf` at `path`."""
    head, *tail = path
    return {**tree, head: set_at(tree.get(head, {}), tuple(tail), leaf) if tail else leaf}


def without(tree: Any, path: Path) -> Any:
    """A new tree without the leaf at `path`, and without dicts that become empty."""
    head, *tail = path
    remaining = {name: x for name, x in tree.items() if name != head}
    inner = without(tree[head], tuple(tail)) if tail else {}
    return {**remaining, head: inner} if inner else remaining


def get_at(tree: Any, path: Path) -> Any:
    """The leaf or subtree at `path`, or None."""
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return None
        tree = tree[name]
    return tree
