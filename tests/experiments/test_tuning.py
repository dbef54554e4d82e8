"""A PEFT run through the entry points: plan, evaluation, figures, and export merged or as an adapter."""

import dataclasses
import json

import jax
import pytest

from configs.gpt import finetune
from configs.gpt.tune import METHODS, within_template
from jaxnlp import cli
from jaxnlp import config as configs
from jaxnlp.errors import UserError
from jaxnlp.interop.huggingface import load as load_huggingface
from jaxnlp.peft import files
from jaxnlp.peft.prompt import PTuning
from jaxnlp.training.load import load as load_run
from tests.entry import run

FILE, TUNED = "configs/gpt/tune.py", "tests/experiments/small_tuned.py"
PROMPTED = "tests/experiments/small_prompted.py"


@pytest.mark.parametrize(
    "variant", ["lor,runs/tiny", "lora,,sequence_classification", "lora,runs/tiny,sequence_classification,x"]
)
def test_a_wrong_variant_is_told(variant):
    with pytest.raises(UserError, match=f"{variant}: expected METHOD,RUN or METHOD,RUN,TASK"):
        cli.load(f"{FILE}:{variant}")


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, config in (("base", f"tests/experiments/small.py:{corpus}"), ("lora", f"{TUNED}:{corpus},{folder}/base")):
        done = run("experiments.train", f"--config={config}", f"--workdir={folder / name}", "--config.num_steps=4")
        assert done.code == 0, done.err
    assert "tuning: LoRA() on 2 modules: block_*/attention/query, block_*/attention/value" in done.err
    return folder


@pytest.mark.slow
def test_the_entry_points_know_a_tuned_run(runs, corpus, tmp_path):
    where = f"--workdir={runs / 'lora'}"
    loss = [run("experiments.evaluate", f"--workdir={runs / name}").out for name in ("lora", "base")]
    assert loss[0] != loss[1]
    assert run("experiments.generate", where, "--prompt=def", "--max_new_tokens=4").code == 0
    assert run("experiments.attention_map", where, "--text=def x", f"--out={tmp_path / 'map.png'}").code == 0
    planned = run("experiments.train", f"--config={TUNED}:{corpus},{runs}/base", f"--workdir={tmp_path}", "--dry_run")
    assert "block_0/attention/query/lora_a" in planned.out and planned.code == 0

    assert run("experiments.export", where, f"--out={tmp_path / 'merged'}").code == 0
    config, params, _ = load_huggingface(tmp_path / "merged")
    assert config.num_layers == 1 and "lora_a" not in params["block_0"]["attention"]["query"]
    assert run("experiments.export", where, "--adapter", f"--out={tmp_path / 'adapter'}").code == 0
    adapter_config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert adapter_config["base_model_name_or_path"] == f"{runs}/base" and adapter_config["task_type"] == "CAUSAL_LM"
    assert run("experiments.export", where, "--adapter", f"--out={tmp_path / 'lora.safetensors'}").code == 0
    method, header, tensors = files.read(tmp_path / "lora.safetensors")
    loaded = load_run(runs / "lora")
    assert method == loaded.saved.experiment.peft and header["base"] == loaded.saved.data["base"]
    assert len(tensors) == len(jax.tree.leaves(loaded.program.abstract.params))
    done = run("experiments.export", f"--workdir={runs / 'base'}", "--adapter", f"--out={tmp_path / 'x'}")
    assert done.code == 2 and "has no adapter" in done.err


@pytest.mark.parametrize("method", METHODS)
def test_each_method_of_the_config_is_one_that_can_run(method):
    e = cli.load(f"{FILE}:{method}")
    configs.check(e)
    assert e.peft == METHODS[method]


def test_the_prompts_of_p_tuning_stand_around_a_tasks_texts():
    for task in ("sequence_classification", "entailment", "multiple_choice"):
        base = finetune.get_config(task)
        e = within_template(base, PTuning(length=4))
        e = dataclasses.replace(e, peft=PTuning(length=4))
        configs.check(e)
        assert e.data.task.layout.text == "<prompt><prompt>{text}<prompt><prompt>"
        assert e.data.tokenizer.special_tokens == (*base.data.tokenizer.special_tokens, "<prompt>")
        assert not e.objective.lm_weight


@pytest.mark.slow
def test_a_text_by_flag_is_what_the_prompt_begins_as_and_the_run_goes_on(corpus, tmp_path):
    flags = (f"--config={PROMPTED}:{corpus}", f"--workdir={tmp_path}", "--config.peft.text=What follows?")
    done = run("experiments.train", *flags)
    assert done.code == 2 and "peft.text='What follows?': has 13 tokens, and peft.length=4;" in done.err
    for steps in (4, 8):
        done = run("experiments.train", *flags, "--config.peft.length=14", f"--config.num_steps={steps}")
        assert done.code == 0, done.err
    assert "resuming at step 4 of 8" in done.err
    tuning = json.loads((tmp_path / "config.json").read_text())["peft"]
    assert bytes(tuning["ids"]) == b"What follows?" and tuning["text"] == "What follows?"
