"""Parameters as nested dicts: parts of them by path, and two put together. Nothing given is changed."""

from collections.abc import Mapping
from typing import Any

Path = tuple[str, ...]


def merge(base: Any, tuned: Any) -> Any:
    """One tree of both; where both have a parameter it is the tuned one."""
    if not isinstance(tuned, Mapping):
        return tuned
    return {**base, **{name: merge(base.get(name, {}), x) for name, x in tuned.items()}}


def select(tree: Any, wanted: Any) -> Any:
    """Of a tree, what is in another too."""
    if not isinstance(wanted, Mapping):
        return tree
    return {name: select(tree[name], x) for name, x in wanted.items()}


def set_at(tree: Any, path: Path, leaf: Any) -> Any:
    """The tree with a leaf at a path, as a new tree."""
    head, *tail = path
    return {**tree, head: set_at(tree.get(head, {}), tuple(tail), leaf) if tail else leaf}


def without(tree: Any, path: Path) -> Any:
    """The tree without the leaf at a path, and what that leaves empty, as a new tree."""
    head, *tail = path
    rest = {name: x for name, x in tree.items() if name != head}
    inner = without(tree[head], tuple(tail)) if tail else {}
    return {**rest, head: inner} if inner else rest


def get_at(tree: Any, path: Path) -> Any:
    """What is at a path of nested dicts, or None."""
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return None
        tree = tree[name]
    return tree
