"""Initialises a run from a pretrained model, for fine-tuning or continued training.

  Experiment(model=ModelWithHead(body=pretrained.model("runs/bert", heads=("pooler",)), head=...),
             data=DataConfig(tokenizer=PretrainedTokenizer(path="runs/bert"), ...),
             init_from=Pretrained(path="runs/bert"))

Parameters are matched by path. The run reports which were loaded, missing or unexpected. Only heads may be missing or
unexpected, so that a body is never partly loaded. This happens only at step 0: a run that resumes reads its own
checkpoint.
"""

import dataclasses
import fnmatch
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnlp import strict_json
from jaxnlp.config import did_you_mean
from jaxnlp.data.huggingface_tokenizer import HuggingFaceTokenizer, wrap
from jaxnlp.data.pretrained_tokenizer import read_exported, same_ids
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError, UserError
from jaxnlp.interop import huggingface
from jaxnlp.interop.tensor_files import hint
from jaxnlp.nn.head import Head
from jaxnlp.nn.kernels import Einsum
from jaxnlp.nn.model_config import ModelConfig
from jaxnlp.nn.quantised import dequantised
from jaxnlp.paths import expanded
from jaxnlp.runtime import command, option
from jaxnlp.scratch import replacing
from jaxnlp.sharding.functional import abstract_params
from jaxnlp.sharding.rules import REPLICATED, Rules, path_name, shardings
from jaxnlp.training.init.init_from import InitFrom
from jaxnlp.training.init.param_mapping import ParamMapping, map_params
from jaxnlp.training.load import load
from jaxnlp.training.run_folder.checkpoint import Reader
from jaxnlp.trees import Params, select

REPORT = "init.json"
NUM_LISTED = 8  # paths in a line of the report; the file lists all


@dataclasses.dataclass(kw_only=True)
class Pretrained(InitFrom):
    """Initial parameters from a pretrained model, as `Experiment.init_from`.

    path: a run's folder (a PEFT run is merged into its base), a folder in Hugging Face's layout, or a hub id.
    checkpoint: of a run: "latest" (the newest intact one), "best" (by that run's `Experiment.best`) or a step.
    missing_ok, unexpected_ok: patterns of parameters, as "trunk/adapter*", that besides heads may be missing in the
        pretrained model (they are initialised) or unexpected in this model (they are dropped).
    ignore: patterns of tensors to leave out of a model in Hugging Face's layout, as "classifier.*".
    """

    checkpoint: str = "latest"
    missing_ok: tuple[str, ...] = ()
    unexpected_ok: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def check(self) -> None:
        if not self.path:
            raise FieldError("path", self.path, "expected the folder of a trained run, as runs/bert")

    def begin(self, program: Any, state: Any, tokenizer: Any, log: Callable[[str], Any]) -> tuple[Any, "Report"]:
        """(the state with the pretrained parameters, the report of what was loaded). Shardings stay the same.

        Args:
            program: the new run's. state: its state at step 0. log: prints a line.
            tokenizer: the run's, whose ids must be those of the pretrained model.

        Raises:
            UserError: nothing to load at `path`; a tokenizer with other ids; a parameter of another shape; a missing or
                unexpected parameter of the body; a missing parameter that the PEFT method would not train.
        """
        source = open_source(self.path, self.checkpoint, log)
        check_ids(source, tokenizer)
        source_params = source.read(program.mesh, program.experiment.sharding.params, self.ignore)
        specs, spec_axes = program.base_params_spec
        flat, target = by_path(source_params), by_path(specs)
        is_names = lambda x: isinstance(x, tuple)
        axes = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(spec_axes, is_leaf=is_names)}
        model = program.experiment.model
        matching = map_params(
            {path: x.shape for path, x in flat.items()},
            {path: x.shape for path, x in target.items()},
            axes,
            prefixes=(prefix(source.model), prefix(model)),
            same_head=source.head == head_of(program.experiment),
            allowed=lambda path: _any(path, self.missing_ok),
            dropped=lambda path: _any(path, self.unexpected_ok),
            name=source.name,
        )
        layout = jax.tree.map(lambda x: x.sharding, specs)
        build = jax.jit(
            lambda initial, source_params: assemble(matching, dequantised(initial), source_params), out_shardings=layout
        )
        report = Report.of(source.name, matching, target)
        params = build(select(state.all_params, specs), flat)
        if program.tuning is None:
            return dataclasses.replace(state, params=params), report
        trained = {"/".join(path) for path in program.tuning.replaced}
        if untrained := [path for path in report.missing if path not in trained]:
            raise UserError(
                f"tuning: {untrained[0]} is not in {source.name} and would keep its random values; train it with "
                f"peft.modules_to_save=({', '.join(repr(path) for path in [*trained_patterns(trained), *untrained])},)"
            )
        return program.init_from_params(params), report


def trained_patterns(paths: Iterable[str]) -> list[str]:
    return sorted({f"{path.split('/')[0]}/*" for path in paths})


@dataclasses.dataclass(frozen=True)
class PretrainedSource:
    """A pretrained model. read(mesh, rules, ignore): its parameters, laid out over a mesh. tokenizer: None if
    unknown. head: as `head_of` returns it."""

    name: str
    model: ModelConfig
    tokenizer: Tokenizer | None
    read: Callable[[Mesh, Rules, Iterable[str]], Params]
    head: tuple[Head, tuple[str, ...] | None] | None = None


def model(path: str, **changes: Any) -> Any:
    """The config of a pretrained model with some fields changed, for fine-tuning or continued training.

    Args:
        path: as `Pretrained.path`. changes: fields, as heads=("pooler",), dropout_rate=0.1.

    `vocab_size` becomes None, so that the run's tokenizer sets it and may add special tokens, unless the model has more
    rows than its own tokenizer has tokens. For a fine-tuned model, the result is the config of its body.

    Raises:
        UserError: nothing to load at `path`, or a field that the config does not have.
    """
    source = open_source(path, "latest", lambda text: None)
    body = source.model.body
    fields = [field.name for field in dataclasses.fields(body)]
    for name in changes:
        if name not in fields:
            near = did_you_mean(name, fields)
            kind = type(body).__name__
            raise UserError(f"{path}: its model, {kind}, has no field {name!r} (is this the right run?){near}")
    if source.tokenizer is not None and body.vocab_size == source.tokenizer.vocab_size:
        changes = {"vocab_size": None, **changes}
    return dataclasses.replace(body, **changes)


def open_source(path: str, checkpoint: str, log: Callable[[str], Any]) -> PretrainedSource:
    """Opens a run, or a model in Hugging Face's layout. Its parameters are read later, by `PretrainedSource.read`."""
    path = expanded(path)
    reader = Reader(path)
    if reader.steps():
        return _open_run(path, reader, checkpoint, log)
    folder = pathlib.Path(path)
    if folder.is_dir() and not (folder / huggingface.CONFIG).exists():
        raise FieldError(
            "init_from.path",
            path,
            "has neither a checkpoint of a run nor a model in Hugging Face's layout"
            f"{hint(folder) or '; train a model first'}",
        )
    if not folder.is_dir() and (path.startswith((".", "/", "runs/")) or path.count("/") > 1):
        raise FieldError(
            "init_from.path",
            path,
            f"no such folder; train one with: {command('train', '--config=FILE', option('workdir', path))}",
        )
    folder = huggingface.local_folder(path)
    config, library = huggingface.read_config(folder)
    tokenizer = read_exported(folder)
    if tokenizer is None and library is not None:
        tokenizer = wrap(library)

    def read(mesh: Any, rules: Any, ignore: Iterable[str]) -> Any:
        try:
            return huggingface.load(path, mesh=mesh, rules=rules, ignore=tuple(ignore))[1]
        except UserError as e:
            _check_indivisible(path, e, log)
            return huggingface.load(path, mesh=mesh, rules=REPLICATED, ignore=tuple(ignore))[1]

    return PretrainedSource(path, config, tokenizer, read)


def _open_run(path: str, reader: Reader, checkpoint: str, log: Callable[[str], Any]) -> PretrainedSource:
    if checkpoint == "latest":
        step = reader.newest(lambda step, e: log(f"note: {path}: the checkpoint of step {step} is damaged ({e})"))
    elif checkpoint == "best":
        step = reader.best()
    else:
        step = int(checkpoint) if checkpoint.isdigit() and int(checkpoint) in reader.steps() else None
    if step is None:
        steps = ", ".join(map(str, reader.steps()))
        raise FieldError(
            "init_from.checkpoint", checkpoint, f"{path} has no such checkpoint; expected latest, or a step of {steps}"
        )
    reader.verify(step)
    saved = reader.read(step)
    config = saved.experiment.model

    def read(mesh: Any, rules: Any, ignore: Iterable[str]) -> Any:
        # The attention kernel does not change the parameters, and the run's may not support this platform.
        plain = config if config.attention is None else config.with_body(attention=Einsum())
        shapes, axes = abstract_params(plain.build(), *plain.example_inputs(1, 1))
        try:
            layout = shardings(shapes, axes, rules, mesh)
        except UserError as e:
            _check_indivisible(path, e, log)
            layout = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), shapes)
        if saved.experiment.peft is not None:
            return jax.tree.map(jax.device_put, _merged(path, step), layout)
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)
        return reader.restore_item(step, "params", target)

    return PretrainedSource(f"{path}, step {step:,}", config, saved.tokenizer, read, head_of(saved.experiment))


def _merged(path: str, step: int) -> Any:
    """The parameters of a PEFT run, merged into its base."""
    run = load(path, str(step))
    tuning = run.program.tuning
    assert tuning is not None
    try:
        return tuning.merge(select(run.params, tuning.shapes), select(run.params, run.program.abstract.params))
    except UserError as e:
        message = f"{e}; use the init_from of that run, with init_peft_from={path!r}"
        raise FieldError("init_from.path", path, message) from None


def _check_indivisible(path: str, error: UserError, log: Callable[[str], Any]) -> None:
    """Raises the error again unless a size does not divide over the mesh: the new model may have another size there."""
    if "does not divide" not in str(error):
        raise error
    log(f"note: {path} is read in full on every device and sharded afterwards ({error})")


def check_ids(source: PretrainedSource, tokenizer: Any) -> None:
    """Raises UserError if an id means another token in the run's tokenizer than in the pretrained model's."""
    original = source.tokenizer
    if isinstance(original, HuggingFaceTokenizer) and isinstance(tokenizer, HuggingFaceTokenizer):
        separator = tokenizer.to_json()["separator"]
        original = HuggingFaceTokenizer.from_json({**original.to_json(), "separator": separator})
    if original is not None and not same_ids(original, tokenizer):
        raise UserError(
            f"data.tokenizer: its ids are not those of {source.name} ({type(original).__name__}, "
            f"{original.vocab_size:,} tokens; this run has {type(tokenizer).__name__}, {tokenizer.vocab_size:,}); "
            "use PretrainedTokenizer(path=...) of the same folder"
        )


def head_of(experiment: Any) -> Any:
    """(head config, class names) of a fine-tuned model. Heads that compare equal have the same meaning."""
    return experiment.model.head, experiment.data.task.classes or None


def prefix(model: Any) -> str:
    """The path prefix of a model's body among its parameters."""
    return "" if model.body is model else "trunk/"


def by_path(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assemble(matching: ParamMapping, initial: Any, source_params: dict[str, jax.Array]) -> Any:
    """The parameters: from `source_params` if the match has a source for them, else from `initial`."""

    def assembled(path: Any, leaf: jax.Array) -> jax.Array:
        piece = matching.loaded.get(path_name(path))
        if piece is None:
            return leaf
        arrays = [source_params[name] for name in piece.sources]
        array = jnp.stack(arrays) if piece.stacked else arrays[0]
        array = (array if piece.layer is None else array[piece.layer]).astype(leaf.dtype)
        new_rows = (
            jax.lax.slice_in_dim(leaf, array.shape[piece.axis], None, axis=piece.axis) if piece.extended else None
        )
        return array if new_rows is None else jnp.concatenate([array, new_rows], axis=piece.axis)

    return jax.tree_util.tree_map_with_path(assembled, initial)


@dataclasses.dataclass(frozen=True)
class Report:
    """How each parameter was initialised: sorted paths.

    loaded: parameters of the run that are in the source. missing: those that are not, and so were initialised.
    unexpected: parameters of the source that are not in the run, and so were dropped.
    more_rows: for a larger vocabulary, path -> (rows loaded, all rows); these parameters count as loaded too.
    numbers: (scalars loaded, all scalars).
    """

    source: str
    loaded: list[str]
    more_rows: dict[str, tuple[int, int]]
    missing: list[str]
    unexpected: list[str]
    numbers: tuple[int, int]

    @classmethod
    def of(cls, source: str, matching: ParamMapping, target: dict[str, Any]) -> "Report":
        more_rows = {
            path: (matching.rows[path], target[path].shape[piece.axis])
            for path, piece in sorted(matching.loaded.items())
            if piece.extended
        }
        size = {path: x.size for path, x in target.items()}
        loaded = sum(
            size[p] if p not in more_rows else size[p] // more_rows[p][1] * more_rows[p][0] for p in matching.loaded
        )
        missing = sorted(set(target) - set(matching.loaded))
        return cls(
            source,
            sorted(matching.loaded),
            more_rows,
            missing,
            sorted(matching.unexpected),
            (loaded, sum(size.values())),
        )

    def lines(self) -> list[str]:
        """The report as text: loaded parameters by module, the others by path."""
        out = [f"initialised from {self.source}:"]
        count, (numbers, total) = len(self.loaded), self.numbers
        out.append(
            f"  loaded     {count} of {count + len(self.missing)} parameters, {numbers:,} of {total:,} numbers: "
        )
        out[-1] += ", ".join(modules(self.loaded)) or "none"
        for path, (rows, all_rows) in self.more_rows.items():
            out.append(f"             {path}: {rows:,} of its {all_rows:,} rows; the last {all_rows - rows} are new")
        out.append(f"  missing    {_some(self.missing)}")
        out.append(f"  unexpected {_some(self.unexpected)}")
        return out

    def save(self, workdir: pathlib.Path) -> None:
        with replacing(workdir / REPORT, "free disk space, or choose another folder") as new:
            new.write_text(strict_json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def modules(paths: Iterable[str]) -> list[str]:
    """The first module of the body in each path. Numbered modules become a range: "trunk/block_0 to block_3"."""
    names = dict.fromkeys(re.match(r"(trunk/)?[^/]+", path)[0] for path in sorted(paths))  # pyright: ignore
    numbered: dict[str, list[int]] = {}
    for name in names:
        base, _, number = name.rpartition("_")
        numbered.setdefault(base if number.isdigit() else name, []).append(int(number) if number.isdigit() else -1)
    listed = []
    for base, numbers in numbered.items():
        if numbers == [-1]:
            listed.append(base)
        else:
            short = base.removeprefix("trunk/")
            end = f" to {short}_{max(numbers)}" if len(numbers) > 1 else ""
            listed.append(f"{base}_{min(numbers)}{end}")
    return listed


def _some(paths: list[str]) -> str:
    if not paths:
        return "none"
    others = f" and {len(paths) - NUM_LISTED} more, in {REPORT}" if len(paths) > NUM_LISTED else ""
    return f"{len(paths)}: {', '.join(paths[:NUM_LISTED])}{others}"


def _any(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)
