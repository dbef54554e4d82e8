"""Runs of the small config from the command line, and what their checkpoints hold."""

import pathlib

import numpy as np

from jaxnlp.training.run_folder.metric_log import read_log
from tests.entry import ROOT, run

CONFIG = ROOT / "tests" / "experiments" / "small.py"


def train(corpus, workdir, *overrides, begin=run, env=None):
    args = (f"--config={CONFIG}:{corpus}", f"--workdir={workdir}", *(f"--config.{o}" for o in overrides))
    return begin("experiments.train", *args, env=env)


def arrays(workdir, step):
    """Every array of a checkpoint, by path, as bytes."""
    import orbax.checkpoint as ocp

    leaves = {}
    for item in ("params", "rest"):
        tree = ocp.StandardCheckpointer().restore(pathlib.Path(workdir).absolute() / "checkpoints" / str(step) / item)
        import jax

        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            leaves[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return leaves


def assert_same_bits(a, b):
    assert a.keys() == b.keys() and len(a) > 20
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes(), name


def losses(workdir):
    return {
        row["step"]: row["loss"] for row in read_log(pathlib.Path(workdir) / "metrics.jsonl") if row["kind"] == "train"
    }
