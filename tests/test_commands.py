"""Printed commands: a shell reads back the same arguments."""

import ast
import pathlib
import re
import shlex
import subprocess

import pytest

from jaxnlp import runtime
from jaxnlp.data.text.masking import Masked
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.report import next_commands

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXTS = [
    "plain",
    "def main",
    "it's",
    'say "hi"',
    "$HOME `id` \\",
    "a;b & c | d > e",
    "*?[x]",
    "!event",
    "line\nnext\t'\\",
    "é 中",
    "",
    "~",
]


def words(line: str) -> list[str]:
    """The arguments that bash makes of a line."""
    out = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    return out.decode().split("\0")[:-1]


def test_bash_reads_back_every_value_from_one_line():
    line = runtime.command("generate", *(runtime.option("prompt", text) for text in TEXTS))
    assert len(line.splitlines()) == 1
    assert words(line)[1:] == ["-m", "experiments.generate", *(f"--prompt={text}" for text in TEXTS)]
    assert runtime.option("workdir", "runs/tiny") == "--workdir=runs/tiny"
    invalid = subprocess.run(
        ["bash", "-c", f"printf %s {runtime.shell_quoted('caf' + chr(0xDCE9))}"], capture_output=True
    )
    assert invalid.stdout == b"caf\xe9"


@pytest.mark.parametrize("model", [GPTConfig(), BertConfig()])
def test_the_commands_of_a_report(model, tmp_path):
    e = Experiment(model=model, sample_prompt='say "hi" to $USER\n')
    e.data.task = Masked() if isinstance(model, BertConfig) else e.data.task
    folder = tmp_path / "my runs" / "x"
    for line in next_commands(e, folder):
        arguments = shlex.split(line[15:]) if "$'" not in line else words(line[15:])
        assert arguments[1] == "-m" and arguments[2].startswith("experiments."), line
        options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments[3:])
        assert options["workdir"].startswith(str(folder)) and len(options) == len(arguments) - 3
        texts = [value for name, value in options.items() if name in ("prompt", "text")]
        assert all(text.endswith(e.sample_prompt) for text in texts)


def test_commands_are_printed_by_the_functions_that_quote():
    """No text that a program prints holds `python -m` with a value in it."""
    places = []
    for path in sorted(p for room in ("jaxnlp", "experiments") for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                if re.search(r"-m experiments\.|--[a-z_]+=\"\{\}|experiments\.\w+ .*--[a-z_.]+=\{\}", text):
                    places.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text}")
    assert places == [], "use jaxnlp.runtime.command and option"
