"""Methods that choose a pair from a replay: MARS in its forms, and what users would do instead. No torch.

Each takes a `Replay` and returns a `Decision`; none looks at runs that judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from mars_core.rankbench.replay import Decision, Replay, lowest, steps_of
from mars_core.ranks import RankPair
from mars_core.search.choice import Choice
from mars_core.search.choose import Rule

Method = Callable[[Replay], Decision]
UNIFORM_RATE = 5e-3
"""What a user of these small models takes who does not search: one of the middle rates."""
HALVINGS = (1 / 8, 1 / 4, 1 / 2)
"""Shares of a full run after which successive halving drops half of what is left."""


def mars(replay: Replay) -> Decision:
    """The product: every pair and rate of the calibration, default margin."""
    return _decision(replay.choice, replay.calibration, RankPair(*replay.choice.pair))


def mars_without_margin(replay: Replay) -> Decision:
    """The same, the pair of the smallest expected regret whatever it costs."""
    best = replay.choice.preferred_over or replay.choice.pair
    return replace(_decision(replay.choice, replay.calibration, RankPair(*best)), choice=None)


def mars_one_rate(replay: Replay) -> Decision:
    """The product at one rate for all pairs."""
    return _mars(replay, _one_rate(replay))


def mars_both_adapted(replay: Replay) -> Decision:
    """The product without pairs that leave a module frozen."""
    return _mars(replay, _both_adapted(replay.calibration))


def paper(replay: Replay) -> Decision:
    """Algorithm 1 as printed: one rate, positive ranks."""
    return _mars(replay, _both_adapted(_one_rate(replay)), rule="paper")


def best_cell(replay: Replay) -> Decision:
    """The lowest loss of the same calibration, with its rate."""
    return _lowest(replay.calibration)


def best_pair_one_rate(replay: Replay) -> Decision:
    """The lowest loss at one rate."""
    return _lowest(_one_rate(replay))


def main_effects(replay: Replay) -> Decision:
    """Each module's rank by its mean over the other's, at the rate of the lowest mean over pairs."""
    table = _both_adapted(replay.calibration)
    last = table[table["step"] == table["step"].max()]
    rate = last.groupby("peak_lr")["val_loss"].mean().idxmin()
    at = last[last["peak_lr"] == rate]
    pair = RankPair(*(int(at.groupby(module)["val_loss"].mean().idxmin()) for module in ("r_me", "r_llm")))
    return Decision(pair, float(rate), steps_of(table))


def fixed(r_me: int, r_llm: int) -> Method:
    """A pair that a user names, its rate tuned."""

    def choose(replay: Replay) -> Decision:
        return _lowest(replay.of([RankPair(r_me, r_llm)]))

    return choose


def uniform_one_rate(replay: Replay) -> Decision:
    """Rank 8 in both modules at a rate nobody searched."""
    return Decision(RankPair(8, 8), UNIFORM_RATE, 0)


def frozen_tower(replay: Replay) -> Decision:
    """No adapters in the vision encoder: the largest LLM rank, its rate tuned."""
    return _lowest(replay.of([RankPair(0, max(replay.cell.ranks))]))


def largest(replay: Replay) -> Decision:
    """The largest pair, its rate tuned."""
    return _lowest(replay.of([RankPair(max(replay.cell.ranks), max(replay.cell.ranks))]))


def random_search(replay: Replay, *, share: float = 0.5, seed: int = 0) -> Decision:
    """The lowest loss of half of the calibration's runs, drawn at random."""
    names = np.unique(replay.calibration["run_id"])
    kept = np.random.default_rng([seed, *replay.seeds]).choice(names, max(1, round(share * len(names))), replace=False)
    return _lowest(replay.calibration[replay.calibration["run_id"].isin(kept)])


def successive_halving(replay: Replay) -> Decision:
    """Full runs of every pair and rate, half of them dropped by validation loss at each of `HALVINGS`."""
    full, horizon, spent = replay.full, int(replay.full["step"].max()), 0
    alive, before = list(full["run_id"].unique()), 0
    for share in (*HALVINGS, 1.0):
        step = int(horizon * share)
        spent += len(alive) * (step - before)
        before = step
        at = full[(full["step"] == step) & full["run_id"].isin(alive)].set_index("run_id")["val_loss"].sort_values()
        alive = list(at.index[: max(1, len(at) // 2)]) if share < 1 else list(at.index[:1])
    run = full[full["run_id"] == alive[0]].iloc[0]
    return Decision(RankPair(int(run["r_me"]), int(run["r_llm"])), float(run["peak_lr"]), spent, spent / horizon)


def naive_grid(replay: Replay) -> Decision:
    """Full runs of every pair and rate; the lowest validation loss."""
    found = _lowest(replay.full)
    return Decision(found.pair, found.rate, found.pair_steps, found.pair_steps / int(replay.full["step"].max()))


METHODS: Mapping[str, Method] = {
    "MARS": mars,
    "MARS, margin 0": mars_without_margin,
    "MARS, no module frozen": mars_both_adapted,
    "MARS, one rate": mars_one_rate,
    "MARS as printed": paper,
    "best cell of the same calibration": best_cell,
    "best pair at one rate": best_pair_one_rate,
    "main effects of the same calibration": main_effects,
    "uniform 4, rate tuned": fixed(4, 4),
    "uniform 8, rate tuned": fixed(8, 8),
    "uniform 16, rate tuned": fixed(16, 16),
    "fixed (4, 16), rate tuned": fixed(4, 16),
    "fixed (16, 4), rate tuned": fixed(16, 4),
    "frozen LLM, rate tuned": fixed(16, 0),
    "uniform 8, one rate": uniform_one_rate,
    "frozen vision encoder, rate tuned": frozen_tower,
    "largest, rate tuned": largest,
    "random search, half of the runs": random_search,
    "successive halving of full runs": successive_halving,
    "naive grid of full runs": naive_grid,
}


def _both_adapted(table: pd.DataFrame) -> pd.DataFrame:
    """Runs of pairs that freeze no module."""
    return table[(table["r_me"] > 0) & (table["r_llm"] > 0)]


def _one_rate(replay: Replay) -> pd.DataFrame:
    return replay.of(replay.cell.pairs, [UNIFORM_RATE])


def _lowest(table: pd.DataFrame) -> Decision:
    return Decision(*lowest(table), steps_of(table))


def _mars(replay: Replay, table: pd.DataFrame, rule: Rule = "mars") -> Decision:
    choice = replay.choose(table, rule)
    return replace(_decision(choice, table, RankPair(*choice.pair)), choice=None)


def _decision(choice: Choice, table: pd.DataFrame, pair: RankPair) -> Decision:
    return Decision(pair, _rate(choice, table, pair), steps_of(table), choice=choice)


def _rate(choice: Choice, table: pd.DataFrame, pair: RankPair) -> float:
    if choice.rates is None:
        return float(table["peak_lr"].iloc[0])
    return next(best.rate for best in choice.rates.pairs if best.pair == tuple(pair))
