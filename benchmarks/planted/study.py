"""A planted study: calibration metrics as a real one has them, and the truth behind them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from mars_core.convergence import reference_pair
from planted.ground import LARGEST, Floats, Grid, Pair
from planted.noise import Noise, draw_noise
from planted.schedule import SIZES, STEPS, Gap, constant_curves, draw_gap, recorded_rates, scheduled_curves
from planted.shapes import SHAPES
from planted.surface import Surface, draw_surface

USUAL = (8, 16, 32, 64)
UNUSUAL = (
    Grid((16, 64), (16, 64)),
    Grid((8, 16, 32), (8, 16, 32)),
    Grid((4, 8, 16, 32, 64), (4, 8, 16, 32, 64)),
    Grid((2, 4, 8, 16, 32, 64), (2, 4, 8, 16, 32, 64)),
    Grid((1, 16, 256), (4, 8, 64)),
    Grid(USUAL, USUAL, ((64, 64),)),
    Grid(USUAL, USUAL, ((64, 64),)),
)
TARGETS = (LARGEST, 16_384, 157_712)  # unique samples
FARTHEST = 204_800
PER_RANK = (80_000, 170_000)  # trainable parameters per unit of vision rank and of LLM rank


@dataclass(frozen=True, eq=False)
class Study:
    """A calibration and its truth.

    metrics: one row per run and checkpoint: r_me, r_llm, seed, run_id, step, unique_samples, val_loss (nats per answer
    token), lr. targets: sizes to choose for, unique samples. per_rank: trainable parameters per unit of vision rank and
    of LLM rank. scheduled: under a learning-rate schedule, else at a constant rate. gap: of the schedule, if any.
    """

    number: int
    shape: str
    scheduled: bool
    n_seeds: int
    noise: Noise
    gap: Gap | None
    surface: Surface
    per_rank: tuple[int, int]
    targets: tuple[int, ...]
    metrics: pd.DataFrame

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Pairs (r_me, r_llm) that have runs."""
        return self.surface.grid.pairs

    @property
    def reference(self) -> Pair:
        """The uniform pair closest to the lower middle of the grid; the lower middle where no pair is uniform."""
        middle = reference_pair(self.pairs)
        uniform = [pair for pair in self.pairs if pair[0] == pair[1]] or [middle]
        return min(uniform, key=partial(_distance, middle))

    def truth(self, pair: Pair, D: float) -> float:
        """The true loss of a pair at a size (unique samples), annealed."""
        return float(self.surface.losses((pair,), D)[0, 0])

    def further_seed(self, seed: int) -> pd.DataFrame:
        """The rows of every pair with a seed that the calibration does not have, of the same noise."""
        rng = np.random.default_rng([self.number, 97, seed])
        curves = _curves(self.surface, self.gap)
        rows = _metrics(self.pairs, _observed(curves, self.noise, rng, 1), recorded_rates(self.scheduled))
        pairs = zip(rows["r_me"], rows["r_llm"], strict=True)
        return rows.assign(seed=seed, run_id=[f"r{r_me}-{r_llm}-s{seed}" for r_me, r_llm in pairs])

    def count(self, pair: Pair) -> int:
        """Trainable parameters of a pair."""
        return self.per_rank[0] * pair[0] + self.per_rank[1] * pair[1]


def make_study(number: int, shape: str | None = None) -> Study:
    """The study of this number; every second one is under a schedule. Without a shape, the shapes take turns."""
    name = list(SHAPES)[number // 2 % len(SHAPES)] if shape is None else shape
    design, surfaces, noises = (np.random.default_rng([number, list(SHAPES).index(name), part]) for part in range(3))
    scheduled = number % 2 == 1
    grid, n_seeds, noise, gap = _grid(design), 1 if design.random() < 2 / 3 else 3, draw_noise(design), draw_gap(design)
    per_me = round(PER_RANK[0] * np.exp(design.uniform(np.log(0.3), np.log(6.0))))
    targets = (*TARGETS, FARTHEST) if design.random() < 1 / 3 else TARGETS
    surface = draw_surface(surfaces, name, grid)
    kept = gap if scheduled else None
    observed = _observed(_curves(surface, kept), noise, noises, n_seeds)
    metrics = _metrics(grid.pairs, observed, recorded_rates(scheduled))
    return Study(number, name, scheduled, n_seeds, noise, kept, surface, (per_me, PER_RANK[1]), targets, metrics)


def _curves(surface: Surface, gap: Gap | None) -> Floats:
    """True losses at the checkpoints, (n_pairs, n_checkpoints); without a gap at a constant rate."""
    pairs = surface.grid.pairs
    return constant_curves(surface, pairs) if gap is None else scheduled_curves(surface, pairs, gap)


def _observed(curves: Floats, noise: Noise, rng: np.random.Generator, n_seeds: int) -> Floats:
    """Losses with noise, (n_pairs, n_seeds, n_checkpoints)."""
    return np.asarray(curves[:, None, :] * np.exp(noise.sample(rng, len(curves), n_seeds)))


def _grid(rng: np.random.Generator) -> Grid:
    """Mostly 4 by 4."""
    other = UNUSUAL[rng.integers(len(UNUSUAL))]
    return Grid(USUAL, USUAL) if rng.random() < 0.55 else other


def _metrics(pairs: tuple[Pair, ...], losses: Floats, rates: Floats) -> pd.DataFrame:
    """The rows of a calibration; `losses` has the shape (n_pairs, n_seeds, n_checkpoints)."""
    pair, seed, checkpoint = (index.ravel() for index in np.indices(losses.shape))
    ranks = np.array(pairs)[pair]
    return pd.DataFrame(
        {
            "r_me": ranks[:, 0],
            "r_llm": ranks[:, 1],
            "seed": seed,
            "run_id": [f"r{r_me}-{r_llm}-s{s}" for (r_me, r_llm), s in zip(ranks, seed, strict=True)],
            "step": STEPS[checkpoint],
            "unique_samples": SIZES[checkpoint],
            "val_loss": losses.ravel(),
            "lr": rates[checkpoint],
        }
    )


def _distance(one: Pair, other: Pair) -> float:
    return float(np.abs(np.log(one) - np.log(other)).sum())
