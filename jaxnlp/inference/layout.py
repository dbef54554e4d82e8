"""Output-major weight layout for generation on a CPU, where a step is bound by reading the weights.

Each kernel is stored as a matrix (outputs, inputs), so that a product with few rows reads it contiguously. The model
needs `Policy(weight_layout="output_major")`. Measurements are in docs/design_log/. On other platforms the compiler
chooses layouts itself.
"""

from typing import Any

import jax


def output_major(params: Any, shapes: Any, axes: Any) -> Any:
    """The parameters with each kernel transposed to a matrix (outputs, inputs).

    Args:
        params: nested dicts of arrays.
        shapes, axes: shapes and logical axes of the parameters of the same model built with the policy above. Kernels
            to transpose have the axes (..., "outputs", "inputs").
    """

    def lay_out(x, like, names):
        if names[-2:] != ("outputs", "inputs"):
            return x
        *lead, outputs, inputs = like.shape
        return x.reshape(*lead, inputs, outputs).swapaxes(-1, -2)

    return jax.tree.map(lay_out, params, shapes, axes)
