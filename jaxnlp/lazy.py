"""Public names of a package, each imported from its module when it is first used (PEP 562)."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def exports(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for the `__init__.py` of a package.

    Args:
        modules: the module of each public name, without the package's name in front.
    """

    def get(name: str) -> Any:
        if name not in modules:
            names = ", ".join(sorted(modules))
            raise AttributeError(f"module {package!r} has no attribute {name!r}; its public names are {names}")
        # getattr: the names are a table, and the modules are imported one at a time.
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return get, lambda: sorted(modules)
