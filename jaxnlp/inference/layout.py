"""Output-major weights: on a CPU a step of generation is bound by reading the weights.

A kernel is stored as a matrix (outputs, inputs), which a product with few rows reads row by row, as
`Policy(weight_layout="output_major")` expects (measured in docs/design_log/). On other platforms the
compiler chooses layouts itself.
"""

from typing import Any

import jax


def output_major(params: Any, shapes: Any, axes: Any) -> Any:
    """The parameters with each kernel as a matrix (outputs, inputs).

    Args:
        params: nested dicts of arrays.
        shapes, axes: shapes and logical axes of the same model's parameters under the policy above;
            a kernel to lay out has the axes (..., "outputs", "inputs").
    """

    def lay_out(x, like, names):
        if names[-2:] != ("outputs", "inputs"):
            return x
        *lead, outputs, inputs = like.shape
        return x.reshape(*lead, inputs, outputs).swapaxes(-1, -2)

    return jax.tree.map(lay_out, params, shapes, axes)
