"""Weights laid out for reading. On a CPU a step of generation is as fast as its weights can be read.

A kernel is kept as a matrix (outputs, inputs), which a product with few rows reads row after row, as
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
            what is to be laid out has the axes (..., "outputs", "inputs") there.
    """

    def one(x, like, names):
        if names[-2:] != ("outputs", "inputs"):
            return x
        *lead, outputs, inputs = like.shape
        return x.reshape(*lead, inputs, outputs).swapaxes(-1, -2)

    return jax.tree.map(one, params, shapes, axes)
