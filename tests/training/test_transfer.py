"""Tuned parameters initialised from another run or a file (prompt transfer), and what is rejected."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxnlp.data.pipeline import DataConfig, TrainBatches
from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.heads import ModelWithHead, SequenceClassificationHead
from jaxnlp.peft import files
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.method import SHARED, PEFTMethod
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import PROMPT, Prompt, PTuning
from jaxnlp.peft.tuning import TunedModel, attach
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.init.transfer import transfer_params
from jaxnlp.training.load import Loaded, load
from jaxnlp.training.loops.supervised import train
from jaxnlp.training.step.program import build

from .test_pretrained import CLASSES, GPT
from .test_pretrained import run as pretrained_run
from .test_tuned import untuned

P = 3


def tuned_run(corpus, method: PEFTMethod, **changes) -> Experiment:
    """All runs have the same base, that of seed 0."""
    e = untuned(corpus, peft=method, eval_every=0, eval_batches=1, **changes)
    return dataclasses.replace(e, data=dataclasses.replace(e.data, attend_across_documents=True))


@pytest.fixture(scope="module")
def sources(corpus, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sources")
    for name, method in (("prompt", Prompt(length=P)), ("network", PTuning(length=P, hidden_dim=4))):
        train(tuned_run(corpus, method, num_steps=2), folder / name)
    return {name: str(folder / name) for name in ("prompt", "network")}


def begun(e: Experiment):
    """(tuned parameters at step 0, messages)."""
    program, messages = build(e, jax.devices()[:1]), []
    return transfer_params(program, program.init(), messages.append).params, messages


def refused(e: Experiment):
    """The transfer is rejected before anything is compiled."""
    program = build(e, jax.devices()[:1])
    transfer_params(program, program.abstract, print)


def target(source: str, method: PEFTMethod, **changes) -> Experiment:
    experiment = load(source).saved.experiment
    return dataclasses.replace(experiment, **{"peft": method, "init_peft_from": source, **changes})


def tuning_of(run: Loaded) -> TunedModel:
    assert run.program.tuning is not None
    return run.program.tuning


def test_a_run_begins_with_the_prompt_of_another_and_goes_on_without_it(corpus, sources, tmp_path):
    source = tmp_path / "source"
    source.symlink_to(sources["prompt"])
    wanted = tuned_run(corpus, Prompt(length=P, init="random"), init_peft_from=str(source), num_steps=4)
    straight = train(wanted, tmp_path / "straight")
    with open(tmp_path / "straight" / "metrics.jsonl") as file:
        first = json.loads(file.readline())
    loaded = load(source)
    batch = next(TrainBatches(straight.stores["train"], straight.experiment.data, tokenizer=straight.tokenizer))
    sums = loaded.program.eval_step(loaded.params, batch)
    assert first["step"] == 1
    np.testing.assert_allclose(first["loss"], sums["loss"] / sums["weight"], rtol=1e-5)

    train(dataclasses.replace(wanted, num_steps=2), tmp_path / "halves")
    source.unlink()
    halves = train(wanted, tmp_path / "halves")
    jax.tree.map(np.testing.assert_array_equal, halves.state.params, straight.state.params)


def test_what_a_network_made_is_given_to_a_prompt_and_the_network_to_its_like(sources):
    loaded = load(sources["network"])
    params, messages = begun(target(sources["network"], Prompt(length=P)))
    wanted = tuning_of(loaded).expanded(loaded.params)["embed"][PROMPT]
    np.testing.assert_array_equal(params["embed"][PROMPT], wanted)
    assert messages[-1] == f"tuning initialised from {sources['network']}, step 2: 1 parameters of its PTuning()"
    params, _ = begun(target(sources["network"], PTuning(length=P, hidden_dim=4)))
    jax.tree.map(np.testing.assert_array_equal, params[SHARED], jax.device_get(loaded.params)[SHARED])


@pytest.mark.slow
def test_a_file_serves_as_a_run_does_and_a_head_stays_fresh(sources, tmp_path):
    loaded = load(sources["prompt"])
    path = str(tmp_path / "prompt.safetensors")
    prompt = loaded.params["embed"][PROMPT]
    files.save(path, tuning_of(loaded), {"embed": {PROMPT: prompt}}, loaded.params)
    for seed in (0, 1):
        params, messages = begun(target(sources["prompt"], Prompt(length=P), init_peft_from=path, seed=seed))
        np.testing.assert_array_equal(params["embed"][PROMPT], prompt)
        assert (messages[0] == f"note: {path} was tuned on a base other than this run's") == bool(seed)

    model = ModelWithHead(body=loaded.saved.experiment.model, head=SequenceClassificationHead(num_classes=3))
    data = DataConfig(seq_len=8, batch_size=4, task=CLASSES)
    for source in (path, sources["prompt"]):
        e = Experiment(model=model, data=data, num_steps=1, peft=Prompt(length=P), init_peft_from=source)
        params, _ = begun(e)
        fresh, _ = begun(dataclasses.replace(e, init_peft_from=None))
        np.testing.assert_array_equal(params["trunk"]["embed"][PROMPT], prompt)
        jax.tree.map(np.testing.assert_array_equal, params["head"], fresh["head"])


@pytest.mark.slow
def test_low_rank_updates_go_on_too_and_the_optimizer_begins_with_them(sources, tmp_path):
    e = load(sources["prompt"]).saved.experiment
    module = e.model.build()
    tuning = attach(LoRA(rank=2), module, *e.model.example_inputs(1, 2))
    program = build(dataclasses.replace(e, peft=None), jax.devices()[:1])
    base = jax.device_get(program.init().params)
    tuned = jax.tree.map(lambda x: x + 0.5, tuning.init(jax.random.key(3), base))
    path = str(tmp_path / "lora.safetensors")
    files.save(path, tuning, tuned, base)
    e = target(sources["prompt"], LoRA(rank=2), init_peft_from=path)
    e = dataclasses.replace(e, optim=dataclasses.replace(e.optim, master_dtype="float32"))
    program = build(e, jax.devices()[:1])
    state = transfer_params(program, program.init(), print)
    jax.tree.map(np.testing.assert_array_equal, state.params, tuned)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state["master"], tuned)


def test_a_source_that_does_not_fit_is_told(sources, tmp_path):
    for method, message in (
        (Prompt(length=5), r"does not fit: embed/prompt has shape \(3, 16\), expected \(5, 16\)"),
        (
            Prefix(length=P),
            r"it has Prompt\(\) and this run has Prefix\(\); only the run has block_0/attention/prefix_key",
        ),
        (PTuning(length=P), r"it has Prompt\(\) and this run has PTuning\(\); only the source has embed/prompt"),
    ):
        with pytest.raises(UserError, match=f"init_peft_from: .*{message}"):
            refused(target(sources["prompt"], method))
    e = target(sources["prompt"], Prompt(length=P))
    tuning = attach(LoRA(rank=2), e.model.build(), *e.model.example_inputs(1, 2))
    base = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tuning.shapes)
    files.save(str(tmp_path / "lora"), tuning, tuning.init(jax.random.key(0), base), base)
    with pytest.raises(UserError, match=r"LoRA\(\) has scale=8.0 in the source and 1.0 in this run"):
        refused(dataclasses.replace(e, peft=LoRA(rank=2, alpha=2.0), init_peft_from=str(tmp_path / "lora")))
    wide = dataclasses.replace(e, model=dataclasses.replace(e.model, embed_dim=32))
    with pytest.raises(UserError, match=r"embed/prompt has shape \(3, 16\), expected \(3, 32\)"):
        refused(wide)
    with pytest.raises(FieldError, match="init_peft_from='runs/none': neither the folder of a run nor a file"):
        refused(dataclasses.replace(e, init_peft_from="runs/none"))
    with pytest.raises(FieldError, match="this run has no PEFT method; use init_from"):
        refused(dataclasses.replace(e, init_peft_from=pretrained_run(tmp_path / "whole", GPT)[0]))
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(UserError, match="text: not a safetensors file"):
        refused(dataclasses.replace(e, init_peft_from=str(tmp_path / "text")))
    with pytest.raises(FieldError, match="init_peft_from='runs/a': needs a PEFT method; set peft"):
        dataclasses.replace(e, peft=None, init_peft_from="runs/a").check()
