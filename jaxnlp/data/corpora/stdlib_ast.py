"""Parses the Python standard library on this machine: the definitions of its files and lines of their source.

A docstring belongs to a function, class or module. Its white space is collapsed to single spaces, and it is cut to its
first paragraphs with at most 300 characters in total. Only the first of equal docstrings is kept. All random choices
are made by hash, so the same library always gives the same result.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxnlp import strict_json
from jaxnlp.data.text import sources
from jaxnlp.errors import UserError
from jaxnlp.paths import cache_folder
from jaxnlp.scratch import replacing

LONGEST, SHORTEST, LEAST_WORDS = 300, 25, 4  # limits of a docstring: characters, characters, words
OF_FILE = 60  # docstrings or lines per file


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter. default: its source text and its start character in the signature, or None."""

    name: str
    default: tuple[str, int] | None


@dataclasses.dataclass(frozen=True)
class Definition:
    """A function, class or module.

    where: its location, as "textwrap.py:dedent". doc: its docstring, or None if it has none, a very short one or a
        duplicate. signature, parameters: None and () for anything but a function and for very long signatures.
    again: whether an equal signature comes before it in the library.
    """

    where: str
    doc: str | None
    signature: str | None
    parameters: tuple[Parameter, ...]
    again: bool


@dataclasses.dataclass(frozen=True)
class File:
    """A source file. name: its path in the library. place: a number in [0, 1), a hash of its content."""

    name: str
    place: float
    definitions: tuple[Definition, ...]
    statements: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def library() -> tuple[File, ...]:
    """The files of the standard library, in the order of their paths.

    Parsing takes many seconds, so the result is cached in $JAXNLP_CACHE, under a hash of the files' paths, sizes and
    times and of this module.
    """
    files = sources.PythonStdlib().files()
    stats = (f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)
    key = sources.fingerprint([sys.version, pathlib.Path(__file__).read_text(), *stats])
    path = cache_folder() / "library" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged
        return tuple(map(_file, json.loads(path.read_text())))
    parsed = tuple(_read(files))
    with contextlib.suppress(UserError), replacing(path) as new:  # without a cache the next process parses again
        new.write_text(strict_json.dumps([dataclasses.asdict(file) for file in parsed]))
    return parsed


def _file(saved: dict[str, Any]) -> File:
    """Restores a File from its JSON values."""
    parameter = lambda name, default: Parameter(name, default and (default[0], default[1]))
    definitions = (
        Definition(**{**definition, "parameters": tuple(parameter(**p) for p in definition["parameters"])})
        for definition in saved["definitions"]
    )
    return File(**{**saved, "definitions": tuple(definitions), "statements": tuple(saved["statements"])})


def _read(files: Iterable[pathlib.Path]) -> Iterator[File]:
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    docs: set[str] = set()
    signatures: set[str] = set()
    lines: set[str] = set()
    for path in files:
        try:
            source = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # some library files intentionally have other encodings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library contains deprecated escapes
            tree = ast.parse(source)
        name = path.relative_to(root).as_posix()
        definitions = tuple(_definitions(tree, name, docs, signatures))
        place = drawn_number(source) / 2**64
        yield File(name, place, definitions, tuple(_statements(tree, source, name, lines)))


def _definitions(tree: ast.Module, file: str, seen: set[str], signatures: set[str]) -> Iterator[Definition]:
    names: dict[str, int] = {}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Module, ast.ClassDef)):
            continue
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        doc = _summary(ast.get_docstring(node))
        doc = None if doc is None or doc in seen else doc
        seen |= {doc} if doc else set()
        signature, parameters = _signature(node) if function else (None, ())
        name = "" if isinstance(node, ast.Module) else node.name
        names[name] = names.get(name, 0) + 1
        again = f"#{names[name]}" if names[name] > 1 else ""
        yield Definition(f"{file}:{name}{again}", doc, signature, parameters, signature in signatures)
        signatures |= {signature} if signature else set()


def _summary(doc: str | None) -> str | None:
    """The first paragraphs of a docstring, on one line; None if the result is too short."""
    summary = ""
    for paragraph in (doc or "").split("\n\n"):
        longer = f"{summary} {' '.join(paragraph.split())}".strip()
        if len(longer) > LONGEST:
            break
        summary = longer
    return summary if len(summary) >= SHORTEST and len(summary.split()) >= LEAST_WORDS else None


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str | None, tuple[Parameter, ...]]:
    """The signature, as "def name(a, b=1)", and its parameters without self and cls; (None, ()) if it is too long."""
    a, text, parameters = node.args, f"def {node.name}(", []
    plain = [*a.posonlyargs, *a.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(a.defaults)) + list(a.defaults)
    parts: list[tuple[str, str, ast.expr | None]] = [("", x.arg, d) for x, d in zip(plain, defaults, strict=True)]
    parts += [("*", a.vararg.arg, None)] if a.vararg else [("*", "", None)] if a.kwonlyargs else []
    parts += [("", x.arg, d) for x, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    parts += [("**", a.kwarg.arg, None)] if a.kwarg else []
    for i, (stars, name, default) in enumerate(parts):
        text += f"{', ' if i else ''}{stars}{name}"
        value = None if default is None else ast.unparse(default)
        if value is not None:
            text += "="
        if name not in ("", "self", "cls"):
            parameters.append(Parameter(name, None if value is None else (value, len(text))))
        text += value or ""
    text += ")"
    return (text, tuple(parameters)) if len(text) <= LONGEST else (None, ())


def _statements(tree: ast.Module, source: str, file: str, seen: set[str]) -> Iterator[str]:
    """Yields at most OF_FILE one-line statements, without those seen before in the library."""
    lines, kinds = source.splitlines(), (ast.Assign, ast.AugAssign, ast.Return, ast.Expr, ast.Assert, ast.Raise)
    nodes: Iterable[Any] = (n for n in ast.walk(tree) if isinstance(n, kinds) and n.lineno == n.end_lineno)
    key: Callable[[Any], int] = lambda node: drawn_number(f"{file} {node.lineno}")
    selected = sorted(itertools.islice(sorted(nodes, key=key), OF_FILE), key=lambda node: node.lineno)
    for node in selected:
        if node.lineno <= len(lines):
            line = lines[node.lineno - 1].strip()
            squeezed = "".join(line.split())  # spacing does not change the tokens
            if squeezed not in seen and 8 <= len(line) <= 100:
                seen.add(squeezed)
                yield line


def drawn_number(text: str) -> int:
    """A deterministic 64-bit hash of the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
