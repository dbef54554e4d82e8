"""The layers of the package: which rooms may import which."""

import pytest

from tests.import_graph import ROOT, imports

BASE = {
    "errors",
    "config",
    "renamed",
    "strict_json",
    "trees",
    "lazy",
    "paths",
    "scratch",
}  # helpers that every room may import
LAYERS = BASE | {"nn"}
ALLOWED = {
    "errors": set(),
    "lazy": set(),
    "renamed": set(),
    "strict_json": set(),
    "paths": {"errors"},
    "scratch": {"errors"},
    "program_cache": set(),
    "config": {"errors", "renamed", "strict_json", "paths", "scratch"},
    "config_json": {"config"},
    "trees": set(),
    "runtime": {"errors", "paths", "program_cache"},
    "hardware": set(),
    "failure_detection": set(),
    "uncaught": {"errors"},
    "distributed": {"errors", "failure_detection", "uncaught"},
    "cli": {"config", "errors", "distributed", "paths", "uncaught"},
    "nn": BASE,
    "models": LAYERS,
    # metrics: a task names those of its predictions. runtime: the folder of caches, and commands in messages.
    "data": LAYERS | {"metrics", "runtime"},
    "metrics": {"errors"},
    "sharding": LAYERS,
    "objectives": LAYERS,
    "optim": LAYERS,
    "figures": BASE | {"inference"},  # draws attention maps
    "evals": LAYERS | {"models", "data", "objectives", "metrics", "inference"},
    # data: the tokenizer, and the task's special tokens.
    "inference": LAYERS | {"models", "data", "sharding", "peft"},
    "interop": LAYERS | {"models", "data", "sharding", "peft"},
    "peft": LAYERS | {"models", "sharding"},
    # interop: a run may be initialised from a foreign checkpoint (`training/init/pretrained.py`).
    "training": LAYERS
    | {"runtime", "hardware", "distributed", "models", "data", "sharding", "objectives", "optim"}
    | {"evals", "inference", "figures", "interop", "peft"},
    "api": LAYERS
    | {"runtime", "distributed", "cli", "models", "data", "sharding", "objectives", "optim"}
    | {"evals", "inference", "figures", "interop", "peft", "training"},
    "planning": LAYERS
    | {"runtime", "hardware", "models", "data", "sharding", "objectives", "optim", "evals", "figures", "training"},
}
FLAX = {"nn", "models", "peft", "sharding/functional.py"}
NEVER = {"torch", "transformers", "tensorflow", "tyro", "clu"}


def modules():
    for path in sorted((ROOT / "jaxnlp").rglob("*.py")):
        yield pytest.param(path, id=path.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("path", list(modules()))
def test_arrows(path):
    inner = path.relative_to(ROOT / "jaxnlp")
    room = inner.parts[0].removesuffix(".py")
    if room == "__init__":
        return  # its names are imported when first used: tests/test_api.py
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
    file.write_text("def f():\n    from jaxnlp.training import loops\n    import flax.linen as nn\n")
    assert {"jaxnlp.training", "jaxnlp.training.loops", "flax.linen"} <= imports(file)
    file.write_text("if TYPE_CHECKING:\n    import flax\nelse:\n    import optax\n")
    assert imports(file) == {"optax"}
    file.write_text("from ..train import loop\n")
    with pytest.raises(AssertionError, match="absolute"):
        imports(file)
