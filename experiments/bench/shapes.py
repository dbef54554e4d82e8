"""Shapes that the contenders share, and what a training step of them costs. Standard library only."""

SHAPES = {
    "baby": {"layers": 4, "heads": 4, "dim": 128, "length": 64, "batch": 12, "vocab": 65},
    "mid": {"layers": 6, "heads": 6, "dim": 384, "length": 256, "batch": 8, "vocab": 8192},
    "gpt2": {"layers": 12, "heads": 12, "dim": 768, "length": 1024, "batch": 1, "vocab": 50257},
}


def train_flops(shape: dict[str, int]) -> float:
    """Matrix-product operations of a training step, attention counted in full."""
    per_token = (
        shape["layers"] * (24 * shape["dim"] ** 2 + 4 * shape["length"] * shape["dim"])
        + 2 * shape["dim"] * shape["vocab"]
    )
    return 3.0 * shape["batch"] * shape["length"] * per_token
