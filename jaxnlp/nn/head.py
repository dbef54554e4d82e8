"""The base class of task heads; `models/heads.py` has the heads and the model that they are a part of.

Shape legend: B batch, C sequences of an example, T length, D model.
"""

from typing import ClassVar

import jax

from jaxnlp.nn.linear import Linear


class Head:
    """Base class of the heads: one linear map of the body's states.

    of_tokens: the head reads the state of every token; False: one state for each sequence.
    use_bias: whether the linear map has a bias. features: size of its output.
    num_classes: number of classes of the task; None: the task has no classes.
    """

    of_tokens: ClassVar[bool] = False
    use_bias: ClassVar[bool] = True
    num_classes: int | None = None

    @property
    def features(self) -> int:
        return self.num_classes or 1

    def logits(self, states: jax.Array, linear: Linear) -> jax.Array:
        """The head's logits from the states: (B, T, D) of tokens, or (B, C, D) of sequences."""
        return linear(states)
