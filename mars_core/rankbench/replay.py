"""Calibrations of a cell as a method sees them, drawn from stored runs, and what it pays for them. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from mars_core.rankbench.cells import BATCH, Cell
from mars_core.ranks import RankPair
from mars_core.search.choice import Choice
from mars_core.search.choose import Rule, choose_ranks

BOOTSTRAP = 20
"""Draws of the laws' intervals: no decision depends on them."""
COLUMNS = ["r_me", "r_llm", "seed", "run_id", "step", "unique_samples", "val_loss", "lr", "peak_lr"]


@dataclass(frozen=True)
class Decision:
    """What a method came to.

    rate: None where the method says none, then the pair's best rate is taken. pair_steps: of all its calibration runs.
    full_runs: runs of full length it needed before the final one. choice: of MARS, with its predictions.
    """

    pair: RankPair
    rate: float | None
    pair_steps: int
    full_runs: float = 0.0
    choice: Choice | None = None


@dataclass(frozen=True, eq=False)
class Replay:
    """Stored runs of one cell, alpha rule and set of calibration seeds.

    rows: all stored rows of the cell. seeds: of calibration runs that a method may look at.
    """

    cell: Cell
    rows: pd.DataFrame
    rule: str
    seeds: tuple[int, ...]

    @cached_property
    def calibration(self) -> pd.DataFrame:
        """Checkpoints of calibration runs in the form that `choose_ranks` takes."""
        own = self.rows[(self.rows["kind"] == "calibration") & (self.rows["rule"] == self.rule)]
        return _as_metrics(own[own["seed"].isin(self.seeds)])

    @cached_property
    def full(self) -> pd.DataFrame:
        """Checkpoints of full runs at several rates, in the same form."""
        own = self.rows[(self.rows["kind"] == "rates") & (self.rows["rule"] == self.rule)]
        return _as_metrics(own)

    @cached_property
    def parameters(self) -> Mapping[RankPair, int]:
        """Trainable parameters of each pair."""
        one = self.rows.drop_duplicates(["r_me", "r_llm"])
        keys = zip(one["r_me"], one["r_llm"], one["trainable_parameters"], strict=True)
        return {RankPair(int(a), int(b)): int(count) for a, b, count in keys}

    @cached_property
    def choice(self) -> Choice:
        """What MARS chooses from the whole calibration; several forms of it are read off this one."""
        return self.choose(self.calibration)

    def choose(self, table: pd.DataFrame, rule: Rule = "mars") -> Choice:
        """What MARS chooses from a part of the calibration."""
        return choose_ranks(
            table,
            target_samples=float(self.cell.samples),
            trainable_parameters={(pair.r_me, pair.r_llm): count for pair, count in self.parameters.items()},
            reference=(8, 8),
            rule=rule,
            bootstrap=BOOTSTRAP,
        )

    @cached_property
    def rates(self) -> tuple[float, ...]:
        """Rates of the calibration, increasing."""
        return tuple(float(rate) for rate in np.unique(self.calibration["peak_lr"]))

    def of(self, pairs: Collection[RankPair], rates: Collection[float] | None = None) -> pd.DataFrame:
        """Calibration rows of these pairs, at these rates or at all."""
        table = self.calibration
        wanted = pd.Series(list(zip(table["r_me"], table["r_llm"], strict=True)), table.index).isin(set(pairs))
        return table[wanted & (True if rates is None else table["peak_lr"].isin(list(rates)))]


def steps_of(table: pd.DataFrame) -> int:
    """Pair-steps of the runs of a table."""
    return int(table.groupby("run_id")["step"].max().sum())


def lowest(table: pd.DataFrame) -> tuple[RankPair, float]:
    """Pair and rate of the lowest mean loss over seeds at the last step."""
    last = table[table["step"] == table["step"].max()]
    means = last.groupby(["r_me", "r_llm", "peak_lr"])["val_loss"].mean().reset_index()
    best = means.loc[means["val_loss"].idxmin()]
    return RankPair(int(best["r_me"]), int(best["r_llm"])), float(best["peak_lr"])


def _as_metrics(rows: pd.DataFrame) -> pd.DataFrame:
    names = [
        f"{a}-{b}-{rate:.3g}-{seed}"
        for a, b, rate, seed in zip(rows["r_me"], rows["r_llm"], rows["peak_lr"], rows["seed"], strict=True)
    ]
    return rows.assign(run_id=names, unique_samples=rows["step"] * BATCH)[COLUMNS]
