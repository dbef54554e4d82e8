"""The entry point that writes a tuned classifier's adapter."""

import json

import pytest

from jaxnlp.interop.adapters import load_adapter
from jaxnlp.training.load import load
from tests.entry import run

SMALL, TUNED = "tests/experiments/small_task.py", "tests/interop/small_tuned_task.py"


@pytest.mark.slow
def test_a_tuned_classifiers_trunk_is_exported_and_its_head_told(tmp_path):
    for name in ("train", "validation"):
        lines = [json.dumps({"text": f"it is {x}", "label": x}) for x in ("good", "bad")] * 8
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    base, tuned, out = (tmp_path / name for name in ("base", "tuned", "out"))
    for config, workdir in ((f"{SMALL}:{tmp_path}", base), (f"{TUNED}:{tmp_path},{base}", tuned)):
        done = run("experiments.train", f"--config={config}", f"--workdir={workdir}")
        assert done.code == 0, done.err
    exported = run("experiments.export", f"--workdir={tuned}", f"--out={out}", "--adapter", "--base_name=hub/base")
    assert exported.code == 0, exported.err
    assert (
        f"adapter covers the body only; the head's parameters head/bias, head/kernel remain in {tuned}" in exported.out
    )
    adapter_config = json.loads((out / "adapter_config.json").read_text())
    assert (adapter_config["base_model_name_or_path"], adapter_config["task_type"]) == (
        "hub/base",
        "FEATURE_EXTRACTION",
    )
    loaded = load(tuned)
    method, leaves = load_adapter(out, loaded.saved.experiment.model.body)
    assert method.rank == 2
    trained = loaded.params["trunk"]["block_0"]["attention"]["query"]["lora_b"]
    assert (leaves["block_0"]["attention"]["query"]["lora_b"] == trained).all() and trained.any()
    wrong = run("experiments.export", f"--workdir={tuned}", f"--out={out}", "--base_name=hub/base")
    assert wrong.code == 2 and "--base_name=hub/base: applies to adapters only; expected --adapter" in wrong.err
