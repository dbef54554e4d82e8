"""The docs agree with the code: links, figures, page sizes, names, fields, commands, and sizes in tables.

Python blocks parse, their imports exist, and calls in them name parameters that exist. A block after
`<!-- runnable -->` is executed.
"""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import math
import pathlib
import pkgutil
import re

import pytest

import jaxnlp
from jaxnlp import cli
from jaxnlp.sharding.functional import parameter_table
from tests.entry import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
ROW = re.compile(r"^\| `(configs/[^`]+)` \|(.*)\|$", re.M)
ROWS = [(page, *row) for page in PAGES if page.parent.name == "models" for row in ROW.findall(page.read_text())]
MAX_LINES, MAX_COLUMNS = 200, 120


def prose(page: pathlib.Path) -> list[str]:
    """Lines of text, without code, tables, equations, figures and comments."""
    text = re.sub(r"^```.*?^```$|^\$\$.*?\$\$$", "", page.read_text(), flags=re.S | re.M)
    return [line for line in text.splitlines() if line.strip() and not line.startswith(("|", "![", "<!--"))]


GUIDES = {  # base classes whose members each guide lists
    "add_a_model.md": ("jaxnlp.nn.model_config:ModelConfig", "jaxnlp.nn.model_config:ModelTraits"),
    "add_a_task.md": (
        "jaxnlp.data.task:Task",
        "jaxnlp.data.tasks.labelled_task:LabelledTask",
        "jaxnlp.data.tasks.labelled_task:SequenceTask",
    ),
    "add_an_objective.md": ("jaxnlp.objectives.objective:Objective",),
    "add_an_evaluator.md": (
        "jaxnlp.evals.evaluator:Evaluator",
        "jaxnlp.evals.evaluator:RecordEvaluator",
        "jaxnlp.evals.evaluator:EvaluatedModel",
        "jaxnlp.evals.evaluator:Outcome",
    ),
}


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_lists_what_its_base_classes_have(guide):
    words = set(re.findall(r"`([a-z_]+)(?:\(|=|`)", (ROOT / "docs" / "guides" / guide).read_text()))
    for name in GUIDES[guide]:
        module, _, cls = name.partition(":")
        base = vars(importlib.import_module(module))[cls]
        members = {member for member in [*vars(base), *base.__annotations__] if not member.startswith("_")}
        assert members <= words, f"{name} has {sorted(members - words)}, and {guide} does not list them"


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def inline(page: pathlib.Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


@functools.cache
def classes() -> dict[str, list[type]]:
    """Public classes of the package by name."""
    by_name: dict[str, list[type]] = {}
    for info in pkgutil.walk_packages(jaxnlp.__path__, "jaxnlp."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == info.name:
                by_name.setdefault(value.__name__, []).append(value)
    return by_name


@functools.cache
def field_names() -> set[str]:
    configs = [c for group in classes().values() for c in group if dataclasses.is_dataclass(c)]
    return {field.name for c in configs for field in dataclasses.fields(c)}


def check_fields(path: str, where: str) -> None:
    """Checks a path of fields of an Experiment, as data.source.train."""
    first, *rest = path.split(".")
    assert first in {field.name for field in dataclasses.fields(classes()["Experiment"][0])}, f"{where}: {path}"
    for name in rest:
        assert name in field_names() or any(hasattr(c, name) for c in classes()["ModelConfig"]), f"{where}: {path}"


def check_calls(tree: ast.AST, where: str) -> None:
    """Checks keyword arguments in calls of the package's classes."""
    local = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id in local:
            continue
        for cls in classes().get(node.func.id, []):
            parameters = inspect.signature(cls).parameters
            wrong = [k.arg for k in node.keywords if k.arg and k.arg not in parameters]
            assert not wrong, f"{where}: {node.func.id} has no {wrong}, but {list(parameters)}"


def check_imports(tree: ast.AST, where: str) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            "jaxnlp",
            "configs",
            "experiments",
        ):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                known = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                assert known, f"{where}: {node.module} has no {alias.name}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jaxnlp":
            assert hasattr(jaxnlp, node.attr), f"{where}: jaxnlp.{node.attr}"


@each_page
def test_links_and_pictures_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert (page.parent / link).resolve().exists(), f"{page.name}: {link}"


@each_page
def test_pages_are_short_and_narrow(page):
    lines = prose(page)
    assert len(lines) <= MAX_LINES, f"{page.name}: {len(lines)} lines of prose; split it"
    wide = [line for line in lines if len(line) > MAX_COLUMNS and " " in line.strip("- ")]
    assert not wide, f"{page.name}: wider than {MAX_COLUMNS} columns: {wide[0]}"


@each_page
def test_python_blocks_parse_and_name_what_exists(page):
    for block in blocks(page, "python"):
        tree = ast.parse(block, str(page))
        check_imports(tree, page.name)
        check_calls(tree, page.name)


@each_page
def test_inline_code_names_what_exists(page):
    for code in inline(page):
        if re.fullmatch(r"jaxnlp(\.\w+)+", code):
            assert resolved(code), f"{page.name}: {code}"
        elif re.fullmatch(r"[\w-]+(/[\w.-]+)+\.py(:\w+)?", code) and not code.startswith(("my_", "path/")):
            path = code.split(":")[0]
            roots = (ROOT, ROOT / "jaxnlp", ROOT / "docs", page.parent)
            assert any((root / path).exists() for root in roots), f"{page.name}: {code}"
        elif re.search(r"\.(py|json|safetensors|tsv|csv|md)$", code):
            continue
        elif match := re.fullmatch(
            r"(?:--config\.)?((?:model|data|optim|sharding|objective|peft)(?:\.\w+)+)(?:=.*)?", code
        ):
            check_fields(match[1], page.name)
        elif match := re.fullmatch(r"([A-Z]\w+)\.(\w+)(?:\(.*\))?", code):
            owners = classes().get(match[1], [])
            known = [hasattr(c, match[2]) or match[2] in inspect.signature(c).parameters for c in owners]
            assert not owners or any(known), f"{page.name}: {code}"
        elif re.fullmatch(r"(\w+=)?[A-Z]\w+\(.*\)", code):
            check_calls(parsed(code), page.name)


def resolved(name: str) -> bool:
    """Whether a dotted name is a module or a name in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if resolved_module(parts[:end]):
            value = importlib.import_module(".".join(parts[:end]))
            for part in parts[end:]:
                if not hasattr(value, part):
                    return False
                value = getattr(value, part)
            return True
    return False


def resolved_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").exists()


def parsed(code: str) -> ast.AST:
    try:
        return ast.parse(code)
    except SyntaxError:
        return ast.Module([], [])


def commands(page: pathlib.Path) -> list[str]:
    """Lines in code blocks and text that run an entry point; continued lines are joined."""
    text = " \n".join(line for block in blocks(page, "") for line in block.replace("\\\n", "").splitlines())
    lines = [*text.splitlines(), *inline(page)]
    return [line for line in lines if "python -m experiments." in line]


@each_page
def test_commands_name_entry_points_configs_flags_and_fields_that_exist(page):
    for line in commands(page):
        module = re.search(r"-m (experiments(?:\.\w+)+)", line)[1]
        path = ROOT / module.replace(".", "/")
        if module == "experiments.NAME" or line.startswith("$ "):  # a placeholder, or a session that shows an error
            continue
        entry = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__main__.py"
        assert entry.exists(), line
        flags = (entry, ROOT / "jaxnlp" / "cli.py", ROOT / "jaxnlp" / "distributed.py")
        defined = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', "".join(file.read_text() for file in flags)))
        command = re.sub(r'"[^"]*"', '""', line.split("experiments.", 1)[1]).split(" #")[0]
        for flag, fields in re.findall(r"--(\w+)((?:\.\w+)*)", command):
            assert flag in defined | {"help"}, f"{page.name}: --{flag} in {line}"
            if fields:
                check_fields(fields[1:], f"{page.name}: {line}")
        for config in re.findall(r"--(?:config|against)=(configs/[^\s:]+\.py)", line):
            assert (ROOT / config).exists(), line
        for config in re.findall(r"--(?:config|against)=(configs/[^\s`]+)", line):
            if re.fullmatch(r"configs/[\w/]+\.py(:[a-z0-9_.]+)?", config):  # other variants name files of the reader
                cli.load(config)


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        for text in [*blocks(page, ""), *inline(page)]:
            for target in re.findall(r"^make ([a-z-]+)", text, re.M):
                assert target in targets, f"{page.name}: make {target}"


RUNNABLE = [
    pytest.param(block, id=f"{page.relative_to(ROOT).as_posix()}-{i}")
    for page in PAGES
    for i, block in enumerate(
        re.findall(r"^<!-- runnable -->\n\n?```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    )
]


@pytest.mark.parametrize("block", RUNNABLE)
def test_runnable_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize(("page", "spec", "cells"), ROWS, ids=lambda x: x if isinstance(x, str) and ":" in x else "")
def test_a_size_in_a_table_is_the_configs(page, spec, cells):
    """The exact number of parameters, and the number of layers."""
    model = cli.load(spec).model
    count = sum(math.prod(shape) for _, shape, _ in parameter_table(model.build(), *model.example_inputs(1, 8)))
    values = [cell.strip() for cell in cells.split("|")]
    assert f"{count:,}" in values, f"{page.name}: {spec} has {count:,}"
    assert values[0].split()[0] == str(model.num_layers)


def test_there_are_sizes_to_check():
    assert len(ROWS) >= 25


def test_pictures_are_small():
    for picture in (ROOT / "docs" / "images").glob("*.png"):
        assert picture.stat().st_size < 200_000, picture.name
