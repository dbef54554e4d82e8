"""Whether a run can resume from a checkpoint with a changed config."""

from typing import Any

from jaxnlp import config as configs
from jaxnlp.errors import UserError

# Fields on which a run's state or its position in the corpus depends.
FIXED = (
    "model",
    "objective",
    "peft",
    "optim.name",
    "optim.b1",
    "optim.master_dtype",
    "seed",
    "data.source",
    "data.tokenizer",
    "data.seq_len",
    "data.seed",
    "data.shuffle",
    "data.attend_across_documents",
    "data.task",
)
# Exceptions among those: fields that only change how the same values are computed, or are safe to change.
FREE = (
    "model.attention",
    "model.remat",
    "model.dropout_rate",
    "model.policy.compute_dtype",
    "model.policy.matmul_dtype",
    "model.policy.weight_gradient",
)


def changes(stored: Any, config: Any) -> list[tuple[str, Any, Any]]:
    """(path, stored value, new value) of each field in which the configs differ. A resumed run may change them.

    Raises:
        UserError: naming the first field that a resumed run cannot change.
    """
    differences = configs.diff(stored, config)
    fixed = [change for change in differences if _under(change[0], FIXED) and not _free(*change)]
    if fixed:
        path, old, new = fixed[0]
        more_fields = f" (and {', '.join(change[0] for change in fixed[1:])})" if fixed[1:] else ""
        raise UserError(
            f"{path}: the checkpoint has {old!r} and the config has {new!r}{more_fields}; "
            "a run cannot resume with that changed: set it back, or choose another --workdir"
        )
    return differences


def _free(path: str, old: Any, new: Any) -> bool:
    # float16 keeps a loss scale in the state.
    return _under(path, FREE) and not (path.endswith("compute_dtype") and "float16" in (old, new))


def _under(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == p or path.startswith((f"{p}.", f"{p}[")) for p in prefixes)
