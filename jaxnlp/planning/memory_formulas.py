"""Memory of training a Transformer, by the formulas of the papers: no model is built and nothing is compiled.

`planning/dry_run.py` counts what one experiment really keeps; these are what to hold it against.
"""

from jaxnlp.errors import UserError

STAGES = (0, 1, 2, 3)
RECOMPUTE = ("all", "selective", "full")


def zero_state_bytes(
    parameters: float, devices: int = 1, stage: int = 0, *, weight: int = 2, gradient: int = 2, optimizer: int = 12
) -> float:
    """Bytes on a device of parameters, gradients and optimizer state under ZeRO.

    Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1 and figure 1. Stage 1 splits the optimizer's state over
    the devices, 2 the gradients too, 3 the parameters too; 0 none.

    Args:
        parameters: how many. devices: that share a state. weight, gradient: bytes of one.
        optimizer: bytes for a parameter; mixed-precision Adam has 12: float32 weight, momentum and variance.

    Raises:
        UserError: a stage that is none of 0 to 3, or no device.
    """
    if stage not in STAGES:
        raise UserError(f"stage={stage!r}: expected one of {', '.join(map(str, STAGES))}")
    if devices < 1:
        raise UserError(f"devices={devices!r}: expected a positive number")
    split = lambda size, first: size / devices if stage >= first else size
    return parameters * (split(weight, 3) + split(gradient, 2) + split(optimizer, 1))


def layer_activation_bytes(
    length: int,
    batch: int,
    embed_dim: int,
    num_heads: int,
    *,
    recompute: str = "all",
    tensor: int = 1,
    sequence_parallel: bool = False,
) -> float:
    """Bytes of 16-bit activations that one layer keeps for its backward pass on a device.

    Korthikanti et al. 2022, arXiv:2205.05198, equations 1, 2 and 4, and table 2, for a layer with dropout and a
    feed-forward layer of 4 embed_dim. s length, b batch, h embed_dim, a num_heads, t tensor:

    - "all" is kept: sbh (34 + 5as/h); over tensor devices sbh (10 + 24/t + 5as/(ht)); with sequence
      parallelism sbh/t (34 + 5as/h).
    - "selective" computes attention's scores, softmax and dropout again: the same without 5as/h. Flash attention
      keeps as much.
    - "full" keeps the layer's input: 2sbh, also over tensor devices; 2sbh/t with sequence parallelism.

    Raises:
        UserError: another `recompute`, or a size below 1.
    """
    if recompute not in RECOMPUTE:
        raise UserError(f"recompute={recompute!r}: expected one of {', '.join(RECOMPUTE)}")
    sizes = {"length": length, "batch": batch, "embed_dim": embed_dim, "num_heads": num_heads, "tensor": tensor}
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}={size!r}: expected a positive number")
    residual = 1 / tensor if sequence_parallel else 1.0
    sbh = length * batch * embed_dim
    if recompute == "full":
        return 2 * sbh * residual
    scores = 5 * num_heads * length / embed_dim if recompute == "all" else 0.0
    return sbh * (10 * residual + (24 + scores) / tensor)


def activation_bytes(num_layers: int, *sizes: int, **how) -> float:
    """Bytes of all layers, without the first and last maps; arguments as `layer_activation_bytes`."""
    return num_layers * layer_activation_bytes(*sizes, **how)


def rule_of_thumb_bytes(num_layers: int, length: int, batch: int, embed_dim: int) -> float:
    """ZeRO's estimate of all activations: 12 x embed_dim x batch x length x num_layers numbers of 2 bytes.

    Rajbhandari et al. 2020, arXiv:1910.02054, section 3.2 and its footnote: 60 GB for the GPT-2 of 1.5B parameters at
    length 1024 and batch 32, about 8 GB with checkpointing, which keeps about the square root of that in layers.
    """
    return 2.0 * 12 * embed_dim * batch * length * num_layers
