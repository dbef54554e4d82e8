"""Labelled records made of the Python standard library on this machine: real tasks with nothing to download.

  EmbeddedDocstrings    which topic is this docstring from?                          text -> label, a topic
  EmbeddedEntailment    does this docstring belong to this signature?                premise, hypothesis -> label
  EmbeddedSimilarity    are these two docstrings from the same file?                 first, second -> label
  EmbeddedChoice        which of four docstrings belongs to this signature?          context, options -> label, 0 to 3
  EmbeddedTags          what is each token of this line of source?                   words -> tags
  EmbeddedSpans         where in this signature is the default of NAME, if any is?   question, context -> answers
  EmbeddedCalls         which call passes on all that this signature takes?          source -> target

A docstring is one of a function, class or module with its white space made single spaces: as many of its first
paragraphs as have 300 characters in all. Of equal ones only the first is there, and of a file at most 60, so none leaks
from one split to another and no file outweighs the rest. Everything is drawn by hash: the same library gives the same
records.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import keyword
import os
import pathlib
import sys
import sysconfig
import tokenize
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxnlp.data import sources
from jaxnlp.data.records import Record, texts
from jaxnlp.errors import UserError

LONGEST, SHORTEST, LEAST_WORDS = 300, 25, 4  # of a docstring: characters, characters, words
OF_FILE = 60  # docstrings, or lines
TOPICS = {
    "arguments and logging": "argparse optparse getopt cmd logging shlex platform locale gettext getpass warnings",
    "concurrency": "asyncio multiprocessing threading concurrent queue subprocess selectors sched signal contextvars",
    "files": "tarfile zipfile pathlib shutil os tempfile bz2 gzip lzma _pyio io fnmatch glob genericpath ntpath "
    "posixpath stat fileinput filecmp linecache pty mimetypes _compression dbm shelve netrc",
    "imports and packages": "distutils importlib pkgutil zipimport runpy venv ensurepip site sysconfig modulefinder "
    "imp _osx_support _bootsubprocess",
    "mail": "email mailbox smtplib imaplib poplib mailcap quopri uu base64 nntplib smtpd",
    "markup and text": "xml json csv configparser plistlib html textwrap string difflib re pprint reprlib tomllib "
    "stringprep _markupbase codecs encodings unicodedata",
    "numbers and dates": "_pydecimal decimal datetime _pydatetime statistics random fractions numbers calendar "
    "_strptime zoneinfo heapq bisect colorsys ipaddress uuid hmac secrets",
    "syntax": "lib2to3 ast inspect dis tokenize token symtable pyclbr pickletools codeop opcode typing keyword "
    "tabnanny types dataclasses enum functools copyreg copy pickle",
    "testing and debugging": "unittest doctest pdb bdb trace traceback timeit pstats profile cProfile tracemalloc code "
    "pydoc cgitb faulthandler rlcompleter",
    "web": "http urllib wsgiref xmlrpc cgi webbrowser socketserver ssl socket ftplib telnetlib asyncore asynchat",
    "windows": "tkinter idlelib turtle turtledemo curses",
}
TAGS = ("keyword", "name", "number", "operator", "string")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """name; default: its text and the character of the signature where it begins, or None."""

    name: str
    default: tuple[str, int] | None


@dataclasses.dataclass(frozen=True)
class Definition:
    """Something with a docstring, or a function. where: as "textwrap.py:dedent". again: there is an equal signature
    before it in the library."""

    where: str
    doc: str | None
    signature: str | None
    parameters: tuple[Parameter, ...]
    again: bool


@dataclasses.dataclass(frozen=True)
class File:
    """name: its path in the library. place: a number in [0, 1) drawn from its content."""

    name: str
    place: float
    definitions: tuple[Definition, ...]
    statements: tuple[str, ...]


@dataclasses.dataclass(kw_only=True)
class EmbeddedTask:
    """What the sources here share. holdout: share of the files of each of validation and test."""

    holdout: float = 0.1

    def check(self) -> None:
        sources.check_holdout(self.holdout)

    def records(self, split: str) -> Iterator[Record]:
        sources.check_split(split)
        return self.make([file for file in library() if self._split(file) == split])

    def make(self, files: list[File]) -> Iterator[Record]:
        """The records of one split's files."""
        raise NotImplementedError

    def _split(self, file: File) -> str:
        if file.place < self.holdout:
            return "validation"
        return "test" if file.place < 2 * self.holdout else "train"

    def documents(self, split: str) -> Iterator[str]:
        return texts(self.records(split))

    def fingerprint(self, split: str) -> str:
        return sources.digest([f"{sys.version} {self}", sources.Embedded().fingerprint(split)])


@dataclasses.dataclass(kw_only=True)
class EmbeddedDocstrings(EmbeddedTask):
    """Fields: `text`, and `label`, one of TOPICS: groups of packages and modules of the library.

    A topic's files are dealt out to the splits in an order drawn by hash, so that each topic is in each split at about
    its share. Nothing is taken out of a docstring, so that one may name its own module, as some do.

    Raises:
        UserError: a library of which a topic has too few files to be in every split.
    """

    def records(self, split: str) -> Iterator[Record]:
        sources.check_split(split)
        for topic, names in TOPICS.items():
            files = [file for file in library() if _top(file.name) in names.split()]
            dealt = self._dealt(files)
            if not all(any(map(_documented, some)) for some in dealt.values()):
                raise UserError(
                    f"data.source=EmbeddedDocstrings(): of the topic {topic!r} the standard library of this Python has "
                    f"{len(files)} files, too few for three splits; use a complete Python, or raise data.source.holdout"
                )
            for file in dealt[split]:
                for d in _documented(file):
                    yield Record(d.where, {"text": d.doc, "label": topic})

    def _dealt(self, files: list[File]) -> dict[str, list[File]]:
        sizes = {file.name: len(_documented(file)) for file in files}
        budget = self.holdout * sum(sizes.values())
        found: dict[str, list[File]] = {split: [] for split in sources.SPLITS}
        held = dict.fromkeys(("validation", "test"), 0)
        for file in sorted(files, key=lambda f: _hash(f.name)):
            size = sizes[file.name]
            to = next((split for split in held if held[split] + size <= 1.5 * budget), "train")
            found[to].append(file)
            if to in held:
                held[to] += size
        return {split: sorted(some, key=lambda f: f.name) for split, some in found.items()}


@dataclasses.dataclass(kw_only=True)
class EmbeddedEntailment(EmbeddedTask):
    """Fields: `premise`, a signature; `hypothesis`, a docstring: its own, or as often one of another file; `label`,
    "own" or "other"."""

    def make(self, files: list[File]) -> Iterator[Record]:
        others = _Others(files)
        for file in files:
            for d in _functions(file):
                own = _hash(d.where) % 2 == 0
                doc = d.doc if own else others.draw(file, d.where, 1)[0]
                label = "own" if own else "other"
                yield Record(d.where, {"premise": d.signature, "hypothesis": doc, "label": label})


@dataclasses.dataclass(kw_only=True)
class EmbeddedSimilarity(EmbeddedTask):
    """Fields: `first`, `second`, docstrings; `label`, "same" file or, as often, "other"."""

    def make(self, files: list[File]) -> Iterator[Record]:
        others = _Others(files)
        for file in files:
            drawn = sorted(_documented(file), key=lambda d: _hash(f"similar {d.where}"))
            for a, b in zip(drawn[::2], drawn[1::2], strict=False):
                same = _hash(a.where) % 2 == 0
                second = b.doc if same else others.draw(file, a.where, 1)[0]
                yield Record(a.where, {"first": a.doc, "second": second, "label": "same" if same else "other"})


@dataclasses.dataclass(kw_only=True)
class EmbeddedChoice(EmbeddedTask):
    """Fields: `context`, a signature; `options`, four docstrings, three of them of other files; `label`, the place of
    its own."""

    def make(self, files: list[File]) -> Iterator[Record]:
        others = _Others(files)
        for file in files:
            for d in _functions(file):
                label = _hash(d.where) % 4
                options = others.draw(file, d.where, 3)
                options.insert(label, d.doc or "")
                yield Record(d.where, {"context": d.signature, "options": options, "label": label})


@dataclasses.dataclass(kw_only=True)
class EmbeddedTags(EmbeddedTask):
    """Fields: `words`, the tokens of a line of source, and `tags`, each one of TAGS. Of equal lines one is there."""

    def make(self, files: list[File]) -> Iterator[Record]:
        for file in files:
            for number, line in enumerate(file.statements):
                found = _tagged(line)
                if found:
                    words, tags = zip(*found, strict=True)
                    yield Record(f"{file.name}, statement {number}", {"words": list(words), "tags": list(tags)})


@dataclasses.dataclass(kw_only=True)
class EmbeddedSpans(EmbeddedTask):
    """Fields: `question`, "default of NAME"; `context`, a signature; `answers`, the default there, or none: of about
    half of the functions that have a parameter without one, such a parameter is asked for. Of equal signatures one is
    there."""

    def make(self, files: list[File]) -> Iterator[Record]:
        for file in files:
            for d in _drawn(file, [d for d in file.definitions if d.parameters and not d.again]):
                without = [p for p in d.parameters if p.default is None]
                having = [p for p in d.parameters if p.default is not None]
                asked = without if (_hash(d.where) % 2 or not having) and without else having
                if not having and _hash(f"kept {d.where}") % 4:
                    continue  # most functions have no defaults at all
                p = asked[_hash(f"asked {d.where}") % len(asked)]
                answers = {"text": [], "answer_start": []}
                if p.default is not None:
                    answers = {"text": [p.default[0]], "answer_start": [p.default[1]]}
                yield Record(d.where, {"question": f"default of {p.name}", "context": d.signature, "answers": answers})


@dataclasses.dataclass(kw_only=True)
class EmbeddedCalls(EmbeddedTask):
    """Fields: `source`, a signature; `target`, the call that passes all of its parameters on: "def f(self, a, b=1, *,
    c)" is called as "self.f(a, b, c=c)". Of equal signatures one is there."""

    def make(self, files: list[File]) -> Iterator[Record]:
        for file in files:
            for d in _drawn(file, [d for d in file.definitions if d.parameters and not d.again]):
                yield Record(d.where, {"source": d.signature, "target": _call(d.signature or "")})


class _Others:
    """Draws docstrings of functions of other files."""

    def __init__(self, files: list[File]):
        self._docs = [(file.name, d.doc) for file in files for d in _functions(file)]

    def draw(self, file: File, key: str, count: int) -> list[Any]:
        found: list[Any] = []
        for n in itertools.count():
            name, doc = self._docs[_hash(f"{key} {n}") % len(self._docs)]
            if name != file.name and doc not in found:
                found.append(doc)
            if len(found) == count:
                return found
        raise AssertionError


def _documented(file: File) -> list[Definition]:
    return _drawn(file, [d for d in file.definitions if d.doc])


def _functions(file: File) -> list[Definition]:
    return [d for d in _documented(file) if d.signature]


def _drawn(file: File, found: list[Definition]) -> list[Definition]:
    """At most OF_FILE of them, in their order."""
    kept = sorted(found, key=lambda d: _hash(d.where))[:OF_FILE]
    return [d for d in found if d in kept]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _top(name: str) -> str:
    """A file's package, or module."""
    return name.partition("/")[0].removesuffix(".py")


@functools.lru_cache(maxsize=1)
def library() -> tuple[File, ...]:
    """The files of the standard library, in the order of their paths.

    To parse them takes many seconds, so what is found is kept in the folder for caches ($JAXNLP_CACHE), by what is
    parsed and by this code.
    """
    files = sources.Embedded().files()
    stats = (f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)
    key = sources.digest([sys.version, pathlib.Path(__file__).read_text(), *stats])
    folder = pathlib.Path(os.environ.get("JAXNLP_CACHE") or "~/.cache/jaxnlp").expanduser() / "library"
    path = folder / f"{key}.json"
    with contextlib.suppress(OSError, ValueError):  # not there, or not what was written
        return tuple(map(_file, json.loads(path.read_text())))
    found = tuple(_read(files))
    with contextlib.suppress(OSError):  # a folder that cannot be written only costs the next process its seconds
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{uuid.uuid4().hex}.tmp"
        temporary.write_text(json.dumps([dataclasses.asdict(file) for file in found]))
        temporary.replace(path)
    return found


def _file(found: dict[str, Any]) -> File:
    """The way back from JSON."""
    parameter = lambda name, default: Parameter(name, default and (default[0], default[1]))
    made = (
        Definition(**{**one, "parameters": tuple(parameter(**p) for p in one["parameters"])})
        for one in found["definitions"]
    )
    return File(**{**found, "definitions": tuple(made), "statements": tuple(found["statements"])})


def _read(files: Iterable[pathlib.Path]) -> Iterator[File]:
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    docs: set[str] = set()
    signatures: set[str] = set()
    lines: set[str] = set()
    for path in files:
        try:
            source = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # a handful of library files are in other encodings on purpose
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library parses its own deprecated escapes
            tree = ast.parse(source)
        name = path.relative_to(root).as_posix()
        definitions = tuple(_definitions(tree, name, docs, signatures))
        place = _hash(source) / 2**64
        yield File(name, place, definitions, tuple(_statements(tree, source, name, lines)))


def _definitions(tree: ast.Module, file: str, seen: set[str], signatures: set[str]) -> Iterator[Definition]:
    names: dict[str, int] = {}
    for node in ast.walk(tree):
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if not function and not isinstance(node, (ast.Module, ast.ClassDef)):
            continue
        doc = _summary(ast.get_docstring(node))
        doc = None if doc is None or doc in seen else doc
        seen |= {doc} if doc else set()
        signature, parameters = _signature(node) if function else (None, ())
        name = getattr(node, "name", "")
        names[name] = names.get(name, 0) + 1
        again = f"#{names[name]}" if names[name] > 1 else ""
        yield Definition(f"{file}:{name}{again}", doc, signature, parameters, signature in signatures)
        signatures |= {signature} if signature else set()


def _summary(doc: str | None) -> str | None:
    """The first paragraphs of a docstring, in one line; None where there is no sentence to speak of."""
    kept = ""
    for paragraph in (doc or "").split("\n\n"):
        more = f"{kept} {' '.join(paragraph.split())}".strip()
        if len(more) > LONGEST:
            break
        kept = more
    return kept if len(kept) >= SHORTEST and len(kept.split()) >= LEAST_WORDS else None


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str | None, tuple[Parameter, ...]]:
    """ "def name(a, b=1)", and its parameters but for self and cls; (None, ()) for one that is very long."""
    a, text, found = node.args, f"def {node.name}(", []
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
            found.append(Parameter(name, None if value is None else (value, len(text))))
        text += value or ""
    text += ")"
    return (text, tuple(found)) if len(text) <= LONGEST else (None, ())


def _call(signature: str) -> str:
    """The call that passes on what a signature takes."""
    node = ast.parse(f"{signature}: pass").body[0]
    assert isinstance(node, ast.FunctionDef)
    a = node.args
    names = [x.arg for x in (*a.posonlyargs, *a.args)]
    holder = names.pop(0) + "." if names and names[0] in ("self", "cls") else ""
    parts = [*names, *([f"*{a.vararg.arg}"] if a.vararg else []), *(f"{x.arg}={x.arg}" for x in a.kwonlyargs)]
    return f"{holder}{node.name}({', '.join([*parts, *([f'**{a.kwarg.arg}'] if a.kwarg else [])])})"


def _statements(tree: ast.Module, source: str, file: str, seen: set[str]) -> Iterator[str]:
    """At most OF_FILE statements of one line, such as no other file has before it."""
    lines, kinds = source.splitlines(), (ast.Assign, ast.AugAssign, ast.Return, ast.Expr, ast.Assert, ast.Raise)
    nodes: Iterable[Any] = (n for n in ast.walk(tree) if isinstance(n, kinds) and n.lineno == n.end_lineno)
    key: Callable[[Any], int] = lambda node: _hash(f"{file} {node.lineno}")
    chosen = sorted(itertools.islice(sorted(nodes, key=key), OF_FILE), key=lambda node: node.lineno)
    for node in chosen:
        if node.lineno <= len(lines):
            line = lines[node.lineno - 1].strip()
            squeezed = "".join(line.split())  # the tokens are the same however they are spaced
            if squeezed not in seen and 8 <= len(line) <= 100:
                seen.add(squeezed)
                yield line


def _tagged(line: str) -> list[tuple[str, str]]:
    """The tokens of a line and their tags; [] for fewer than four, and for lines that hold anything else."""
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(line + "\n").readline):
            if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.NL):
                continue
            kind = {tokenize.NUMBER: "number", tokenize.OP: "operator", tokenize.STRING: "string"}.get(token.type)
            if token.type == tokenize.NAME:
                kind = "keyword" if keyword.iskeyword(token.string) else "name"
            if kind is None:
                return []
            found.append((token.string, kind))
    except (tokenize.TokenError, SyntaxError, IndentationError):
        return []
    return found if len(found) > 3 else []
