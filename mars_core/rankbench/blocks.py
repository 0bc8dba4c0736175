"""What is trained in a cell: blocks of runs, each one pack, each stored as a whole. No torch.

Calibrations (`calibration`) and full runs at every rate (`rates`) come first. From the latter follows the best rate of
each pair, at which the runs of `judge` are trained: other seeds, so that what a method selects on is never what it is
judged by. `stable` repeats a calibration under warmup-stable-decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mars_core.rankbench.cells import MANY_RANKS, RATES, RULES, Cell
from mars_core.ranks import RankPair

Kind = Literal["calibration", "rates", "judge", "stable"]

CALIBRATION_SEEDS: dict[str, tuple[int, ...]] = {"constant": (0, 1), "2r": (0,)}
RATES_SEED = 0
JUDGE_SEEDS: dict[str, tuple[int, ...]] = {"constant": (10, 11, 12, 13), "2r": (10, 11)}
"""By alpha rule: the rule that is not the default is measured more briefly."""
STABLE_CELLS = ("even-detail-512", "llm-attribute-512")


@dataclass(frozen=True)
class Block:
    """One pack of a cell. rule: alpha rule by name. seed: of initial weights and of the order of the data."""

    cell: Cell
    kind: Kind
    rule: str
    seed: int

    @property
    def name(self) -> str:
        """How its file is called."""
        return f"{self.kind}-{self.rule}-seed{self.seed}"

    @property
    def steps(self) -> int:
        """Steps of its runs, which their schedule spans."""
        return self.cell.calibration_steps if self.kind in ("calibration", "stable") else self.cell.steps

    @property
    def schedule(self) -> Literal["cosine", "warmup_stable_decay"]:
        """Learning-rate schedule of its runs."""
        return "warmup_stable_decay" if self.kind == "stable" else "cosine"

    @property
    def pairs(self) -> tuple[RankPair, ...]:
        """Pairs that are trained."""
        return self.cell.subset if self.kind == "rates" and self.rule != "constant" else self.cell.pairs

    @property
    def needed(self) -> bool:
        """Whether replay waits for it; the other alpha rule and schedule come after all cells have that."""
        return self.rule == "constant" and self.kind != "stable"

    @property
    def timed(self) -> bool:
        """Whether rewind times are measured: in the first runs that judge."""
        return self.kind == "judge" and self.seed == JUDGE_SEEDS[self.rule][0]


def blocks_of(cell: Cell) -> Iterator[Block]:
    """All blocks of a cell, in the order in which they are trained: what replay needs first."""
    if cell.ranks == MANY_RANKS:
        yield Block(cell, "calibration", "constant", CALIBRATION_SEEDS["constant"][0])
        yield from (Block(cell, "judge", "constant", seed) for seed in JUDGE_SEEDS["constant"])
        return
    for rule in RULES:
        yield Block(cell, "rates", rule, RATES_SEED)
        yield from (Block(cell, "calibration", rule, seed) for seed in CALIBRATION_SEEDS[rule])
        yield from (Block(cell, "judge", rule, seed) for seed in JUDGE_SEEDS[rule])
    if cell.name in STABLE_CELLS:
        yield from (Block(cell, "stable", "constant", seed) for seed in CALIBRATION_SEEDS["constant"])


def runs_of(block: Block, best: Mapping[RankPair, float]) -> list[tuple[RankPair, float]]:
    """Pair and peak rate of every run of a block.

    Args:
        best: best rate of each pair, used where the block is trained at best rates only.
    """
    if block.kind == "judge":
        return [(pair, best[pair]) for pair in block.pairs]
    rates: Sequence[float] = RATES if block.cell.ranks != MANY_RANKS else RATES[1:3]
    return [(pair, rate) for pair in block.pairs for rate in rates]
