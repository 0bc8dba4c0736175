"""The tables of a replay as text, for a terminal and for the page. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mars_core.rankbench.verdicts import (
    ablation,
    balance_table,
    of_default,
    prediction_table,
    summary,
    verdict_table,
)

Format = Callable[[Any], str]
Column = tuple[str, str, Format]
"""Heading, column of the data frame, how a value is written."""


@dataclass(frozen=True)
class TextTable:
    """title: what it shows. note: how to read it. headings, rows: text."""

    title: str
    note: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables_of(cells: pd.DataFrame, records: pd.DataFrame) -> list[TextTable]:
    """Every table of a replay; those of regret leave out cells without a rank signal."""
    default = of_default(records)
    found = [_cells(cells)]
    for role in ("verdict", "develop"):
        own = default[default["role"] == role]
        if len(own):
            found.append(_methods(own, role))
    if default["role"].nunique() > 1:
        found.append(_methods(default, "all"))
    every = records[records["rule"] == "constant"]
    if len(every) > len(default):
        found.append(_methods(every, "every"))
    found.append(_verdicts(records))
    found.append(_predictions(records))
    if len(default):
        found.append(_ablation(records))
    balance = balance_table(records)
    return [*found, _balance(balance)] if len(balance) else found


def _text(value: Any) -> str:
    return str(value)


def _percent(digits: int) -> Format:
    return lambda value: "" if pd.isna(value) else f"{value:.{digits}%}"


def _number(digits: int) -> Format:
    return lambda value: "" if pd.isna(value) else f"{value:.{digits}f}"


def _yes(value: Any) -> str:
    return "yes" if value else "no"


def _made(title: str, note: str, frame: pd.DataFrame, columns: tuple[Column, ...]) -> TextTable:
    rows = tuple(tuple(write(row[name]) for _, name, write in columns) for row in frame.to_dict("records"))
    return TextTable(title, note, tuple(heading for heading, _, _ in columns), rows)


def _cells(cells: pd.DataFrame) -> TextTable:
    return _made(
        "Cells",
        "Regret is excess test perplexity over the best pair at its best rate. Effects: how far the mean test "
        "loss varies with one module's rank (0 included), in standard deviations of one run; above 2 the rank "
        "matters. Pairs differ: at the 1% level, else the cell is left out of the tables of regret.",
        cells.assign(best=[f"({a}, {b})" for a, b in cells["best"]]),
        (
            ("cell", "cell", _text),
            ("role", "role", _text),
            ("alpha", "rule", _text),
            ("best pair", "best", _text),
            ("its rate", "best_rate", lambda value: f"{value:.1e}"),
            ("interior", "interior", _yes),
            ("perplexity", "perplexity", _number(3)),
            ("worst pair", "spread", _percent(1)),
            ("noise", "noise", _percent(1)),
            ("pairs differ", "tells_pairs_apart", _yes),
            ("vision effect", "vision_effect", _number(1)),
            ("LLM effect", "llm_effect", _number(1)),
            ("vision frozen", "frozen_tower", _percent(1)),
            ("LLM frozen", "frozen_llm", _percent(1)),
        ),
    )


def _methods(own: pd.DataFrame, role: str) -> TextTable:
    which = {
        "verdict": "cells of the verdict",
        "develop": "cells that defaults were set on",
        "all": "cells of both",
        "every": "trained cells, those without a rank signal too",
    }[role]
    return _made(
        f"Methods on {own['cell'].nunique()} {which}",
        "Cost is pair-steps of the search as a share of the naive grid's (a final run comes on top of each), size"
        " the chosen pair's parameters as a share of the largest pair's. The interval is over cells and "
        "calibration seeds.",
        summary(own).reset_index(),
        (
            ("method", "method", _text),
            ("choices", "choices", _text),
            ("median regret", "median_regret", _percent(2)),
            ("mean", "mean_regret", _percent(2)),
            ("95% low", "low", _percent(2)),
            ("high", "high", _percent(2)),
            ("worst", "worst_regret", _percent(1)),
            ("within noise", "within_noise", _percent(0)),
            ("cost", "cost", _number(3)),
            ("pair-steps", "pair_steps", _number(0)),
            ("size", "size", _number(2)),
        ),
    )


def _verdicts(records: pd.DataFrame) -> TextTable:
    return _made(
        "Verdicts of MARS",
        "All cells and alpha rules. Right: `best` where no pair is better by more than seed noise; `as good and "
        "cheaper` where the excess over the pair it was preferred to stays within margin and noise. `cannot tell`"
        " promises nothing.",
        verdict_table(records).reset_index(),
        (
            ("verdict", "verdict", _text),
            ("choices", "choices", _text),
            ("right", "right", _percent(0)),
            ("mean regret", "mean_regret", _percent(2)),
            ("regret it expected", "expected", _percent(2)),
        ),
    )


def _predictions(records: pd.DataFrame) -> TextTable:
    return _made(
        "Predicted final loss",
        "Covered: share of the runs that judge whose validation loss lies in their pair's 95% interval. Bias: "
        "predicted over reached perplexity of the chosen pair. tau: Kendall's, of the predicted against the true "
        "order of pairs.",
        prediction_table(records).reset_index(),
        (
            ("cell", "cell", _text),
            ("alpha", "rule", _text),
            ("covered", "covered", _percent(0)),
            ("bias", "bias", _percent(1)),
            ("tau", "tau", _number(2)),
        ),
    )


def _ablation(records: pd.DataFrame) -> TextTable:
    return _made(
        "Ablation",
        "Difference: mean regret less that of MARS on the same cells and seeds; above 0 the variant is worse. The"
        " alpha rule is compared against the best pair under any rule.",
        ablation(records).reset_index(),
        (
            ("variant", "variant", _text),
            ("choices", "choices", _text),
            ("mean regret", "mean_regret", _percent(2)),
            ("difference", "difference", _percent(2)),
        ),
    )


def _balance(balance: pd.DataFrame) -> TextTable:
    return _made(
        "Does balance help?",
        "True loss = a + c x predicted loss + b ln(t_me / t_llm)^2, with rewind times. Balance helps where b > 0 "
        "and the error of left-out pairs (ratio) is below 1. Nearer: mean loss of the half of the pairs nearer to"
        " balance less that of the others, nats. Slopes: of ln t over the log of the module's own rank and of the"
        " other's; law C has the latter at 0.",
        balance.reset_index(),
        (
            ("cell", "cell", _text),
            ("pairs", "pairs", _number(0)),
            ("t_me", "t_me", _number(1)),
            ("t_llm", "t_llm", _number(1)),
            ("b", "b", _number(4)),
            ("t value", "t_value", _number(1)),
            ("ratio", "ratio", _number(2)),
            ("nearer", "nearer", _number(4)),
            ("t_me own", "own_me", _number(2)),
            ("other", "other_me", _number(2)),
            ("t_llm own", "own_llm", _number(2)),
            ("other ", "other_llm", _number(2)),
        ),
    )
