"""Style rules that a parser can check: sizes of functions and files, `getattr` and `hasattr`, and names of locals."""

import ast
import functools
import io
import pathlib
import tokenize

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAX_FUNCTION, MAX_FILE, MAX_SNIFFS = 60, 400, 15
# Not for a local or an argument, whose name says what it holds.
NOT_NAMES = {"found", "told", "given", "one", "there", "kept", "held", "said", "asked"}
EVERYWHERE = ("jaxnlp", "experiments", "configs", "tests", "docs/_ext")


def files(*rooms: str) -> list[pathlib.Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


@functools.cache
def read(path: pathlib.Path) -> tuple[str, list[ast.AST]]:
    source = path.read_text()
    return source, list(ast.walk(ast.parse(source)))


def long_functions(nodes: list[ast.AST]) -> list[str]:
    """Each function of more than MAX_FUNCTION lines, counted from its `def`, as "line name: length"."""
    functions = (n for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    lengths = ((n, (n.end_lineno or n.lineno) - n.lineno + 1) for n in functions)
    return [f"{n.lineno} {n.name}: {length} lines" for n, length in lengths if length > MAX_FUNCTION]


def sniffs(source: str, nodes: list[ast.AST]) -> dict[int, bool]:
    """The lines with `getattr` or `hasattr`; for each, whether it or the line above has a comment."""
    names = (n for n in nodes if isinstance(n, ast.Name) and n.id in ("getattr", "hasattr"))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    return {n.lineno: bool({n.lineno, n.lineno - 1} & comments) for n in names}


def bad_names(nodes: list[ast.AST]) -> list[str]:
    """Each variable or argument with a name in NOT_NAMES, as "line name"."""
    variables = {(n.lineno, n.id) for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    arguments = {(n.lineno, n.arg) for n in nodes if isinstance(n, ast.arg)}
    return [f"{line} {name}" for line, name in sorted(variables | arguments) if name in NOT_NAMES]


def test_functions_are_short():
    places = {path: long_functions(read(path)[1]) for path in files(*EVERYWHERE)}
    assert [f"{path}:{place}" for path in places for place in places[path]] == [], "split them by meaning"


def test_files_are_short():
    lengths = {path: len(read(path)[0].splitlines()) for path in files("jaxnlp")}
    assert {str(path): n for path, n in lengths.items() if n > MAX_FILE} == {}, "split them by meaning"


def test_little_is_sniffed_and_each_time_a_comment_says_why():
    lines = {f"{path}:{line}": has for path in files("jaxnlp") for line, has in sniffs(*read(path)).items()}
    assert len(lines) <= MAX_SNIFFS, "use a base class with a default, or a typed field"
    assert [line for line, has_comment in lines.items() if not has_comment] == []


def test_locals_are_named_for_what_they_hold():
    places = {path: bad_names(read(path)[1]) for path in files(*EVERYWHERE)}
    assert [f"{path}:{place}" for path in places for place in places[path]] == []


@pytest.mark.parametrize("code", ["found = 1", "for told in x: pass", "def f(given): pass", "f = lambda *, found: 1"])
def test_the_check_of_names_sees_every_kind(code):
    assert len(bad_names(list(ast.walk(ast.parse(code))))) == 1
    assert bad_names(list(ast.walk(ast.parse("f(found=told.given)")))) == []


def test_the_other_checks_see_what_they_forbid():
    body = "\n".join(f"    x{i} = {i}" for i in range(MAX_FUNCTION))
    parse = lambda source: list(ast.walk(ast.parse(source)))
    assert long_functions(parse(f"def f():\n{body}")) == [f"1 f: {MAX_FUNCTION + 1} lines"]
    assert long_functions(parse(f"def f():\n{body.rpartition(chr(10))[0]}")) == []
    source = 'a = getattr(x, "#a")\n\nb = hasattr(x, "b")  # why\n# why\nc = getattr(x, "c")\n'
    assert sniffs(source, parse(source)) == {1: False, 3: True, 5: True}
