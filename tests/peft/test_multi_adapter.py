"""Several adapters in memory: each row has its own, whichever it asks for, and in generation too."""

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
from jaxnlp.peft.multi_adapter import resident
from jaxnlp.peft.tuning import plan
from jaxnlp.sharding.axes import make_apply
from jaxnlp.trees import merge
from tests.peft.test_properties import V, gpt, model, moved

TARGETS = ("query", "value", "down", "embed")
METHODS = (
    LoRA(targets=TARGETS, rank=2, alpha=8.0),
    LoRA(targets=TARGETS, rank=4, alpha=2.0),
    LoRA(targets=TARGETS, rank=3, rank_stabilized=True),
)


def adapters(name: str):
    """(module, tokens, base, [(tuning, tuned)]) of methods that differ in rank and scale."""
    module, inputs, base = model(name)
    found = []
    for i, method in enumerate(METHODS):
        tuning = plan(method, module, *inputs)
        found.append((tuning, moved(tuning.init(jax.random.key(i), base), 0.1 * (i + 1))))
    return module, inputs[0], base, found


@pytest.mark.parametrize("name", ["gpt", "gpt scanned"])
def test_rows_of_a_batch_choose_among_adapters_of_different_rank_and_scale(name):
    module, tokens, base, found = adapters(name)
    residents = resident(found)
    tokens, run = jnp.tile(tokens, (2, 1)), jax.jit(residents.tuning.apply(make_apply(module)))
    alone = [tuning.apply(make_apply(module))(merge(base, tuned), tokens) for tuning, tuned in found]
    alone.append(make_apply(module)(base, tokens))
    for ids in ([2, 0, -1, 1], [1, 1, 0, -1]):
        logits = run(residents.params(base, ids), tokens)
        for i, which in enumerate(ids):
            np.testing.assert_allclose(logits[i], alone[which][i], rtol=1e-4, atol=1e-5)
    assert run._cache_size() == 1  # another choice is no other program


def test_texts_are_those_of_each_adapter_alone():
    module, _, base, found = adapters("gpt")
    found = [(tuning, jax.tree.map(lambda x: 4 * x, tuned)) for tuning, tuned in found[:2]]
    residents, config, prompts = resident(found), gpt(), [[5, 6, 7], [8, 9]]

    def generator(tuning):
        return Generator(tuning.apply(make_apply(module)), config.init_cache, config.length_limit, 1, V)

    greedy = lambda g, params: g(params, prompts, 3, Sampling())
    beams = lambda g, params: [row[0].ids for row in beam_search(g, params, prompts, 3, BeamSearch(num_beams=2))]
    together = generator(residents.tuning)
    for texts in (greedy, beams):
        alone = [texts(generator(tuning), merge(base, tuned)) for tuning, tuned in found]
        assert alone[0] != alone[1]
        for ids in ([0, 1], [1, 0]):
            assert texts(together, residents.params(base, ids)) == [alone[which][i] for i, which in enumerate(ids)]


def test_what_cannot_be_served_is_told():
    module, tokens, base, found = adapters("gpt")
    residents = resident(found)
    run = residents.tuning.apply(make_apply(module))
    with pytest.raises(UserError, match="3 adapters are resident; say which"):
        run(merge(base, residents.tuned), tokens)
    with pytest.raises(UserError, match="chosen for 3 rows, and the batch has 2"):
        run(residents.params(base, [0, 1, 2]), tokens)
    with pytest.raises(UserError, match="chosen for 1 rows, and the batch has 2"):  # no row stands for another
        run(residents.params(base, [0]), tokens)
    with pytest.raises(UserError, match="3 is none of them; 3 adapters are resident: 0 to 2, or -1"):
        residents.params(base, [0, 3])
    with pytest.raises(UserError, match="expected one whole number for each row"):
        residents.params(base, [0.0, 1.0])
    with pytest.raises(UserError, match="no adapters given"):
        resident([])
    other = plan(LoRA(targets=("query",), rank=2), module, tokens)
    with pytest.raises(UserError, match="adapters 0 and 1 are of different modules: .* is in one of them alone"):
        resident([found[0], (other, other.init(jax.random.key(0), base))])
    scales = plan(IA3(), module, tokens)
    with pytest.raises(UserError, match="among low-rank updates only"):
        resident([(scales, scales.init(jax.random.key(0), base))])
