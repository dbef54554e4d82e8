"""Memory formulas for Transformer training from the literature. No model is built and nothing is compiled.

They are a reference for `planning/dry_run.py`, which counts the actual memory of an experiment.
"""

from jaxnlp.errors import UserError

STAGES = (0, 1, 2, 3)
RECOMPUTE = ("all", "selective", "full")


def zero_state_bytes(
    parameters: float, devices: int = 1, stage: int = 0, *, weight: int = 2, gradient: int = 2, optimizer: int = 12
) -> float:
    """Bytes per device of parameters, gradients and optimizer state under ZeRO.

    Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1 and figure 1. Stage 0 shards nothing, stage 1 the optimizer
    state, stage 2 also the gradients, stage 3 also the parameters.

    Args:
        parameters: number of parameters. devices: number of devices that shard the state.
        weight, gradient: bytes of one parameter and of one gradient.
        optimizer: bytes of optimizer state per parameter; mixed-precision Adam has 12: float32 weight, momentum and
            variance.

    Raises:
        UserError: `stage` is not 0 to 3, or `devices` is below 1.
    """
    if stage not in STAGES:
        raise UserError(f"stage={stage!r}: expected one of {', '.join(map(str, STAGES))}")
    if devices < 1:
        raise UserError(f"devices={devices!r}: expected a positive number")
    shard = lambda size, min_stage: size / devices if stage >= min_stage else size
    return parameters * (shard(weight, 3) + shard(gradient, 2) + shard(optimizer, 1))


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
    """Bytes per device of the 16-bit activations that one layer saves for its backward pass.

    Korthikanti et al. 2022, arXiv:2205.05198, equations 1, 2 and 4, and table 2, for a layer with dropout and a
    feed-forward layer of 4 embed_dim. s length, b batch, h embed_dim, a num_heads, t tensor:

    - "all" saves every activation: sbh (34 + 5as/h); with tensor parallelism sbh (10 + 24/t + 5as/(ht)); with
      sequence parallelism sbh/t (34 + 5as/h).
    - "selective" recomputes the attention scores, softmax and dropout: the same without the 5as/h term. Flash
      attention saves the same amount.
    - "full" saves only the layer's input: 2sbh, also with tensor parallelism; 2sbh/t with sequence parallelism.

    Raises:
        UserError: `recompute` is unknown, or a size is below 1.
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
    """Activation bytes of all layers, without embedding and output layer; arguments as `layer_activation_bytes`."""
    return num_layers * layer_activation_bytes(*sizes, **how)


def rule_of_thumb_bytes(num_layers: int, length: int, batch: int, embed_dim: int) -> float:
    """ZeRO's estimate of all activations: 12 x embed_dim x batch x length x num_layers values of 2 bytes.

    Rajbhandari et al. 2020, arXiv:1910.02054, section 3.2 and its footnote: 60 GB for GPT-2 with 1.5B parameters at
    length 1024 and batch 32; about 8 GB with checkpointing, which saves about the square root of the activations.
    """
    return 2.0 * 12 * embed_dim * batch * length * num_layers
