"""What every shape stands on: the loss without any effect of the ranks, and the coordinates of a grid.

| symbol | meaning |
|---|---|
| x, y | log vision rank and log LLM rank, -1 at the smallest and 1 at the largest rank of the grid |
| d | log(D / 2,048), D in unique training samples |
| t | strength of the effect of the ranks, found so that the surface has the spread that was drawn |

Losses are in nats per answer token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Pair = tuple[int, int]
Field = Callable[[Floats, Floats, Floats], Floats]
OfSize = Callable[[Floats], Floats]
Strengthened = Callable[[float], Field]

LARGEST = 2_048  # unique samples of a full calibration run


@dataclass(frozen=True)
class Grid:
    """Ranks of a calibration; `diverged` are pairs whose runs are missing."""

    ranks_me: tuple[int, ...]
    ranks_llm: tuple[int, ...]
    diverged: tuple[Pair, ...] = ()

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Pairs that have runs."""
        every = ((r_me, r_llm) for r_me in self.ranks_me for r_llm in self.ranks_llm)
        return tuple(pair for pair in every if pair not in self.diverged)

    def place(self, pairs: Floats) -> tuple[Floats, Floats]:
        """x and y of pairs, shape (n, 2)."""
        ends = np.log([[ranks[0], ranks[-1]] for ranks in (self.ranks_me, self.ranks_llm)])
        x, y = (2 * np.log(pairs) - ends.sum(axis=1)).T / (ends[:, 1] - ends[:, 0])[:, None]
        return x, y


@dataclass(frozen=True)
class Ground:
    """Loss as a function of size alone: reducible * ((D + delay) / (2,048 + delay))^-beta + floor.

    reducible: nats at 2,048 samples. floor: nats. delay: samples before the power law sets in. onset: samples
    until the ranks matter half as much as later; adapters start at zero, so they matter little at first.
    """

    reducible: float
    floor: float
    beta: float
    delay: float
    onset: float

    def common(self, d: Floats) -> Floats:
        """Loss without an effect of the ranks."""
        grown = (LARGEST * np.exp(d) + self.delay) / (LARGEST + self.delay)
        return np.asarray(self.reducible * grown**-self.beta + self.floor)

    def grown(self, d: Floats) -> Floats:
        """Share of the rank effect that has set in."""
        D = LARGEST * np.exp(d)
        return np.asarray(D / (D + self.onset))

    def on_top(self, effect: Field) -> Strengthened:
        """The effect of the ranks, times a strength, on top of the common loss."""

        def strengthened(t: float) -> Field:
            return lambda x, y, d: np.asarray(self.common(d) + t * self.grown(d) * effect(x, y, d))

        return strengthened

    def fading(self, rng: np.random.Generator) -> OfSize:
        """How a part of the effect goes with size: it stays, shrinks like the loss, in between, or grows a little."""
        rates = (0.0, self.beta, rng.uniform(0.0, self.beta), -rng.uniform(0.0, 0.1))
        rate = rates[rng.integers(len(rates))]
        return lambda d: np.asarray(np.exp(-rate * d))


def draw_ground(rng: np.random.Generator, *, exact: bool) -> Ground:
    """A loss of 0.4 to 3 nats at 2,048 samples; `exact`: a pure power law in which the ranks matter at once."""
    level = float(np.exp(rng.uniform(np.log(0.4), np.log(3.0))))
    share = 0.0 if rng.random() < 0.15 else rng.uniform(0.2, 0.95)
    delay = 0.0 if rng.random() < 0.5 else rng.uniform(20.0, 300.0)
    onset = 0.0 if rng.random() < 0.5 else rng.uniform(20.0, 400.0)
    if exact:
        delay = onset = 0.0
    return Ground(level * (1 - share), level * share, rng.uniform(0.15, 0.6), delay, onset)
