"""What a learning-rate schedule does to the curve of one run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mars_core.training.schedule import geometric_steps
from planted.ground import Floats, Grid, Pair
from planted.surface import Surface

BATCH = 8  # samples of an optimizer step
HORIZON = 256  # optimizer steps of a calibration run
STEPS = np.array(geometric_steps(8, HORIZON, per_doubling=2))
SIZES = BATCH * STEPS  # unique samples at the checkpoints
PEAK = 2e-3  # learning rate
WARMUP = 0.1  # share of the horizon


@dataclass(frozen=True)
class Gap:
    """By how much a run that is not annealed lies above an annealed one, at the peak rate, as a share of the loss.

    tilt: how much larger it is at the highest ranks and smaller at the lowest. vision: the vision rank's part of that.
    """

    share: float
    tilt: float
    vision: float

    def of(self, grid: Grid, pairs: tuple[Pair, ...]) -> Floats:
        """Share per pair."""
        x, y = grid.place(np.array(pairs, dtype=np.float64))
        return np.asarray(self.share * (1 + self.tilt * (self.vision * x + (1 - self.vision) * y)))


def draw_gap(rng: np.random.Generator) -> Gap:
    """1% to 6%; in half of the studies it depends on the ranks."""
    return Gap(rng.uniform(0.01, 0.06), 0.2 if rng.random() < 0.5 else 0.0, rng.random())


def relative_rates() -> Floats:
    """Rate of every optimizer step relative to the peak: linear warm-up, then a cosine to zero."""
    step, warmup = np.arange(HORIZON), round(WARMUP * HORIZON)
    cosine = 0.5 * (1 + np.cos(np.pi * (step - warmup) / (HORIZON - warmup)))
    return np.asarray(np.where(step < warmup, step / warmup, cosine))


def moved_samples() -> Floats:
    """Samples' worth of movement at each checkpoint: the sum of the rates, scaled so that the last is all samples.

    At most the samples that were seen: around its peak a run moves more than a step's worth per step, but it learns no
    more than its samples hold.
    """
    moved = np.cumsum(relative_rates())
    return np.asarray(np.minimum(SIZES, SIZES[-1] * moved[STEPS - 1] / moved[-1]))


def constant_curves(surface: Surface, pairs: tuple[Pair, ...]) -> Floats:
    """Losses at the checkpoints under a constant rate, shape (n_pairs, n_checkpoints): the surface itself."""
    return surface.losses(pairs, SIZES)


def scheduled_curves(surface: Surface, pairs: tuple[Pair, ...], gap: Gap) -> Floats:
    """Losses at the checkpoints under the schedule; at the last one a run is annealed and lies on the surface."""
    now = relative_rates()[STEPS - 1]
    not_annealed = gap.of(surface.grid, pairs)[:, None] * (now - now[-1])
    return np.asarray(surface.losses(pairs, moved_samples()) * (1 + not_annealed))


def recorded_rates(scheduled: bool) -> Floats:
    """Learning rate at each checkpoint, as a calibration records it."""
    return PEAK * (relative_rates()[STEPS - 1] if scheduled else np.ones(len(STEPS)))
