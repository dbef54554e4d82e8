"""The house's arrows: who may import whom."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
BASE = {"errors", "config", "trees"}  # plain helpers that every room may use
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "config_json": {"config"},
    "trees": set(),
    "runtime": {"errors"},
    "lifeline": set(),
    "processes": {"errors", "lifeline"},
    "cli": {"config", "errors", "processes"},
    "nn": BASE,
    "models": BASE | {"nn"},
    "data": BASE | {"nn"},
    "sharding": BASE | {"nn"},
    "objectives": BASE | {"nn"},
    "optim": BASE | {"nn"},
    "figures": BASE,
    "scaling": BASE
    | {"runtime", "nn", "models", "data", "sharding", "objectives", "optim", "evals", "figures", "train"},
    "evals": BASE | {"nn", "models", "data", "objectives"},
    "generate": BASE | {"nn", "models"},
    "interop": BASE | {"nn", "models", "data", "sharding", "peft"},
    "peft": BASE | {"nn", "models", "sharding"},
    # interop: a run may begin from a checkpoint of others (`train/pretrained.py`).
    "train": BASE
    | {"runtime", "nn", "models", "data", "sharding", "objectives", "optim"}
    | {"evals", "generate", "figures", "interop", "peft"},
}
FLAX = {"nn", "models", "peft", "sharding/axes.py"}
NEVER = {"torch", "transformers", "tensorflow", "tyro", "clu"}


def modules():
    for path in sorted((ROOT / "jaxnlp").rglob("*.py")):
        yield pytest.param(path, id=path.relative_to(ROOT).as_posix())


def imports(path: pathlib.Path) -> set[str]:
    """Every module a file names, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path.name}:{node.lineno}: imports are absolute here"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", list(modules()))
def test_arrows(path):
    inner = path.relative_to(ROOT / "jaxnlp")
    room = inner.parts[0].removesuffix(".py")
    if room == "__init__":
        assert not [name for name in imports(path) if name.startswith("jaxnlp")]
        return
    assert room in ALLOWED, f"a new room: say in this test what {room} may import"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "jaxnlp" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] == room or parts[1] in ALLOWED[room], f"{inner} imports {name}"
        assert parts[0] not in {"experiments", "configs", "tests"}, f"{inner} imports {name}"
        assert parts[0] not in NEVER, f"{inner} imports {name}"
        if parts[0] == "flax":
            assert room in FLAX or inner.as_posix() in FLAX, f"{inner} imports {name}"


def test_the_check_sees_an_arrow_that_runs_back(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from jaxnlp.train import loop\n    import flax.linen as nn\n")
    assert {"jaxnlp.train", "jaxnlp.train.loop", "flax.linen"} <= imports(file)
    file.write_text("from ..train import loop\n")
    with pytest.raises(AssertionError, match="absolute"):
        imports(file)
