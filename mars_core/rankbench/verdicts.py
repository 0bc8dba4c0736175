"""Every method on every cell: regret and cost, and tables of them. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from mars_core.rankbench.blocks import CALIBRATION_SEEDS
from mars_core.rankbench.cells import MANY_RANKS, RULES, Cell
from mars_core.rankbench.methods import METHODS
from mars_core.rankbench.replay import Replay
from mars_core.rankbench.truth import Truth, main_effect, truth_of

SEED_SETS = {rule: tuple((seed,) for seed in seeds) for rule, seeds in CALIBRATION_SEEDS.items()}


def is_whole(cell: Cell, rows: pd.DataFrame, rule: str) -> bool:
    """Whether all that replay needs of a cell and rule is stored."""
    if rows.empty or cell.ranks == MANY_RANKS:
        return False
    own = rows[rows["rule"] == rule]
    return {"calibration", "rates", "judge"} <= set(own["kind"]) and set(CALIBRATION_SEEDS[rule]) <= set(
        own.loc[own["kind"] == "calibration", "seed"]
    )


def _truths(cell: Cell, rows: pd.DataFrame) -> Iterator[tuple[str, Truth]]:
    """The truth under every alpha rule of which all is stored."""
    return ((rule, truth_of(rows, rule)) for rule in RULES if is_whole(cell, rows, rule))


def replay_cell(cell: Cell, rows: pd.DataFrame) -> list[dict[str, object]]:
    """One record per alpha rule, calibration seed and method: what it chose, its regret and its cost."""
    found: list[dict[str, object]] = []
    for rule, truth in _truths(cell, rows):
        for seeds in SEED_SETS[rule]:
            replay = Replay(cell, rows, rule, seeds)
            found += [_record(replay, truth, name) for name in METHODS]
    return found


def _record(replay: Replay, truth: Truth, name: str) -> dict[str, object]:
    decision = METHODS[name](replay)
    return {
        "cell": replay.cell.name,
        "role": replay.cell.role,
        "rule": replay.rule,
        "seed": replay.seeds[0],
        "method": name,
        "r_me": decision.pair.r_me,
        "r_llm": decision.pair.r_llm,
        "rate": decision.rate,
        "regret": truth.regret(decision.pair, decision.rate),
        "noise": truth.noise,
        "pair_steps": decision.pair_steps,
        "parameters": replay.parameters[decision.pair],
        "verdict": decision.verdict,
    }


def describe_cell(cell: Cell, rows: pd.DataFrame) -> list[dict[str, object]]:
    """One record per alpha rule: best pair, spread, and how much either module's rank matters."""
    found: list[dict[str, object]] = []
    for rule, truth in _truths(cell, rows):
        low, high = _edges(rows, rule)
        best = truth.best_rate(truth.best)
        found.append(
            {
                "cell": cell.name,
                "role": cell.role,
                "rule": rule,
                "best": truth.best,
                "best_rate": best,
                "interior": low * 1.05 < best < high / 1.05,
                "perplexity": float(np.exp(truth.losses[truth.best])),
                "spread": truth.regret(max(truth.losses, key=lambda pair: truth.losses[pair])),
                "noise": truth.noise,
                "effect_me": main_effect(truth, "me"),
                "effect_llm": main_effect(truth, "llm"),
                "frozen_tower": min(truth.regret(pair) for pair in truth.losses if pair.r_me == 0),
                "frozen_llm": min(truth.regret(pair) for pair in truth.losses if pair.r_llm == 0),
            }
        )
    return found


def _edges(rows: pd.DataFrame, rule: str) -> tuple[float, float]:
    rates = rows.loc[(rows["kind"] == "rates") & (rows["rule"] == rule), "peak_lr"]
    return float(rates.min()), float(rates.max())


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """Methods in order of mean regret: median, mean, share within seed noise, cost and size.

    Cost is pair-steps as a share of the naive grid's on the same cell, size the chosen pair's parameters as a share of
    those of the largest pair's choice.
    """
    keys = ["cell", "rule", "seed"]
    grid = records[records["method"] == "naive grid of full runs"].set_index(keys)["pair_steps"]
    size = records[records["method"] == "largest, rate tuned"].set_index(keys)["parameters"]
    index = pd.MultiIndex.from_frame(records[keys])
    table = records.assign(
        cost=records["pair_steps"] / grid.reindex(index).to_numpy(),
        size=records["parameters"] / size.reindex(index).to_numpy(),
        within=records["regret"] <= records["noise"],
    )
    aggregated: Mapping[str, tuple[str, str]] = {
        "choices": ("regret", "size"),
        "median_regret": ("regret", "median"),
        "mean_regret": ("regret", "mean"),
        "worst_regret": ("regret", "max"),
        "within_noise": ("within", "mean"),
        "cost": ("cost", "mean"),
        "size": ("size", "mean"),
    }
    return table.groupby("method").agg(**aggregated).sort_values("mean_regret")
