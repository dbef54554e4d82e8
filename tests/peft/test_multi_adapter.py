"""Several adapters in memory: each row uses the adapter that it selects, also in generation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import UserError
from jaxnlp.inference.beam import BeamSearch, beam_search
from jaxnlp.inference.decode import Generator
from jaxnlp.inference.sampling import Sampling
from jaxnlp.peft.ia3 import IA3
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.multi_adapter import stack_adapters
from jaxnlp.peft.tuning import attach
from jaxnlp.sharding.functional import make_apply
from jaxnlp.trees import merge
from tests.peft.test_properties import V, gpt, model, moved

TARGETS = ("query", "value", "down", "embed")
METHODS = (
    LoRA(targets=TARGETS, rank=2, alpha=8.0),
    LoRA(targets=TARGETS, rank=4, alpha=2.0),
    LoRA(targets=TARGETS, rank=3, use_rslora=True),
)


def adapters(name: str):
    """(module, tokens, base, [(tuning, tuned)]) of methods that differ in rank and scale."""
    module, inputs, base = model(name)
    pairs = []
    for i, method in enumerate(METHODS):
        tuning = attach(method, module, *inputs)
        pairs.append((tuning, moved(tuning.init(jax.random.key(i), base), 0.1 * (i + 1))))
    return module, inputs[0], base, pairs


@pytest.mark.parametrize("name", ["gpt", "gpt scanned"])
def test_rows_of_a_batch_choose_among_adapters_of_different_rank_and_scale(name):
    module, tokens, base, pairs = adapters(name)
    stacked = stack_adapters(pairs)
    tokens, run = jnp.tile(tokens, (2, 1)), jax.jit(stacked.tuning.apply(make_apply(module)))
    alone = [tuning.apply(make_apply(module))(merge(base, tuned), tokens) for tuning, tuned in pairs]
    alone.append(make_apply(module)(base, tokens))
    for ids in ([2, 0, -1, 1], [1, 1, 0, -1]):
        logits = run(stacked.params(base), tokens, adapter_ids=stacked.ids(ids))
        for i, which in enumerate(ids):
            np.testing.assert_allclose(logits[i], alone[which][i], rtol=1e-4, atol=1e-5)
    assert run._cache_size() == 1  # another selection does not recompile


def test_texts_are_those_of_each_adapter_alone():
    module, _, base, pairs = adapters("gpt")
    pairs = [(tuning, jax.tree.map(lambda x: 4 * x, tuned)) for tuning, tuned in pairs[:2]]
    stacked, config, prompts = stack_adapters(pairs), gpt(), [[5, 6, 7], [8, 9]]

    def generator(tuning):
        return Generator(tuning.apply(make_apply(module)), config.init_cache, config.length_limit, 1, V)

    def greedy(model, params, **ids):
        return model(params, prompts, 3, Sampling(), **ids)

    def streamed(model, params, **ids):
        return [g.ids for g in model.generate(params, prompts, 3, on_tokens=lambda row, new: None, chunk=1, **ids)]

    def beams(model, params, **ids):
        return [row[0].ids for row in beam_search(model, params, prompts, 3, BeamSearch(num_beams=2), **ids)]

    together, params = generator(stacked.tuning), stacked.params(base)
    for texts in (greedy, streamed, beams):
        alone = [texts(generator(tuning), merge(base, tuned)) for tuning, tuned in pairs]
        assert alone[0] != alone[1]
        for ids in ([0, 1], [1, 0]):
            assert texts(together, params, adapter_ids=ids) == [alone[which][i] for i, which in enumerate(ids)]
    with pytest.raises(UserError, match=r"adapter_ids: shape \(1,\) for 2 prompts; expected one id per prompt"):
        greedy(together, params, adapter_ids=[0])


def test_what_cannot_be_served_is_an_error():
    module, tokens, base, pairs = adapters("gpt")
    stacked = stack_adapters(pairs)
    run, params = stacked.tuning.apply(make_apply(module)), stacked.params(base)
    with pytest.raises(UserError, match="adapter_ids: missing, and this model has 3 adapters"):
        run(params, tokens)
    with pytest.raises(UserError, match="3 ids for a batch of 2 rows"):
        run(params, tokens, adapter_ids=stacked.ids([0, 1, 2]))
    with pytest.raises(UserError, match="1 ids for a batch of 2 rows"):  # a single id is not broadcast to all rows
        run(params, tokens, adapter_ids=stacked.ids([0]))
    with pytest.raises(UserError, match="adapter_ids: 3 is out of range; expected 0 to 2, or -1"):
        stacked.ids([0, 3])
    with pytest.raises(UserError, match="adapter_ids: 3 is out of range; expected 0 to 2, or -1"):
        run(params, tokens, adapter_ids=[0, 3])
    with pytest.raises(UserError, match="expected one integer for each row"):
        stacked.ids([0.0, 1.0])
    alone, tuned = pairs[0]
    with pytest.raises(UserError, match="adapter_ids: a model with one adapter has none to choose from"):
        alone.apply(make_apply(module))(merge(base, tuned), tokens, adapter_ids=stacked.ids([0, 0]))
    with pytest.raises(UserError, match="got no adapters"):
        stack_adapters([])
    other = attach(LoRA(targets=("query",), rank=2), module, tokens)
    with pytest.raises(UserError, match="adapters 0 and 1 have different targets: only one of them has"):
        stack_adapters([pairs[0], (other, other.init(jax.random.key(0), base))])
    scales = attach(IA3(), module, tokens)
    with pytest.raises(UserError, match=r"IA3\(\) cannot be selected by row"):
        stack_adapters([(scales, scales.init(jax.random.key(0), base))])
