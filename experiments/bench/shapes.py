"""Model shapes that the contenders share, and their FLOPs. Standard library only."""

SHAPES = {
    "baby": {"layers": 4, "heads": 4, "dim": 128, "length": 64, "batch": 12, "vocab": 65},
    "mid": {"layers": 6, "heads": 6, "dim": 384, "length": 256, "batch": 8, "vocab": 8192},
    "gpt2": {"layers": 12, "heads": 12, "dim": 768, "length": 1024, "batch": 1, "vocab": 50257},
    "bert": {"layers": 12, "heads": 12, "dim": 768, "length": 128, "batch": 8, "vocab": 30522},
}
PREDICTED = 20  # masked words of each 128 tokens of "bert", as BERT's own examples have


def train_flops(shape: dict[str, int]) -> float:
    """FLOPs of the matrix products of a training step. Attention is counted in full, not halved for the causal mask."""
    return 3.0 * (trunk_flops(shape) + shape["batch"] * shape["length"] * 2 * shape["dim"] * shape["vocab"])


def trunk_flops(shape: dict[str, int]) -> float:
    """FLOPs of the matrix products of a forward pass, without the output layer."""
    per_token = shape["layers"] * (24 * shape["dim"] ** 2 + 4 * shape["length"] * shape["dim"])
    return float(shape["batch"] * shape["length"] * per_token)


def masked_lm_flops(shape: dict[str, int], predicted: int) -> float:
    """FLOPs of the matrix products of a training step that predicts `predicted` positions of each sequence."""
    head = 2 * shape["dim"] * (shape["dim"] + shape["vocab"])
    return 3.0 * (trunk_flops(shape) + shape["batch"] * predicted * head)
