"""The docs tell the truth where a test can ask: links and pictures exist, and sizes are the configs' own."""

import math
import pathlib
import re

import pytest

from jaxnlp import cli
from jaxnlp.sharding.functional import parameter_table
from tests.entry import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
ROW = re.compile(r"^\| `(configs/[^`]+)` \|(.*)\|$", re.M)
ROWS = [(page, *row) for page in PAGES if page.parent.name == "models" for row in ROW.findall(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert (page.parent / link).resolve().exists(), f"{page.name}: {link}"


@pytest.mark.parametrize(("page", "spec", "cells"), ROWS, ids=lambda x: x if isinstance(x, str) and ":" in x else "")
def test_a_size_in_a_table_is_the_configs(page, spec, cells):
    """The row's number of parameters to the last one, and what it says of layers."""
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


def commands() -> list[tuple[pathlib.Path, str]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.M | re.S):
            found += [(page, line) for line in block.splitlines() if "python -m experiments." in line]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_name_entry_points_and_configs_that_are_there(page):
    for where, line in commands():
        if where == page:
            module = re.search(r"-m (experiments(?:\.\w+)+)", line)[1]
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), line
            for config in re.findall(r"--config=(configs/[^\s:]+\.py)", line):
                assert (ROOT / config).exists(), line
