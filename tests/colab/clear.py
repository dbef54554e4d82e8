"""Rewrites the notebooks for git: no outputs, numbered cells. Run as `python -m tests.colab.clear`."""

import json
import pathlib
import sys
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "colab"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cleared(text: str) -> str:
    """A notebook's JSON without outputs and editor metadata."""
    notebook: dict[str, Any] = json.loads(text)
    cells = []
    for i, cell in enumerate(notebook["cells"]):
        stripped = {
            "cell_type": cell["cell_type"],
            "id": f"cell-{i:02d}",
            "metadata": {},
            "source": _lines(cell["source"]),
        }
        if cell["cell_type"] == "code":
            stripped |= {"execution_count": None, "outputs": []}
        cells.append(stripped)
    whole = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _lines(source: str | list[str]) -> list[str]:
    return "".join(source).strip("\n").splitlines(keepends=True)


if __name__ == "__main__":
    for path in map(pathlib.Path, sys.argv[1:] or sorted(FOLDER.glob("*.ipynb"))):
        path.write_text(cleared(path.read_text()))
        print(f"cleared: {path}")
