"""Advice can be followed: every flag, field, class, program and file that a message names exists."""

import ast
import dataclasses
import functools
import importlib
import pathlib
import re
import types
import typing
from collections.abc import Iterator

import flax.linen as nn
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOTS = {"model", "data", "optim", "peft", "sharding", "objective", "init_from", "init_peft_from", "early_stopping"}
"""The fields of an Experiment that hold other configs."""


def sources(*rooms: str) -> list[pathlib.Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def texts(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each string that is not a docstring; a value in an f-string is {}."""
    tree = ast.parse(source)
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


@functools.cache
def messages() -> list[tuple[str, str]]:
    """(place, text) of each string of the package and the programs that has more than one word."""
    by_file = {path: texts(path.read_text()) for path in sources("jaxnlp", "experiments")}
    lines = [(f"{path.relative_to(ROOT).as_posix()}:{line}", text) for path in by_file for line, text in by_file[path]]
    return [(place, text) for place, text in lines if " " in text.strip()]


@functools.cache
def flags_of() -> dict[str, set[str]]:
    """The names of the flags that each file defines."""
    flags: dict[str, set[str]] = {}
    for path in sources("jaxnlp", "experiments"):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        named = [n for n in calls if re.search(r"DEFINE_\w+$", ast.unparse(n.func)) and n.args]
        flags[path.relative_to(ROOT).as_posix()] = {str(ast.literal_eval(n.args[0])) for n in named}
    return flags


def unknown_flags(place: str, text: str) -> list[str]:
    """The flags in a text that its own program, or for a text of the package no program, has."""
    file = place.partition(":")[0]
    own = flags_of()[file] | flags_of()["jaxnlp/cli.py"] | flags_of()["jaxnlp/distributed.py"] | {"help"}
    own |= {"name"}  # --name=value describes any flag
    every = set().union(own, *flags_of().values())
    names = re.findall(r"(?<![\w-])--([a-z][a-z_0-9]*)(?![\w.-])", text)
    program = re.search(r"experiments\.(\w+)|`(\w+) --", text)
    is_program = file.startswith("experiments/") and flags_of()[file]
    allowed = own if is_program and not program else every
    return [name for name in names if name not in allowed and not name.startswith("xla_")]


@functools.cache
def config_classes() -> dict[str, type]:
    """The dataclasses of the package by name."""
    classes: dict[str, type] = {}
    for path in sources("jaxnlp"):
        module = importlib.import_module(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
        for name, value in vars(module).items():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and not issubclass(value, nn.Module):
                classes[name] = value
    return classes


@functools.cache
def candidates(hint: object) -> set[type]:
    """The dataclasses that a field with this annotation may hold: the class and its subclasses."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        return set().union(*(candidates(part) for part in typing.get_args(hint)))
    if not isinstance(hint, type) or hint in (type(None), int, float, str, bool, object):
        return set()
    return {cls for cls in config_classes().values() if issubclass(cls, hint)}


hints = functools.cache(typing.get_type_hints)


def has_field(holders: set[type], dotted: list[str]) -> bool:
    """Whether `dotted` names a field, inside some class of `holders`."""
    if not dotted:
        return True
    for cls in holders:
        is_own = dotted[0] in {field.name for field in dataclasses.fields(cls)}
        if is_own and (not dotted[1:] or has_field(candidates(hints(cls).get(dotted[0])), dotted[1:])):
            return True
    return False


@functools.cache
def experiment_has(dotted: str) -> bool:
    from jaxnlp.training.experiment import Experiment

    return has_field({Experiment}, dotted.split("."))


def unknown_fields(text: str) -> list[str]:
    """The paths of config fields in a text that no config has."""
    set_on_line = re.findall(r"--config\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)", text)
    dotted = re.findall(rf"(?<![\w./-])((?:{'|'.join(ROOTS)})(?:\.[a-z_][a-z_0-9]*)+)(?![\w(/])", text)
    return [name for name in [*set_on_line, *dotted] if not experiment_has(name) and not _is_code(name)]


def _is_code(name: str) -> bool:
    """Whether the path is that of a module of the package, as data.pipeline, and not of a field."""
    room, module = name.split(".")[:2]
    return (ROOT / "jaxnlp" / room / f"{module}.py").is_file() and not experiment_has(f"{room}.{module}")


def unknown_calls(text: str) -> list[str]:
    """Config objects in a text, as LoRA(rank=8), whose class or field does not exist."""
    wrong = []
    for name, arguments in re.findall(r"\b([A-Z][A-Za-z0-9]+)\(([^()]*)\)", text):
        cls = config_classes().get(name)
        fields = {f.name for f in dataclasses.fields(cls)} if cls else set()
        wrong += [f"{name}({key}=)" for key in re.findall(r"\b([a-z_]\w*)=", arguments) if key not in fields]
        wrong += [name] if cls is None else []
    return wrong


def unknown_names(text: str) -> list[str]:
    """Programs, targets of make, files and extras in a text that do not exist."""
    programs = re.findall(r"\bexperiments\.([a-z_]+(?:\.[a-z_]+)*)", text)
    wrong = [name for name in programs if not list(ROOT.glob(f"experiments/{name.replace('.', '/')}*"))]
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"`make ([a-z-]+)", text)
    wrong += [f"make {target}" for target in targets if not re.search(rf"^{target}:", makefile, re.M)]
    files = re.findall(r"\b((?:docs|configs|tests)/[\w/]+\.(?:md|py|json))\b", text)
    wrong += [file for file in files if not (ROOT / file).is_file()]
    extras = re.findall(r"\.\[(\w+)\]", text)
    return wrong + [extra for extra in extras if f'"{extra}"' not in (ROOT / "setup.py").read_text()]


CHECKS = {
    "flags": unknown_flags,
    "fields": lambda place, text: unknown_fields(text),
    "objects": lambda place, text: unknown_calls(text),
    "names": lambda place, text: unknown_names(text),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_what_a_message_names_exists(kind):
    wrong = {place: names for place, text in messages() if (names := CHECKS[kind](place, text))}
    assert wrong == {}


def field_errors(node: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, field) of each FieldError whose field is a constant, without an index, as in params['layers']."""
    for call in (n for n in ast.walk(node) if isinstance(n, ast.Call) and n.args):
        if ast.unparse(call.func) == "FieldError" and isinstance(call.args[0], ast.Constant):
            yield call.lineno, str(call.args[0].value).partition("[")[0]


def test_the_field_of_an_error_exists():
    """A config's own check names its own fields; other code names a path of the experiment, or of a part of it."""
    wrong, every = [], set(config_classes().values())
    for path in sources("jaxnlp"):
        tree = ast.parse(path.read_text())
        for cls in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name in config_classes()):
            own = {c for c in every if issubclass(c, config_classes()[cls.name])}
            for function in cls.body:
                if isinstance(function, ast.FunctionDef) and function.name in ("check", "__post_init__"):
                    errors = field_errors(function)
                    wrong += [f"{path}:{line}: {name}" for line, name in errors if not has_field(own, name.split("."))]
        for line, name in field_errors(tree):
            if "." in name and not has_field(every, name.split(".")) and not experiment_has(name):
                wrong.append(f"{path}:{line}: {name}")
    assert wrong == []


def test_special_tokens_can_be_added_to_every_tokenizer():
    """The error of a missing special token says so, whatever the tokenizer."""
    tokenizers = candidates(config_classes()["Bytes"].__base__)
    assert len(tokenizers) > 3
    assert [cls.__name__ for cls in tokenizers if not has_field({cls}, ["special_tokens"])] == []


def test_the_checks_see_what_they_forbid():
    place = "experiments/generate.py:1"
    assert unknown_flags(place, "set --prompt or --splits") == ["splits"]  # a flag of another program
    assert unknown_flags("jaxnlp/api.py:1", "set --splits, --nothing=3 or --config.x") == ["nothing"]
    assert unknown_fields("--config.data.seq_len=3, data.tokenizer.specials=() or optim.lr") == [
        "data.tokenizer.specials",
        "optim.lr",
    ]
    assert unknown_calls("use LoRA(rank=8), LoRA(size=3), Nothing()") == ["LoRA(size=)", "Nothing"]
    assert unknown_names("`make nothing`, docs/nothing.md, experiments.train, experiments.nothing, '.[nothing]'") == [
        "nothing",
        "make nothing",
        "docs/nothing.md",
        "nothing",
    ]
