"""The cells of RankBench: a backbone, a task, a dataset size. No torch.

Cells named `verdict` were fixed before any of them was trained. Defaults are set on the cells named `develop`; the
verdict cells are then evaluated once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mars_core.ranks import AlphaRule, RankPair

Backbone = Literal["even", "llm", "vision"]
Task = Literal["caption", "attribute", "choice", "detail"]
Role = Literal["develop", "verdict"]

BATCH = 8
RANKS = (1, 4, 8, 16)
MANY_RANKS = (1, 2, 3, 4, 6, 8, 12, 16)
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
MODULE_ALONE = (4, 16)
"""Ranks of a module whose partner has rank 0."""
RULES: dict[str, AlphaRule] = {"constant": 16.0, "2r": "2r"}
"""Alpha rules by name; 16 is alpha = 2 r at rank 8."""
CALIBRATION_SHARE = 4
"""A calibration has a fourth of the full run's steps."""


@dataclass(frozen=True)
class Cell:
    """samples: of the full run, each seen once. ranks: of either module; rank 0 comes beside them."""

    backbone: Backbone
    task: Task
    samples: int
    role: Role
    ranks: tuple[int, ...] = RANKS

    @property
    def name(self) -> str:
        """How it is called in files and on the command line."""
        many = "-64pairs" if self.ranks == MANY_RANKS else ""
        return f"{self.backbone}-{self.task}-{self.samples}{many}"

    @property
    def steps(self) -> int:
        """Optimizer steps of the full run."""
        return self.samples // BATCH

    @property
    def calibration_steps(self) -> int:
        """Optimizer steps of a calibration run."""
        return self.steps // CALIBRATION_SHARE

    @property
    def pairs(self) -> tuple[RankPair, ...]:
        """All pairs, those with a module at rank 0 last; (0, 0) is no fine-tuning and left out."""
        positive = [RankPair(a, b) for a in self.ranks for b in self.ranks]
        return (*positive, *(RankPair(0, r) for r in MODULE_ALONE), *(RankPair(r, 0) for r in MODULE_ALONE))

    @property
    def subset(self) -> tuple[RankPair, ...]:
        """Pairs that are trained at every rate to the end under both alpha rules: corners, middle, rank 0."""
        low, middle, high = self.ranks[0], self.ranks[len(self.ranks) // 2], self.ranks[-1]
        corners = [RankPair(low, low), RankPair(low, high), RankPair(high, low), RankPair(high, high)]
        return (*corners, RankPair(middle, middle), RankPair(0, high))


CELLS: tuple[Cell, ...] = (
    Cell("even", "detail", 512, "develop"),
    Cell("even", "attribute", 512, "verdict"),
    Cell("vision", "detail", 512, "verdict"),
    Cell("llm", "attribute", 512, "develop"),
    Cell("vision", "caption", 512, "develop"),
    Cell("llm", "caption", 512, "verdict"),
    Cell("llm", "detail", 1024, "verdict"),
    Cell("vision", "attribute", 1024, "develop"),
    Cell("even", "caption", 1024, "verdict"),
    Cell("even", "choice", 1024, "develop"),
    Cell("vision", "choice", 512, "verdict"),
    Cell("llm", "choice", 1024, "develop"),
    Cell("even", "detail", 512, "develop", MANY_RANKS),
)
"""In the order in which they are trained."""


def cell_named(name: str) -> Cell:
    """The cell of this name.

    Raises:
        ValueError: there is none.
    """
    found = {cell.name: cell for cell in CELLS}
    if name not in found:
        raise ValueError(f"RankBench has no cell {name!r}: it has {', '.join(found)}")
    return found[name]
