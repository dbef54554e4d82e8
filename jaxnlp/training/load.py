"""Loads a trained run from its folder."""

import dataclasses
import pathlib
import sys

import jax

from jaxnlp.data.huggingface_tokenizer import HuggingFaceTokenizer
from jaxnlp.errors import FieldError, UserError
from jaxnlp.inference.bound_model import BoundModel, make_generator
from jaxnlp.inference.decode import Generator
from jaxnlp.interop.generation_settings import unused
from jaxnlp.interop.source_files import SourceFiles, read_saved
from jaxnlp.interop.text_ends import text_ends
from jaxnlp.nn.kernels import Einsum
from jaxnlp.paths import local
from jaxnlp.runtime import command, option
from jaxnlp.sharding.mesh import MeshConfig, make_mesh, tpu_slices
from jaxnlp.training.experiment import Experiment, check_batch
from jaxnlp.training.init.frozen_base import attach_base
from jaxnlp.training.run_folder.checkpoint import Reader, Saved
from jaxnlp.training.step.program import Program, build
from jaxnlp.trees import Params


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint's config, tokenizer and parameters, and the program over this machine's devices.

    decoder_start_ids, encoder_eos_ids: the tokens with which texts start and sources end, for an imported model; None:
        as in the task.
    eos_ids, bos_ids: all tokens that end a text (None: the end-of-text token), and those at the start of an empty
        prompt.
    source: the other files of the checkpoint in Hugging Face's layout that the model began from; None: there is none.
    """

    saved: Saved
    program: Program
    params: Params
    decoder_start_ids: tuple[int, ...] | None = None
    encoder_eos_ids: tuple[int, ...] | None = None
    eos_ids: tuple[int, ...] | None = None
    bos_ids: tuple[int, ...] = ()
    source: SourceFiles | None = None

    @property
    def bound(self) -> BoundModel:
        """The model's forward pass and tokenizer, without its parameters."""
        bound = self.program.bind(self.saved.tokenizer)
        return dataclasses.replace(
            bound,
            decoder_start_ids=self.decoder_start_ids,
            encoder_eos_ids=self.encoder_eos_ids,
            eos_ids=self.eos_ids,
            bos_ids=self.bos_ids,
        )

    def generator(self) -> Generator:
        """The generator of the model. Raises UserError if the model cannot generate."""
        return make_generator(self.bound)


def load(workdir: str | pathlib.Path, checkpoint: str = "latest") -> Loaded:
    """Reads a run's parameters.

    Args:
        workdir: the run's folder. checkpoint: "latest" (the newest intact one), "best" (by
            `Experiment.best`) or a step.

    The devices need not be those of the training. A mesh that does not fit them is replaced by one with all of them on
    its data axis.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    reader = Reader(workdir)
    step = _choose(reader, workdir, checkpoint)
    saved = reader.read(step)
    saved = dataclasses.replace(saved, experiment=_fitting(_runnable(saved.experiment)))
    program = build(saved.experiment)
    params = reader.restore_item(step, "params", program.abstract.params)
    if program.tuning is not None:
        log = lambda text: print(text, file=sys.stderr)
        state = dataclasses.replace(program.abstract, params=params)
        params = attach_base(program, state, saved.tokenizer, saved.data, log).all_params
    loaded = Loaded(saved, program, params)
    source = read_saved(local(workdir))
    return loaded if source is None else with_source(loaded, source)


def with_source(loaded: Loaded, source: SourceFiles) -> Loaded:
    """The model with the begin and end tokens that its checkpoint's files name.

    Texts and sources begin and end as those files say until the model is trained; from then on, as in the run's task.
    """
    tokenizer, model = loaded.saved.tokenizer, loaded.saved.experiment.model
    loaded = dataclasses.replace(loaded, source=source)
    if not isinstance(tokenizer, HuggingFaceTokenizer) or not model.can_generate:
        return loaded
    ends = text_ends(source, tokenizer.library, model.kind)
    if note := unused(source):
        print(f"note: {note}", file=sys.stderr)
    own_end = () if ends.names_eos and loaded.saved.step == 0 else (tokenizer.eos_id,)
    eos_ids = tuple(dict.fromkeys((*own_end, *ends.eos)))
    loaded = dataclasses.replace(loaded, eos_ids=eos_ids, bos_ids=ends.bos or (tokenizer.eos_id,))
    if loaded.saved.step > 0:
        return loaded
    if model.kind == "encoder-decoder":
        return dataclasses.replace(loaded, decoder_start_ids=ends.decoder_start, encoder_eos_ids=ends.after)
    return dataclasses.replace(loaded, decoder_start_ids=ends.before)


def _runnable(experiment: Experiment) -> Experiment:
    """The experiment with an attention kernel that runs on these devices. All kernels compute the same values."""
    kernel, platform = experiment.model.attention, jax.devices()[0].platform
    if kernel is None or kernel.runs_on(platform):
        return experiment
    print(f"note: {type(kernel).__name__}() does not run on {platform}; using Einsum()", file=sys.stderr)
    return dataclasses.replace(experiment, model=experiment.model.with_body(attention=Einsum()))


def _fitting(experiment: Experiment) -> Experiment:
    """The experiment on a mesh of these devices: its own if it fits, else all of them on the data axis."""
    devices = jax.devices()
    count, slices = len(devices), tpu_slices(devices)
    try:
        check_batch(experiment, count)
        make_mesh(experiment.sharding.mesh, devices)
        return experiment
    except UserError:
        print(f"note: the run's mesh does not fit these {count} devices; using data={count}", file=sys.stderr)
    mesh = MeshConfig(dcn={"data": slices} if slices > 1 else {})
    sharding = dataclasses.replace(experiment.sharding, mesh=mesh)
    data = dataclasses.replace(experiment.data, batch_size=-(-experiment.data.batch_size // count) * count)
    return dataclasses.replace(experiment, sharding=sharding, data=data, accum_steps=1)


def _choose(reader: Reader, workdir: str | pathlib.Path, checkpoint: str) -> int:
    steps = reader.steps()
    if not steps:
        raise UserError(
            f"--workdir={workdir}: no checkpoint here; train one with: "
            f"{command('train', '--config=FILE', option('workdir', workdir))}"
        )
    if checkpoint == "latest":
        log = lambda step, error: print(f"note: the checkpoint of step {step} is damaged ({error})", file=sys.stderr)
        newest = reader.newest(log)
        assert newest is not None
        return newest
    if checkpoint == "best":
        best = reader.best()
        if best is None:
            raise UserError(
                f"--checkpoint=best: no checkpoint in {workdir} has a score; use latest, or a step of {steps}"
            )
        reader.verify(best)
        return best
    if not checkpoint.isdigit() or int(checkpoint) not in steps:
        raise FieldError(
            "--checkpoint", checkpoint, f"expected latest, best, or a step of {', '.join(map(str, steps))}"
        )
    reader.verify(int(checkpoint))
    return int(checkpoint)
