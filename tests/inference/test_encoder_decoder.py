"""Generation with encoder-decoders equals exhaustive search and recomputing from scratch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.span_corruption import SpanCorruption
from jaxnlp.data.tokenizer import ByteTokenizer
from jaxnlp.errors import UserError
from jaxnlp.inference.beam import BeamSearch, beam_search
from jaxnlp.inference.bound_model import make_generator
from jaxnlp.inference.decode import Generator
from jaxnlp.inference.exhaustive import exhaustive_search
from jaxnlp.inference.sampling import Sampling
from jaxnlp.models.t5 import T5Config
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.nn import mlp
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.sharding.functional import init_params, make_apply
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

SIZES = {"vocab_size": 5, "num_layers": 1, "num_heads": 2, "embed_dim": 8}
KINDS = {
    "transformer": TransformerConfig(max_length=90, mlp_dim=12, **SIZES),
    "scanned pre-norm": TransformerConfig(max_length=90, mlp_dim=12, norm_position="pre", scan_layers=True, **SIZES),
    "t5": T5Config(head_dim=4, mlp_dim=12, num_decoder_layers=2, mlp=mlp.MLP(activation="relu"), **SIZES),
}
SEP = 0


def tiny(kind: str, **fields):
    """A random model, as (generator, params, jitted apply)."""
    config = KINDS[kind]
    params = init_params(config.build(), jax.random.key(5), *example_inputs_of(config))
    params = jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, params)
    apply = make_apply(config.build())
    fields = {"encoder_decoder": True, **fields}
    return Generator(apply, config.init_cache, config.length_limit, SEP, 5, **fields), params, jax.jit(apply)


def example_inputs_of(config):
    return (np.zeros(x.shape, x.dtype) for x in config.example_inputs(1, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_recomputing_for_ragged_sources_and_prefixes(kind):
    generator, params, apply = tiny(kind)
    sources, prefixes = [[1, 2, 3, 4, 1], [2], [4, 4]], [[], [3, 1], [2]]
    generated = generator.generate(params, sources, 70, forced_prefix=prefixes)  # the cache grows once
    assert [g.ids for g in generated] == generator(params, sources, 70, forced_prefix=prefixes)
    for source, prefix, g in zip(sources, prefixes, generated, strict=True):
        row = [SEP, *g.ids, *([SEP] if g.finish == "end" else [])]
        assert g.ids[: len(prefix)] == prefix and (g.finish == "end") == (len(g.ids) < 70 + len(prefix))
        logits = np.asarray(apply(params, jnp.asarray([[*source, SEP]]), jnp.asarray([row])))[0, :-1]
        assert np.argmax(logits, -1)[len(prefix) :].tolist() == row[1 + len(prefix) :]
        log_probs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(row)[1:, None], -1)[:, 0]
        reported = [*g.log_probs, *([] if g.end_log_prob is None else [g.end_log_prob])]
        np.testing.assert_allclose(reported, log_probs, atol=1e-5)
    assert len({len(g.ids) for g in generated}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_wide_beam_is_exhaustive_search(kind):
    generator, params, apply = tiny(kind)
    beams = BeamSearch(num_beams=4**3, num_return=6, early_stopping="never")
    hypotheses = beam_search(generator, params, [[1, 2]], 3, beams)[0]
    wanted = exhaustive_search(apply, params, [SEP], 3, source=[1, 2, SEP], eos_id=SEP, vocab_size=5, num_return=6)
    assert [h.ids for h in hypotheses] == [h.ids for h in wanted]
    np.testing.assert_allclose([h.score for h in hypotheses], [h.score for h in wanted], atol=1e-5)


def test_a_row_does_not_depend_on_the_sources_beside_it_but_on_its_own():
    generator, params, _ = tiny("transformer")
    beams = BeamSearch(num_beams=3, num_return=2)
    together = beam_search(generator, params, [[1, 2, 3, 4, 1], [2]], 10, beams)
    alone = beam_search(generator, params, [[2]], 10, beams)
    assert [h.ids for h in alone[0]] == [h.ids for h in together[1]]
    scores = [[h.score for h in row] for row in (*alone, *together)]
    np.testing.assert_allclose(scores[0], scores[2], atol=1e-5)
    assert np.abs(np.subtract(scores[0], scores[1])).min() > 1e-3


def test_draws_come_from_the_decoder():
    generator, params, _ = tiny("t5")
    rows = generator(params, [[1, 2]] * 40, 5, Sampling(temperature=4.0))
    assert len({tuple(row) for row in rows}) > 10


def test_what_cannot_be_is_refused():
    generator, params, _ = tiny("transformer")
    generator = dataclasses.replace(generator, length_limit=90)
    with pytest.raises(UserError, match=r"one end-of-text token, 2 forced tokens and max_new_tokens=88 exceed .*=90"):
        generator(params, [[1]], 88, forced_prefix=[[1, 2]])
    with pytest.raises(UserError, match="a source of 91 tokens exceeds model.max_length=90"):
        generator(params, [[1] * 90], 3)
    with pytest.raises(UserError, match="forced_prefix: 1 prefixes for 2 prompts"):
        generator(params, [[1], [2]], 3, forced_prefix=[[1]])
    assert generator.fit_max_new_tokens([[1] * 80], 200, [[1, 2]]) == 87
    bare, params, _ = tiny("transformer", encoder_eos_ids=())
    with pytest.raises(UserError, match="empty source"):
        bare(params, [[]], 3)


def test_the_decoder_begins_as_it_did_in_training():
    tokenizer = ByteTokenizer(("<pad>",))
    for start, wanted in ((None, (256,)), ("<pad>", (257,))):
        data = DataConfig(seq_len=16, batch_size=8, task=SpanCorruption(decoder_start_token=start))
        model = dataclasses.replace(KINDS["t5"], vocab_size=258)
        program = build(Experiment(model=model, data=data, objective=Seq2Seq()), jax.devices()[:1])
        generator = make_generator(program.bind(tokenizer))
        assert generator.start_ids == wanted and generator.source_end_ids == (256,) and generator.encoder_decoder
