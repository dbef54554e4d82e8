"""Which files of this repository a file imports or names, and which files a change touches, read with `ast`."""

import ast
import collections
import functools
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOMS = ("jaxnlp", "experiments", "configs", "tests")
# Files that all tests depend on, though none imports them.
EVERYWHERE = {"tests/conftest.py", "tests/cache.py", "pyproject.toml", "setup.py"}
FAR = 99  # the distance of a test that a change touches only through one of these


def imports(path: pathlib.Path) -> set[str]:
    """Every module a file imports when it runs, at the top or inside a function; a relative import is an error."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    blocks = [n for n in nodes if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    only_types = {child for block in blocks for statement in block.body for child in ast.walk(statement)}
    return _imports((n for n in nodes if n not in only_types), path.name)


def _imports(nodes, file: str, package: str | None = None) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module
            if node.level:
                assert package, f"{file}:{node.lineno}: imports are absolute here"
                start = package.split(".")[: 1 - node.level or None]
                module = ".".join([*start, *([module] if module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def _read() -> dict[str, tuple[set[str], set[str]]]:
    """The modules and the short constant strings of each Python file."""
    result = {}
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        constants = (n.value for n in nodes if isinstance(n, ast.Constant))
        strings = {value for value in constants if isinstance(value, str) and len(value) < 200}
        file = path.relative_to(ROOT)
        result[file.as_posix()] = (_imports(nodes, file.as_posix(), ".".join(file.parent.parts)), strings)
    return result


@functools.cache
def uses() -> dict[str, set[str]]:
    """The files that each Python file uses directly: those it imports, and entry points and configs that it names."""
    files = _read()
    helpers = collections.defaultdict(set)  # configs and drivers of tests are often named without their folders
    for file in files:
        if file.startswith("tests/") and not file.endswith("__init__.py"):
            helpers[pathlib.PurePath(file).name].add(file)
    graph = {}
    for file, (modules, strings) in files.items():
        named = {_module_file(name, files) for name in modules | {word for word in strings if "." in word}}
        paths = {part.partition(":")[0] for word in strings for part in (word, word.partition("=")[2])}
        named |= paths & files.keys()
        for path in paths & helpers.keys():
            named |= helpers[path]
        if "*.py" in strings:  # a path with folders
            named |= {other for other in files for room in ROOMS if room in strings and other.startswith(f"{room}/")}
        graph[file] = {name for name in named if name} - {file}
    return graph


def _module_file(name: str, files) -> str | None:
    stem = name.partition(":")[0].replace(".", "/")
    choices = (f"{stem}.py", f"{stem}/__main__.py", f"{stem}/__init__.py")
    return next((choice for choice in choices if choice in files), None)


def distances(changed: set[str]) -> dict[str, int]:
    """The number of imports between each Python file that a change touches and the nearest changed file.

    A changed file that is neither Python nor a page is used by the files in whose strings its name occurs.
    """
    used_by = collections.defaultdict(set)
    for file, named in uses().items():
        for name in named:
            used_by[name].add(file)
    nearest = {file: 0 for file in changed if file in uses()}
    for name in {pathlib.PurePath(file).name for file in changed if not file.endswith((".py", ".md"))}:
        nearest |= {file: 1 for file, (_, strings) in _read().items() if any(name in word for word in strings)}
    waiting = collections.deque(sorted(nearest, key=lambda file: nearest[file]))
    while waiting:
        file = waiting.popleft()
        for other in used_by[file]:
            if other not in nearest:
                nearest[other] = nearest[file] + 1
                waiting.append(other)
    return {**(dict.fromkeys(uses(), FAR) if changed & EVERYWHERE else {}), **nearest}
