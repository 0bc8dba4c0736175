"""Noise of a calibration's losses: of a run, of its checkpoints, and common to the runs of a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planted.ground import Floats
from planted.schedule import SIZES

SCALES = (0.002, 0.005, 0.01)
COMMON = 0.003


@dataclass(frozen=True)
class Noise:
    """Standard deviations as shares of the loss.

    run: of a run's level. checkpoint: of a checkpoint of a run, `correlation` with the one before. common: of what all
    runs of a seed share at a checkpoint. smallest: factor on the last two at the smallest size, falling to 1.
    """

    run: float
    checkpoint: float
    correlation: float
    common: float = COMMON
    smallest: float = 1.0

    def sample(self, rng: np.random.Generator, n_pairs: int, n_seeds: int) -> Floats:
        """Noise to add to log losses, shape (n_pairs, n_seeds, n_checkpoints)."""
        n = len(SIZES)
        level = self.run * rng.standard_normal((n_pairs, n_seeds, 1))
        own = self.checkpoint * _autoregressive(rng.standard_normal((n_pairs, n_seeds, n)), self.correlation)
        shared = self.common * rng.standard_normal((1, n_seeds, n))
        return level + (own + shared) * self._factor()

    def _factor(self) -> Floats:
        along = np.log(SIZES[-1] / SIZES) / np.log(SIZES[-1] / SIZES[0])
        return np.asarray(self.smallest**along)


def draw_noise(rng: np.random.Generator) -> Noise:
    """Sizes are drawn apart; a third of the studies has more noise at small sizes."""
    run, checkpoint = rng.choice(SCALES, 2)
    smallest = 3.0 if rng.random() < 1 / 3 else 1.0
    return Noise(float(run), float(checkpoint), rng.uniform(0.3, 0.8), smallest=smallest)


def _autoregressive(innovations: Floats, correlation: float) -> Floats:
    """Stationary AR(1) with variance 1 along the last axis."""
    noise = innovations.copy()
    for i in range(1, noise.shape[-1]):
        noise[..., i] = correlation * noise[..., i - 1] + np.sqrt(1 - correlation**2) * innovations[..., i]
    return noise
