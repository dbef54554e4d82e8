"""Recurrent networks: stacks of LSTM or GRU layers, in one direction or both, exact under padding.

A cell is a small config object. `Recurrent` runs a stack of layers over a sequence; `RecurrentLayer` is one layer in
one direction, for models that stack layers in another way. The products with the input are one product for all steps;
only the recurrence is scanned.
Shape legend: B batch, T length, D input features, G gates, H hidden units, P features of the output
(H, or an LSTM's projection).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn import checks
from jaxnlp.nn.linear import Linear, matmul
from jaxnlp.nn.partitioning import parameter
from jaxnlp.nn.policy import Policy

AXES = ("embed", "gates", "mlp")


class Cell:
    """Base class of the cells. Subclasses define `start` and `step`.

    gates: number of gates. hidden_bias: whether the product with the hidden state has a bias of its own.
    projection_dim: size of the output, if it is projected; None: no projection.
    """

    gates: ClassVar[int]
    hidden_bias: ClassVar[bool] = False
    projection_dim: int | None = None

    def outputs(self, features: int) -> int:
        """Size of the output of a layer of `features` hidden units."""
        return features

    def bias_init(self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        """The initial bias of the gates (G, H)."""
        return jnp.zeros(shape, dtype)

    def start(self, batch: int, features: int) -> tuple[jax.Array, ...]:
        """The zero state, whose last array is the output h."""
        raise TypeError(f"{type(self).__name__}: a cell must define start()")

    def step(self, state: Any, x_BGH: jax.Array, hidden: Callable, project: Callable) -> tuple[jax.Array, ...]:
        """The next state. x_BGH: W x + b. hidden: h -> U h, with its bias. project: h -> V h."""
        raise TypeError(f"{type(self).__name__}: a cell must define step()")


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class LSTM(Cell):
    """Long short-term memory with forget gate (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

    i, f, o = sigmoid(W x + U h + b), g = tanh(...), c' = f c + i g, h' = o tanh(c').
    forget_bias: initial bias of the forget gate (Jozefowicz et al. 2015, section 5).
    projection_dim: size of h' = V (o tanh(c')) (Sak et al. 2014, arXiv:1402.1128); None: no projection.
    cell_clip, projection_clip: clip c' and the projection to +-clip, as ELMo does; None: no clipping.
    """

    gates = 4
    hidden_bias = False
    forget_bias: float = 1.0
    projection_dim: int | None = None
    cell_clip: float | None = None
    projection_clip: float | None = None

    def check(self) -> None:
        if self.projection_dim is not None and self.projection_dim < 1:
            raise FieldError("projection_dim", self.projection_dim, "expected a positive number of features, or None")
        checks.above_zero(self, "3.0", "cell_clip", "projection_clip")
        if self.projection_clip is not None and self.projection_dim is None:
            raise FieldError(
                "projection_clip", self.projection_clip, "expected None without a projection; set projection_dim"
            )

    def outputs(self, features: int) -> int:
        return self.projection_dim or features

    def bias_init(self, key, shape, dtype):
        """Zeros, with `forget_bias` in the forget gate; shape (4, H), gates in the order i, f, g, o."""
        return jnp.zeros(shape, dtype).at[1].set(self.forget_bias)

    def start(self, batch: int, features: int) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros((batch, features)), jnp.zeros((batch, self.outputs(features)))

    def step(self, state, x_BGH, hidden, project):
        """The next (c, h). x_BGH: W x + b. hidden: h -> U h. project: h -> V h."""
        c, h = state
        i, f, g, o = jnp.moveaxis(x_BGH + hidden(h), 1, 0)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        if self.cell_clip is not None:
            c = jnp.clip(c, -self.cell_clip, self.cell_clip)
        h = project(jax.nn.sigmoid(o) * jnp.tanh(c))
        if self.projection_clip is not None:
            h = jnp.clip(h, -self.projection_clip, self.projection_clip)
        return c, h


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class GRU(Cell):
    """Gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), with the reset gate after the product as in cuDNN.

    r, z = sigmoid(W x + U h + b), n = tanh(W x + b + r (U h + b')), h' = (1 - z) n + z h.
    """

    gates = 3
    hidden_bias = True

    def start(self, batch: int, features: int) -> tuple[jax.Array]:
        return (jnp.zeros((batch, features)),)

    def step(self, state, x_BGH, hidden, project):
        """The next (h,). x_BGH: W x + b. hidden: h -> U h + b'. project: unused."""
        (h,) = state
        x_r, x_z, x_n = jnp.moveaxis(x_BGH, 1, 0)
        h_r, h_z, h_n = jnp.moveaxis(hidden(h), 1, 0)
        z = jax.nn.sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n)
        return ((1 - z) * n + z * h,)


class Recurrent(nn.Module):
    """A stack of recurrent layers.

    bidirectional: each layer runs in both directions, and its output is both outputs concatenated.
    dropout_rate: of the input of each layer but the first.
    Parameters: `layer_i` and, if bidirectional, `layer_i_reverse`, each with `input` (D, G, H), `bias` (G, H) and
    `hidden` (P, G, H); a GRU also has `hidden_bias` (G, H), and a projection `projection` (H, P).
    """

    cell: Cell
    features: int
    policy: Policy
    num_layers: int = 1
    bidirectional: bool = False
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x_BTD, mask_BT=None, states=None, *, deterministic: bool = True):
        """Returns (outputs_BTP, states).

        Args:
            mask_BT: True on real tokens; or integer segment ids, 0 on padding. A new segment id begins a new
                sequence, from the zero state. At padding the state is unchanged and the output is zero, so the
                result for a sequence does not depend on where the padding is. None: no padding.
            states: initial states, in the form of the returned ones: one tuple (c, h) or (h,) for each layer and
                direction, forward first. None: zeros.

        Returns:
            outputs_BTP: outputs of the last layer (2P if bidirectional), in the compute dtype.
            states: states after the last real token in each direction, float32.

        Raises:
            UserError: `states` does not have one entry for each layer and direction.
        """
        ways = ("", "_reverse") if self.bidirectional else ("",)
        if states is not None and len(states) != self.num_layers * len(ways):
            raise UserError(
                f"recurrent states: got {len(states)}, expected {self.num_layers * len(ways)}: "
                f"num_layers={self.num_layers} times {len(ways)} directions"
            )
        final = []
        for i in range(self.num_layers):
            outputs = []
            for way in ways:
                layer = RecurrentLayer(self.cell, self.features, bool(way), self.policy, name=f"layer_{i}{way}")
                y_BTP, state = layer(x_BTD, mask_BT, None if states is None else states[len(final)])
                outputs.append(y_BTP)
                final.append(state)
            x_BTD = jnp.concatenate(outputs, axis=-1)
            if i < self.num_layers - 1:
                x_BTD = nn.Dropout(self.dropout_rate)(x_BTD, deterministic=deterministic)
        return x_BTD, final


class RecurrentLayer(nn.Module):
    """One layer in one direction: (x_BTD, mask_BT, state or None) -> (outputs_BTP, state), as in `Recurrent`.

    reverse: scan from the last token to the first; the outputs keep the order of the tokens.
    """

    cell: Cell
    features: int
    reverse: bool
    policy: Policy

    @nn.compact
    def __call__(self, x_BTD, mask_BT, state):
        cell, policy, H = self.cell, self.policy, self.features
        B, P, shape = x_BTD.shape[0], cell.outputs(H), (cell.gates, H)
        param = lambda name, init, axes, shape: parameter(self, name, init, axes, shape, policy.param_dtype)
        x_BTGH = Linear(
            shape,
            AXES,
            policy,
            use_bias=False,
            kernel_init=nn.initializers.glorot_uniform(in_axis=0, out_axis=(1, 2)),
            dtype="float32",
            name="input",
        )(x_BTD)
        x_BTGH = x_BTGH + param("bias", cell.bias_init, AXES[1:], shape).astype(jnp.float32)
        U = param("hidden", nn.initializers.orthogonal(), AXES, (P, *shape)).reshape(P, -1)
        b = param("hidden_bias", nn.initializers.zeros, AXES[1:], shape).reshape(-1) if cell.hidden_bias else 0.0
        V = None
        if cell.projection_dim is not None:
            V = param("projection", nn.initializers.glorot_uniform(), ("mlp", "embed"), (H, P))
        hidden = lambda h_BP: (matmul(h_BP, U, policy) + b).reshape(B, *shape)
        project = lambda h_BH: h_BH if V is None else matmul(h_BH, V, policy)

        def step(carry, inputs):
            (state, segment_B), (x_BGH, mask_B) = carry, inputs
            if mask_B is None:
                new = cell.step(state, x_BGH, hidden, project)
                return (new, segment_B), new[-1]
            real_B = mask_B != 0
            begins_B = real_B & (segment_B != 0) & (segment_B != mask_B)
            state = tuple(jnp.where(begins_B[:, None], 0.0, x) for x in state)
            new = cell.step(state, x_BGH, hidden, project)
            next_state = tuple(jnp.where(real_B[:, None], a, b) for a, b in zip(new, state, strict=True))
            return (next_state, jnp.where(real_B, mask_B, segment_B)), jnp.where(real_B[:, None], new[-1], 0.0)

        mask_TB = None if mask_BT is None else jnp.moveaxis(jnp.asarray(mask_BT, jnp.int32), 1, 0)
        start = cell.start(B, H) if state is None else jax.tree.map(lambda x: x.astype(jnp.float32), tuple(state))
        # The carry holds the segment of the last real token.
        inputs, carry = (jnp.moveaxis(x_BTGH, 1, 0), mask_TB), (start, jnp.zeros(B, jnp.int32))
        (state, _), y_TBP = jax.lax.scan(step, carry, inputs, reverse=self.reverse)
        return jnp.moveaxis(y_TBP, 0, 1).astype(policy.dtype), state
