"""A true loss surface: a shape whose strength gives the spread that was drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planted.ground import LARGEST, Field, Floats, Grid, Pair, Strengthened, draw_ground
from planted.shapes import SHAPES

SMALLEST, FARTHEST = 16, 204_800  # unique samples between which a surface must behave
STEEPEST = 6.0  # largest loss at the smallest size, relative to that at 2,048 samples
STRENGTHS = (1e-7, 1e2)
TRIES = 1_000


@dataclass(frozen=True)
class Surface:
    """The true loss, annealed, in nats per answer token."""

    grid: Grid
    field: Field

    def losses(self, pairs: list[Pair] | tuple[Pair, ...], D: Floats | float) -> Floats:
        """Loss of each pair at each size (unique samples), shape (n_pairs, n_sizes)."""
        x, y = self.grid.place(np.array(pairs, dtype=np.float64))
        d = np.log(np.atleast_1d(np.asarray(D, dtype=np.float64)) / LARGEST)
        return np.asarray(self.field(x[:, None], y[:, None], d[None, :]))

    def spread(self, D: float = LARGEST) -> float:
        """Relative excess perplexity of the worst pair over the best one at this size."""
        losses = self.losses(self.grid.pairs, D)
        return float(np.expm1(losses.max() - losses.min()))


def draw_surface(rng: np.random.Generator, shape: str, grid: Grid) -> Surface:
    """A surface of this shape whose spread at 2,048 samples is drawn log-uniformly over 0.5% to 12%.

    What does not behave (see `behaves`) is drawn again; the spread is kept.
    """
    spread = float(np.exp(rng.uniform(np.log(0.005), np.log(0.12))))
    for _ in range(TRIES):
        ground = draw_ground(rng, exact=shape == "Eq. 1")
        surface = _with_spread(grid, SHAPES[shape](rng, ground, grid), spread)
        if behaves(surface):
            return surface
    raise RuntimeError(f"no surface of the shape {shape!r} with a spread of {spread:.1%} behaves on {grid}")


def behaves(surface: Surface) -> bool:
    """Whether every pair's loss is positive, falls with size, and is not absurdly high at the smallest size."""
    sizes = np.geomspace(SMALLEST, FARTHEST, 40)
    losses = surface.losses(surface.grid.pairs, sizes)
    steep = losses[:, 0] / surface.losses(surface.grid.pairs, LARGEST)[:, 0]
    return bool(losses.min() > 0 and (np.diff(losses, axis=1) < 0).all() and steep.max() <= STEEPEST)


def _with_spread(grid: Grid, shape: Strengthened, spread: float) -> Surface:
    """Halve the interval of log strengths until the spread is met; the weakest one where offsets alone exceed it."""
    low, high = np.log(STRENGTHS)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if Surface(grid, shape(np.exp(middle))).spread() < spread else (low, middle)
    return Surface(grid, shape(float(np.exp(low))))
