"""Labelled records from the Python standard library on this machine: real tasks that need no download.

  StdlibDocstrings    which topic is this docstring from?                          text -> label, a topic
  StdlibEntailment    does this docstring belong to this signature?                premise, hypothesis -> label
  StdlibSimilarity    are these two docstrings from the same file?                 first, second -> label
  StdlibChoice        which of four docstrings belongs to this signature?          context, options -> label, 0 to 3
  StdlibTags          what is each token of this line of source?                   words -> tags
  StdlibSpans         where in this signature is the default of NAME, if any?      question, context -> answers
  StdlibCalls         which call passes on all parameters of this signature?       source -> target

Only the first of equal docstrings is kept (`stdlib_ast.py`), so none leaks between splits. Each file contributes at
most 60, so no file dominates. All random choices are made by hash, so the same library gives the same records.
"""

import ast
import dataclasses
import io
import itertools
import keyword
import sys
import tokenize
from collections.abc import Iterator
from typing import Any

from jaxnlp.data.corpora.stdlib_ast import OF_FILE, Definition, File, drawn_number, library
from jaxnlp.data.records import RecordSource
from jaxnlp.data.source import Record
from jaxnlp.data.text import sources
from jaxnlp.errors import UserError

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


@dataclasses.dataclass(kw_only=True)
class StdlibTask(RecordSource):
    """Base class of the sources in this module. `records` calls `make` on the files of a split.

    holdout: fraction of the files in each of validation and test.
    """

    holdout: float = 0.1

    def check(self) -> None:
        sources.check_holdout(self.holdout)

    def records(self, split: str) -> Iterator[Record]:
        sources.check_split(split)
        return self.make([file for file in library() if self._split(file) == split])

    def make(self, files: list[File]) -> Iterator[Record]:
        """Yields the records of the files of one split."""
        raise AssertionError(f"{type(self).__name__} defines neither records nor make")

    def _split(self, file: File) -> str:
        if file.place < self.holdout:
            return "validation"
        return "test" if file.place < 2 * self.holdout else "train"

    def fingerprint(self, split: str) -> str:
        return sources.fingerprint([f"{sys.version} {self}", sources.PythonStdlib().fingerprint(split)])


@dataclasses.dataclass(kw_only=True)
class StdlibDocstrings(StdlibTask):
    """Fields: `text`, a docstring; `label`, its topic, one of TOPICS (groups of packages and modules of the library).

    The files of a topic are assigned to the splits in an order given by a hash, so that each split has about the same
    share of each topic. Docstrings are not edited, so some name their own module.

    Raises:
        UserError: a topic has too few files to be in every split.
    """

    def records(self, split: str) -> Iterator[Record]:
        sources.check_split(split)
        for topic, names in TOPICS.items():
            files = [file for file in library() if _top(file.name) in names.split()]
            files_by_split = self._dealt(files)
            if not all(any(map(_documented, split_files)) for split_files in files_by_split.values()):
                raise UserError(
                    f"data.source=StdlibDocstrings(): topic {topic!r} has {len(files)} files in this Python's standard "
                    "library, too few for three splits; use a complete Python, or raise data.source.holdout"
                )
            for file in files_by_split[split]:
                for d in _documented(file):
                    yield Record(d.where, {"text": d.doc, "label": topic})

    def _dealt(self, files: list[File]) -> dict[str, list[File]]:
        sizes = {file.name: len(_documented(file)) for file in files}
        budget = self.holdout * sum(sizes.values())
        by_split: dict[str, list[File]] = {split: [] for split in sources.SPLITS}
        held_out = dict.fromkeys(("validation", "test"), 0)
        for file in sorted(files, key=lambda f: drawn_number(f.name)):
            size = sizes[file.name]
            to = next((split for split in held_out if held_out[split] + size <= 1.5 * budget), "train")
            by_split[to].append(file)
            if to in held_out:
                held_out[to] += size
        return {split: sorted(split_files, key=lambda f: f.name) for split, split_files in by_split.items()}


@dataclasses.dataclass(kw_only=True)
class StdlibEntailment(StdlibTask):
    """Fields: `premise`, a signature; `hypothesis`, a docstring; `label`, "own" or "other".

    The docstring is the function's own or, equally often, one from another file.
    """

    def make(self, files: list[File]) -> Iterator[Record]:
        other_files = _Others(files)
        for file in files:
            for d in _functions(file):
                is_own = drawn_number(d.where) % 2 == 0
                doc = d.doc if is_own else other_files.draw(file, d.where, 1)[0]
                label = "own" if is_own else "other"
                yield Record(d.where, {"premise": d.signature, "hypothesis": doc, "label": label})


@dataclasses.dataclass(kw_only=True)
class StdlibSimilarity(StdlibTask):
    """Fields: `first`, `second`, docstrings; `label`, "same" (file) or "other", equally often."""

    def make(self, files: list[File]) -> Iterator[Record]:
        other_files = _Others(files)
        for file in files:
            documented = sorted(_documented(file), key=lambda d: drawn_number(f"similar {d.where}"))
            for a, b in zip(documented[::2], documented[1::2], strict=False):
                same_file = drawn_number(a.where) % 2 == 0
                second = b.doc if same_file else other_files.draw(file, a.where, 1)[0]
                yield Record(a.where, {"first": a.doc, "second": second, "label": "same" if same_file else "other"})


@dataclasses.dataclass(kw_only=True)
class StdlibChoice(StdlibTask):
    """Fields: `context`, a signature; `options`, four docstrings, three of them from other files; `label`, the index of
    the function's own docstring."""

    def make(self, files: list[File]) -> Iterator[Record]:
        other_files = _Others(files)
        for file in files:
            for d in _functions(file):
                label = drawn_number(d.where) % 4
                options = other_files.draw(file, d.where, 3)
                options.insert(label, d.doc or "")
                yield Record(d.where, {"context": d.signature, "options": options, "label": label})


@dataclasses.dataclass(kw_only=True)
class StdlibTags(StdlibTask):
    """Fields: `words`, the tokens of a line of source; `tags`, one of TAGS for each. Duplicate lines are dropped."""

    def make(self, files: list[File]) -> Iterator[Record]:
        for file in files:
            for number, line in enumerate(file.statements):
                tagged = _tagged(line)
                if tagged:
                    words, tags = zip(*tagged, strict=True)
                    yield Record(f"{file.name}, statement {number}", {"words": list(words), "tags": list(tags)})


@dataclasses.dataclass(kw_only=True)
class StdlibSpans(StdlibTask):
    """Fields: `question`, "default of NAME"; `context`, a signature; `answers`, the default's text and start character.

    `answers` is empty if the parameter has no default. About half of the functions with parameters of both kinds are
    asked for one without a default. Three quarters of the functions without any defaults are left out. Only the first
    of equal signatures is kept.
    """

    def make(self, files: list[File]) -> Iterator[Record]:
        for file in files:
            for d in _drawn(file, [d for d in file.definitions if d.parameters and not d.again]):
                without_default = [p for p in d.parameters if p.default is None]
                with_default = [p for p in d.parameters if p.default is not None]
                ask_without = without_default and (drawn_number(d.where) % 2 or not with_default)
                candidates = without_default if ask_without else with_default
                if not with_default and drawn_number(f"kept {d.where}") % 4:
                    continue  # most functions have no defaults at all
                p = candidates[drawn_number(f"asked {d.where}") % len(candidates)]
                answers = {"text": [], "answer_start": []}
                if p.default is not None:
                    answers = {"text": [p.default[0]], "answer_start": [p.default[1]]}
                yield Record(d.where, {"question": f"default of {p.name}", "context": d.signature, "answers": answers})


@dataclasses.dataclass(kw_only=True)
class StdlibCalls(StdlibTask):
    """Fields: `source`, a signature; `target`, the call that passes on all of its parameters.

    For example, "def f(self, a, b=1, *, c)" is called as "self.f(a, b, c=c)". Only the first of equal signatures is
    kept.
    """

    def make(self, files: list[File]) -> Iterator[Record]:
        for file in files:
            for d in _drawn(file, [d for d in file.definitions if d.parameters and not d.again]):
                yield Record(d.where, {"source": d.signature, "target": _call(d.signature or "")})


class _Others:
    """Draws docstrings of functions in other files."""

    def __init__(self, files: list[File]):
        self._docs = [(file.name, d.doc) for file in files for d in _functions(file)]

    def draw(self, file: File, key: str, count: int) -> list[Any]:
        docs: list[Any] = []
        for n in itertools.count():
            name, doc = self._docs[drawn_number(f"{key} {n}") % len(self._docs)]
            if name != file.name and doc not in docs:
                docs.append(doc)
            if len(docs) == count:
                return docs
        raise AssertionError


def _documented(file: File) -> list[Definition]:
    return _drawn(file, [d for d in file.definitions if d.doc])


def _functions(file: File) -> list[Definition]:
    return [d for d in _documented(file) if d.signature]


def _drawn(file: File, definitions: list[Definition]) -> list[Definition]:
    """At most OF_FILE of the definitions, chosen by hash, in their order."""
    selected = sorted(definitions, key=lambda d: drawn_number(d.where))[:OF_FILE]
    return [d for d in definitions if d in selected]


def _top(name: str) -> str:
    """The top-level package or module of a file."""
    return name.partition("/")[0].removesuffix(".py")


def _call(signature: str) -> str:
    """The call that passes on all parameters of a signature."""
    node = ast.parse(f"{signature}: pass").body[0]
    assert isinstance(node, ast.FunctionDef)
    a = node.args
    names = [x.arg for x in (*a.posonlyargs, *a.args)]
    holder = names.pop(0) + "." if names and names[0] in ("self", "cls") else ""
    parts = [*names, *([f"*{a.vararg.arg}"] if a.vararg else []), *(f"{x.arg}={x.arg}" for x in a.kwonlyargs)]
    return f"{holder}{node.name}({', '.join([*parts, *([f'**{a.kwarg.arg}'] if a.kwarg else [])])})"


def _tagged(line: str) -> list[tuple[str, str]]:
    """The tokens of a line and their tags; [] if there are fewer than four, or if one has no tag in TAGS."""
    tagged = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(line + "\n").readline):
            if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.NL):
                continue
            kind = {tokenize.NUMBER: "number", tokenize.OP: "operator", tokenize.STRING: "string"}.get(token.type)
            if token.type == tokenize.NAME:
                kind = "keyword" if keyword.iskeyword(token.string) else "name"
            if kind is None:
                return []
            tagged.append((token.string, kind))
    except (tokenize.TokenError, SyntaxError, IndentationError):
        return []
    return tagged if len(tagged) > 3 else []
