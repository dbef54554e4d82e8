"""A model's forward pass over a mesh, with its tokenizer: what generation, mask filling and attention maps need."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from jaxnlp.data.task import Task
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError
from jaxnlp.inference import layout
from jaxnlp.inference.decode import Generator
from jaxnlp.nn.model_config import ModelConfig
from jaxnlp.nn.quantised import dequantised
from jaxnlp.peft.tuning import TunedModel
from jaxnlp.sharding.functional import abstract_params, make_apply
from jaxnlp.trees import merge, select


@dataclasses.dataclass(frozen=True)
class BoundModel:
    """A model over a mesh. Parameters are an argument of the functions that use it.

    apply: (params, *arrays) -> output. Call it, or the function that contains it, within `context()`.
    context: (**rules) -> a context with the mesh and the rule tables, for sequences of any length; `rules` replace
        rules of activations, as batch=None for a batch that is replicated.
    batch_ways: number of devices over which the rows of a batch are split.
    task: the task of the model's run, which names its special tokens.
    tuning: the model with its PEFT method; None without one.
    decoder_start_ids, encoder_eos_ids: the tokens with which texts start and sources end, for an imported model; None:
        as in the task.
    eos_ids, bos_ids: all tokens that end a text, and those at the start of an empty prompt, for an imported model;
        None: the end-of-text token.
    """

    config: ModelConfig
    apply: Callable
    tokenizer: Tokenizer
    task: Task
    mesh: Mesh
    context: Callable[..., contextlib.AbstractContextManager[object]]
    batch_ways: int = 1
    tuning: TunedModel | None = None
    decoder_start_ids: tuple[int, ...] | None = None
    encoder_eos_ids: tuple[int, ...] | None = None
    eos_ids: tuple[int, ...] | None = None
    bos_ids: tuple[int, ...] = ()

    @property
    def start_ids(self) -> tuple[int, ...]:
        """The tokens with which the decoder's input began in training: by default the end-of-text token."""
        if self.decoder_start_ids is not None:
            return self.decoder_start_ids
        name = self.task.decoder_start_token
        return (self.tokenizer.eos_id if name is None else self.tokenizer.special_id(name),)

    @property
    def source_end_ids(self) -> tuple[int, ...]:
        """The tokens with which an encoder-decoder's source ends."""
        return (self.tokenizer.eos_id,) if self.encoder_eos_ids is None else self.encoder_eos_ids


def make_generator(model: BoundModel) -> Generator:
    """The model's generator. Rows are split over the devices if they divide, else replicated.

    Raises:
        UserError: the model has no decoding cache, such as an encoder.
    """
    config, tuning = model.config, model.tuning
    if not config.can_generate:
        fine_tuned = "as it is fine-tuned; use experiments.predict, or generate from the pretrained run"
        reason = (
            "as it has no decoding cache; expected a decoder or encoder-decoder"
            if config.body is config
            else fine_tuned
        )
        raise UserError(f"{type(config).__name__}: cannot generate text, {reason}")

    def context(rows: int) -> contextlib.AbstractContextManager[Any]:
        return model.context() if rows % model.batch_ways == 0 else model.context(batch=None)

    default_start = model.decoder_start_ids is None and model.task.decoder_start_token is None
    encoder_decoder = config.kind == "encoder-decoder"
    num_virtual_tokens = 0 if tuning is None else tuning.method.num_cached_virtual_tokens(encoder_decoder)
    generator = Generator(
        model.apply,
        config.init_cache,
        None if config.length_limit is None else config.length_limit - num_virtual_tokens,
        model.tokenizer.eos_id,
        model.tokenizer.vocab_size,
        context,
        decoder_start_ids=None if default_start else model.start_ids,
        encoder_eos_ids=model.encoder_eos_ids,
        eos_ids=model.eos_ids,
        bos_ids=model.bos_ids,
        encoder_decoder=encoder_decoder,
        num_virtual_tokens=num_virtual_tokens,
        prefill_prefix=functools.partial(tuning.begin_cache, model.apply)
        if tuning is not None and num_virtual_tokens
        else None,
    )
    one_cpu = model.mesh.size == 1 and model.mesh.devices.flat[0].platform == "cpu"
    return _output_major(generator, model) if one_cpu and config.policy is not None else generator


def _output_major(generator: Generator, model: BoundModel) -> Generator:
    """The generator with its weights in the layout that one CPU reads fastest. Quantised weights become floats."""
    config, tuning = model.config, model.tuning
    assert config.policy is not None
    policy = dataclasses.replace(config.policy, weight_layout="output_major")
    module = dataclasses.replace(config, policy=policy).build()
    shapes, axes = abstract_params(module, *config.example_inputs(1, 1))
    floats = lambda params: dequantised(select(params, shapes))
    lay_out = jax.jit(lambda params: merge(params, layout.output_major(floats(params), shapes, axes)))
    apply = make_apply(module)
    if tuning is not None:
        apply = tuning.apply(apply)
    prefill = (
        None if tuning is None or not generator.num_virtual_tokens else functools.partial(tuning.begin_cache, apply)
    )
    newest: list[Any] = [None, None]

    def prepare_params(params: Any) -> Any:
        if newest[0] is not params:
            newest[:] = params, lay_out(params)
        return newest[1]

    return dataclasses.replace(generator, apply=apply, prepare_params=prepare_params, prefill_prefix=prefill)
