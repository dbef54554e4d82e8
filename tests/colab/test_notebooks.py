"""The notebooks are valid, thin and without outputs, and run from the first cell to the last."""

import ast
import json
import os
import pathlib
import re
import sys

import pytest

from tests.entry import ROOT, run

from .clear import cleared

NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
MODULES = {"IPython", "dataclasses", "importlib", "jax", "jaxnlp", "numpy", "os", "pathlib", "subprocess", "sys"}
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(path: pathlib.Path) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["01_attention_to_gpt", "02_bert", "03_parallelism", "04_lora"]


@each
def test_a_notebook_is_valid_and_as_it_is_kept_in_git(path):
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.read_text() == cleared(path.read_text()), "clear its outputs: python -m tests.colab.clear"
    first = code_of(path)[0]
    assert 'REPO = ""' in first and first == code_of(NOTEBOOKS[0])[0]  # the same set-up in all


@each
def test_a_notebook_is_thin(path):
    """It calls the library and defines nothing of its own; no folder of any machine, no address."""
    for source in code_of(path):
        tree = ast.parse(source)
        assert len(source.splitlines()) <= 20
        for node in ast.walk(tree):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda | ast.While)
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= MODULES
            if isinstance(node, ast.ImportFrom):
                assert node.module and node.module.split(".")[0] in MODULES
        assert not re.search(r"""["'][/~]|://""", source)


def modules_of(sources: list[str]) -> set[str]:
    """The jaxnlp modules that cells import from. `from jaxnlp import x` of a module x is an import from `jaxnlp.x`."""
    modules = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                modules.add(name if is_ours(name) and is_module(name) else node.module)
    return {module for module in modules if is_ours(module)}


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "jaxnlp"


def test_imports_are_counted_by_module():
    cells = [
        "import os, jaxnlp",
        "from jaxnlp import trees, load\nfrom jaxnlp.peft import lora, LoRA, Full",
        "import jax",
    ]
    assert modules_of(cells) == {"jaxnlp", "jaxnlp.trees", "jaxnlp.peft.lora", "jaxnlp.peft"}


@each
def test_a_notebook_imports_from_at_most_three_modules(path):
    modules = modules_of(code_of(path))
    assert "jaxnlp" in modules and len(modules) <= 3, sorted(modules)


@each
def test_its_links_lead_to_files(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"]
    links = re.findall(r"\]\(([^)#]+)\)", "".join("".join(cell["source"]) for cell in cells))
    assert links
    for link in links:
        assert (path.parent / link).resolve().exists(), link


def test_clearing_takes_out_what_an_execution_leaves():
    path = NOTEBOOKS[0]
    notebook = json.loads(path.read_text())
    notebook["metadata"]["colab"] = {"provenance": []}
    for i, cell in enumerate(notebook["cells"]):
        cell["id"] = f"x{i}"
        if cell["cell_type"] == "code":
            cell |= {"execution_count": i, "outputs": [{"output_type": "stream", "name": "stdout", "text": "hello"}]}
    changed = json.dumps(notebook)
    assert "hello" in changed and cleared(changed) == path.read_text()


RUNS = {
    "01_attention_to_gpt": {"CONFIG": "small.py", "STEPS": "12", "TEXT": "def f(x):\n    return x"},
    "02_bert": {"CONFIG": "small_bert.py", "STEPS": "12", "TUNE_STEPS": "100"},
    "03_parallelism": {"CONFIG": "small.py"},  # sets its own number of devices
    "04_lora": {"CONFIG": "small_bert.py", "STEPS": "30"},
}
SHOWN = {  # pictures, and a text among the outputs
    "01_attention_to_gpt": (5, "validation split"),
    "02_bert": (2, "validation split"),
    "03_parallelism": (5, "the same losses"),
    "04_lora": (1, "the base is unchanged"),
}


@pytest.mark.slow
@each
def test_a_notebook_runs(path, corpus, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    settings = dict(RUNS[path.stem])
    settings["CONFIG"] = f"tests/experiments/{settings['CONFIG']}:{corpus}"
    settings |= {"WORKDIR": str(tmp_path / "run"), "JAX_NUM_CPU_DEVICES": "1"}
    if path.stem == "04_lora":  # a small encoder in place of a real one
        settings["BASE"] = str(tmp_path / "base")
        done = run("experiments.train", f"--config={settings['CONFIG']}", f"--workdir={settings['BASE']}")
        assert done.code == 0, done.err
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    count, text = SHOWN[path.stem]
    assert len(pictures) == count
    assert text in "".join(output.get("text", "") for output in outputs)
