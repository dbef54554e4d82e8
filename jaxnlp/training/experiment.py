"""The experiment: the full configuration of a run in one object."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from jaxnlp import config as configs
from jaxnlp.config import field_values
from jaxnlp.data.pipeline import DataConfig, resolved
from jaxnlp.data.tasks.layout import Layout, Template
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError, check_text
from jaxnlp.evals.defaults import RESERVED
from jaxnlp.evals.evaluator import Evaluator
from jaxnlp.nn.model_config import ModelConfig
from jaxnlp.objectives.causal_lm import CausalLM
from jaxnlp.objectives.objective import Objective
from jaxnlp.optim import OptimConfig, make_schedule
from jaxnlp.peft.method import PEFTMethod
from jaxnlp.peft.prompt import Prompt
from jaxnlp.sharding.rules import Sharding, as_tuple
from jaxnlp.training.hooks import EarlyStopping, Evaluate, Hook, check_hook
from jaxnlp.training.init.init_from import InitFrom
from jaxnlp.training.run_folder.best import Best

NAMES = "expected names that differ from each other and from the run's own train, validation, full_validation and loss"


@dataclasses.dataclass(kw_only=True)
class Experiment:
    """A run: model, data, objective, optimizer and sharding, and the run's lengths and intervals (in steps).

    model: a model's config, as `gpt.GPTConfig(...)`. objective: as `CausalLM()`.
    peft: the PEFT method, as `peft.lora.LoRA(rank=8)`; None trains all parameters.
    init_peft_from: a PEFT run's folder, or a file of `peft/files.py`, whose tuned parameters initialise those of this
        run, as a prompt of another task (`training/init/transfer.py`); None: the method initialises them.
    init_from: the source of the initial parameters, as `pretrained.Pretrained(path="runs/bert")`; None: random.
    num_steps: length of the run.
    accum_steps: number of microbatches in a batch. More of them need less memory; the result is the same.
    steps_per_call: steps in one device call, for models so small that the overhead of a call matters.
        All intervals must be multiples of it.
    log_every, eval_every, checkpoint_every: intervals; 0 is never (the end always evaluates and saves).
        eval_every=None never evaluates the loss on the validation split, also not at the end: for an objective that
        reads arrays which only the feed's batches have, as in reinforcement learning.
    eval_batches: validation batches in an evaluation during the run; None is the full split.
        The evaluation at the end always takes the full split.
    keep_last, keep_best: checkpoints kept: the newest, and those with the best value of `best`.
    hooks: additional actions between steps (`training/hooks.py`).
    evaluators: additional evaluations (`jaxnlp/evals`).
    best: the metric that ranks checkpoints, as "validation/loss:min" or "squad/f1:max".
    early_stopping: `hooks.EarlyStopping(patience=3)` ends the run when `best` no longer improves; None: never.
    on_nonfinite: "stop" the run, or "skip" the update, when a loss or gradient is not finite.
    loss_scale: initial scale of the loss under float16.
    sample_prompt, sample_tokens: a text that the model continues at the end of the run, and the number of new tokens;
        0 tokens prints no sample.
    peak_flops: FLOP/s of one device, for the utilisation; None takes the maker's figure for the chip, or on a CPU
        measures its matrix product.
    """

    model: ModelConfig = dataclasses.field(metadata={"expected": "the config of a model, as GPTConfig(num_layers=4)"})
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    objective: Objective = dataclasses.field(
        default_factory=CausalLM, metadata={"expected": "an objective of jaxnlp.objectives, as CausalLM()"}
    )
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    peft: PEFTMethod | None = dataclasses.field(
        default=None, metadata={"expected": "a method of jaxnlp.peft, as LoRA(rank=8), or None"}
    )
    init_peft_from: str | None = None
    init_from: InitFrom | None = dataclasses.field(
        default=None, metadata={"expected": "Pretrained(path='runs/bert'), or None"}
    )
    sharding: Sharding = dataclasses.field(default_factory=Sharding)
    num_steps: int = 1000
    accum_steps: int = 1
    steps_per_call: int = 1
    seed: int = 0
    log_every: int = 10
    eval_every: int | None = 200
    eval_batches: int | None = 20
    checkpoint_every: int = 200
    keep_last: int = 2
    keep_best: int = 1
    hooks: tuple[Hook, ...] = ()
    evaluators: tuple[Evaluator, ...] = ()
    best: str = "validation/loss:min"
    early_stopping: EarlyStopping | None = None
    on_nonfinite: str = "stop"
    loss_scale: float = 2.0**15
    sample_prompt: str = ""
    sample_tokens: int = 160
    peak_flops: float | None = None

    def check(self) -> None:
        """Raises FieldError naming the first field that is invalid, alone or in combination with another."""
        for field, value in field_values(self, "num_steps", "accum_steps", "steps_per_call", "keep_last").items():
            if value < 1:
                raise FieldError(field, value, "expected a positive number")
        intervals = ("log_every", "eval_every", "checkpoint_every")
        for field, value in field_values(self, *intervals, "keep_best", "sample_tokens").items():
            if value is not None and value < 0:
                raise FieldError(field, value, "expected zero or more")
        for field, value in field_values(self, "num_steps", *intervals).items():
            if value is not None and value % self.steps_per_call:
                raise FieldError(field, value, f"not a multiple of steps_per_call={self.steps_per_call}")
        if self.eval_batches is not None and self.eval_batches < 1:
            raise FieldError(
                "eval_batches", self.eval_batches, "expected a positive number, or None for the full split"
            )
        if self.on_nonfinite not in ("stop", "skip"):
            raise FieldError("on_nonfinite", self.on_nonfinite, "expected 'stop' or 'skip'")
        if not 0 <= self.seed < 2**32:
            raise FieldError("seed", self.seed, "expected a number in [0, 2^32)")
        if not self.loss_scale >= 1:
            raise FieldError("loss_scale", self.loss_scale, "expected 1 or more, as 32768.0")
        check_text("sample_prompt", self.sample_prompt)
        if self.peak_flops is not None and not self.peak_flops > 0:
            raise FieldError("peak_flops", self.peak_flops, "expected FLOP/s, as 9.9e14, or None")
        if self.init_peft_from is not None and self.peft is None:
            raise FieldError("init_peft_from", self.init_peft_from, "needs a PEFT method; set peft, as peft=Prompt()")
        several = self.data.task.packs_documents and not self.data.attend_across_documents
        if self.peft is not None and self.peft.single_text_only and several:
            name, task = type(self.peft).__name__, type(self.data.task).__name__
            message = f"needs one document per row, but data.task={task}() packs several"
            raise FieldError("peft", f"{name}()", f"{message}; set data.attend_across_documents=True, or use Prefix()")
        if self.data.batch_size % self.accum_steps:
            raise FieldError("accum_steps", self.accum_steps, f"does not divide data.batch_size={self.data.batch_size}")
        limit = self.model.length_limit
        if limit is not None and self.data.seq_len > limit:
            raise FieldError(
                "data.seq_len",
                self.data.seq_len,
                f"exceeds model.max_length={limit}; raise max_length or lower seq_len",
            )
        self._check_task()
        self._check_template()
        make_schedule(self.optim, self.num_steps)
        self._check_hooks()
        self._check_evaluators()

    def _check_hooks(self) -> None:
        for i, hook in enumerate(self.hooks):
            check_hook(hook, f"hooks[{i}].", self.steps_per_call)

    def _check_evaluators(self) -> None:
        hooks = [hook.evaluator.name for hook in self.hooks if isinstance(hook, Evaluate)]
        evaluations = [*hooks, *(evaluator.name for evaluator in self.evaluators)]
        names = ["train", "full_validation", "validation", *evaluations]  # also without the loss, for the log
        for name in hooks:
            if name in RESERVED or names.count(name) > 1:
                raise FieldError("hooks", f"Evaluate of {name!r}", NAMES)
        for i, evaluator in enumerate(self.evaluators):
            configs.check(evaluator, f"evaluators[{i}].")
            if evaluator.name in RESERVED:
                expected = "expected a name other than those of the default evaluators, loss and predictions"
                raise FieldError(f"evaluators[{i}].name", evaluator.name, f"{expected}; rename it, as 'my_loss'")
            if names.count(evaluator.name) > 1:
                raise FieldError("evaluators", evaluator.name, NAMES)
            if (evaluator.every or 0) % self.steps_per_call:
                raise FieldError(
                    "evaluators",
                    evaluator.name,
                    f"every={evaluator.every} is not a multiple of steps_per_call={self.steps_per_call}",
                )
        best = Best.parse(self.best)
        if self.eval_every is None and self.early_stopping is not None and best.evaluator not in evaluations:
            reason = "is not measured with eval_every=None, so early_stopping never acts"
            raise FieldError("best", self.best, f"{reason}; expected one of {evaluations}")
        if best.evaluator == "full_validation":
            reason = "is measured after the checkpoint is saved, so it ranks none"
            remedy = f"expected 'validation/{best.metric}:{best.mode}', with eval_batches=None for the full split"
            raise FieldError("best", self.best, f"{reason}; {remedy}")
        if best.evaluator not in ("validation", *evaluations):
            expected = ", ".join(("validation", *evaluations))
            raise FieldError("best", self.best, f"no evaluator {best.evaluator!r}; expected one of {expected}")

    def _check_task(self) -> None:
        pairs = self.data.task.encoder_decoder
        if pairs != (self.model.kind == "encoder-decoder"):
            fitting = "TextPairs() or SpanCorruption(), with objective=Seq2Seq()" if not pairs else "Packed()"
            task, model = f"{type(self.data.task).__name__}()", type(self.model).__name__
            raise FieldError("data.task", task, f"does not fit model={model}(); use {fitting}")

    def _check_template(self) -> None:
        layout, tuning = self.layout, self.peft
        if not isinstance(layout, Template) or not layout.num_places:
            return
        if not isinstance(tuning, Prompt):
            message = f"{layout.place} marks a soft prompt; expected peft=PTuning(length={layout.num_places})"
            raise FieldError("data.task.layout.text", layout.text, message)
        if tuning.length != layout.num_places:
            message = f"has {layout.place} {layout.num_places} times, and peft.length={tuning.length}"
            raise FieldError("data.task.layout.text", layout.text, f"{message}; expected one for each vector")

    @property
    def layout(self) -> Layout | None:
        """The layout of a labelled task's texts; None for other tasks."""
        return self.data.task.layout

    @property
    def loss_unit(self) -> str:
        """The unit of the loss, as "nats/token"."""
        item = self.data.task.unit.split()[-1].removesuffix("s")  # "predicted tokens": per token
        return f"{self.objective.loss_unit}/{item}"


def check_with_hooks(experiment: Experiment, hooks: Sequence[Hook]) -> None:
    """Checks an experiment with more hooks, whose evaluators have names of their own and may be that of `best`."""
    configs.check_types(experiment)
    configs.check(dataclasses.replace(experiment, hooks=(*experiment.hooks, *hooks)))


def flops_per_token(experiment: Experiment) -> float:
    """FLOPs of a training step per token, of which it has batch_size * seq_len."""
    data = experiment.data
    fraction = data.task.predicted_fraction(data)
    return data.task.num_sequences * experiment.model.flops_per_token(data.seq_len, fraction)


def abstract_batch(experiment: Experiment, rows: int, sharding: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    """An abstract training batch with `rows` rows, by name."""
    shapes = experiment.data.task.shapes(experiment.data)
    return {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding) for name, (shape, dtype) in shapes.items()
    }


def check_batch(experiment: Experiment, num_devices: int) -> None:
    """Raises FieldError unless a microbatch and a sequence divide over the devices that split them."""
    sizes = experiment.sharding.mesh.sizes(num_devices)
    batch = as_tuple(experiment.sharding.activations.get("batch"))
    ways, rows = math.prod(sizes[axis] for axis in batch), experiment.data.batch_size // experiment.accum_steps
    if rows % ways:
        microbatch = f" (over accum_steps={experiment.accum_steps}: {rows} rows)" if experiment.accum_steps > 1 else ""
        up = -(-rows // ways) * ways * experiment.accum_steps
        raise FieldError(
            "data.batch_size",
            experiment.data.batch_size,
            f"does not divide over {'*'.join(batch)}={ways} devices{microbatch}; use {up}, or change sharding.mesh",
        )
    for name in ("length", "residual"):
        axes = as_tuple(experiment.sharding.activations.get(name))
        ways, length = math.prod(sizes[axis] for axis in axes), experiment.data.seq_len
        if length % ways:
            message = f"does not divide over {'*'.join(axes)}={ways} devices; use {-(-length // ways) * ways}"
            raise FieldError("data.seq_len", length, f"{message}, or change sharding.mesh")


def check_classes(experiment: Experiment) -> None:
    """Raises FieldError if the head's number of classes is not the task's."""
    names = experiment.data.task.classes
    count = None if experiment.model.head is None else experiment.model.head.num_classes
    if names and count is not None and count != len(names):
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise FieldError(
            "model.head.num_classes", count, f"data.task has {len(names)} classes ({listed}); use {len(names)}"
        )


def resolve(experiment: Experiment, tokenizer: Tokenizer) -> Experiment:
    """Fills in the fields that depend on the tokenizer and on labelled data.

    Raises:
        FieldError: a vocabulary smaller than the tokenizer's, or another number of classes than the data has.
    """
    experiment = dataclasses.replace(experiment, data=resolved(experiment.data))
    check_classes(experiment)
    if isinstance(experiment.peft, PEFTMethod):
        layout = experiment.layout
        place = layout.place_id(tokenizer) if isinstance(layout, Template) and layout.num_places else None
        experiment = dataclasses.replace(experiment, peft=experiment.peft.resolved(tokenizer, place))
    model, size = experiment.model, experiment.model.body.vocab_size
    if size is None:
        return dataclasses.replace(experiment, model=model.with_body(vocab_size=tokenizer.vocab_size))
    if size < tokenizer.vocab_size:
        field = "model.vocab_size" if model.body is model else "model.body.vocab_size"
        raise FieldError(field, size, f"the tokenizer has {tokenizer.vocab_size} tokens; use that or more")
    return experiment
