"""The error of a step whose loss or gradient is not finite."""

import numpy as np

from jaxnlp.errors import UserError
from jaxnlp.training.feeds import Batch
from jaxnlp.training.run_folder.run_folder import RunFolder


def nonfinite_error(run: RunFolder, step: int, batch: Batch, metrics: dict[str, np.ndarray]) -> UserError:
    """An error that names the first such step of a call, its batch, and the last good checkpoint.

    Args:
        step: the last step of the call. metrics: by name, one value for each step of the call.
    """
    index = int(np.argmin(metrics["finite"]))
    first_bad = step - len(metrics["finite"]) + index + 1
    run.wait()
    last_good, name = run.last_saved(), batch.describe(index)
    checkpoint = (
        f"the last good checkpoint is step {last_good}" if last_good is not None else "there is no checkpoint yet"
    )
    return UserError(
        f"step {first_bad}: the loss is {metrics['loss'][index]:.4g} and the gradient norm "
        f"{metrics['grad_norm'][index]:.4g}, not finite; {checkpoint}; {f'batch: {name}; ' if name else ''}"
        "lower optim.learning_rate, or skip such steps with --config.on_nonfinite=skip"
    )
