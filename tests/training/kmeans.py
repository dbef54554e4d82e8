"""k-means in a run folder: `python -m tests.training.kmeans WORKDIR NUM_STEPS`. A loop without gradients, in NumPy."""

import sys

import numpy as np

from jaxnlp.training.run_folder.run_folder import RunFolder


def points() -> np.ndarray:
    """(N, D) points around eight corners."""
    random = np.random.default_rng(0)
    corners = random.normal(size=(8, 3)) * 5
    return np.concatenate([corner + random.normal(size=(40, 3)) for corner in corners])


def update(points_ND: np.ndarray, centers_KD: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """One step over half of the points: moves centers half-way to the means of their points; also the mean cost."""
    half_MD = np.random.default_rng(seed).permutation(points_ND)[: len(points_ND) // 2]
    squares_MK = np.square(half_MD[:, None] - centers_KD).sum(-1)
    nearest_M = squares_MK.argmin(1)
    means_KD = [half_MD[nearest_M == k].mean(0) if (nearest_M == k).any() else centers_KD[k] for k in range(8)]
    return (centers_KD + np.stack(means_KD)) / 2, float(squares_MK.min(1).mean())


def main(workdir: str, num_steps: int) -> None:
    points_ND = points()
    with RunFolder(workdir) as run:
        centers_KD = run.restore({"centers": points_ND[:8]})["centers"]
        run.start(num_steps, log_every=1, status="clustering ...")
        for step in run.steps():
            centers_KD, cost = update(points_ND, centers_KD, seed=step)
            run.log({"cost": cost})
            if run.due(20):
                run.save({"centers": centers_KD})
        run.save({"centers": centers_KD})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
