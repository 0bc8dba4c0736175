"""The test of law C: are pairs whose modules learn equally fast better than law P says? No torch.

In every cell the final loss of positive pairs is regressed on the loss that MARS predicts and on ln(t_me / t_llm)^2,
with rewind times of the first runs that judge. A balance that helps gives b > 0 and predicts pairs left out better.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mars_core.rankbench.truth import Truth
from mars_core.ranks import Pair, RankPair

Floats = NDArray[np.float64]
FEWEST = 8
"""Pairs with both times that a cell needs."""


def balance_record(ends: pd.DataFrame, truth: Truth, predicted: Mapping[Pair, float]) -> dict[str, float] | None:
    """The regression of one cell, None where fewer than `FEWEST` pairs have both times.

    Args:
        ends: last rows of the runs that judge, columns r_me, r_llm, rewind_me, rewind_llm.
        predicted: loss of each pair by the laws, nats.

    Returns:
        b and its t value; ratio: root mean square error of left-out pairs with the balance over that without;
        nearer: mean loss of the half nearer to balance less that of the other half, in nats; own_me, other_me: slope
        of ln t_me over ln r_me and over ln r_llm; own_llm, other_llm: the same of ln t_llm.
    """
    if "rewind_me" not in ends:
        return None
    adapted = (ends["r_me"] > 0) & (ends["r_llm"] > 0)
    timed = ends[adapted & (ends["rewind_me"] > 0) & (ends["rewind_llm"] > 0)]
    keys = [(int(a), int(b)) for a, b in zip(timed["r_me"], timed["r_llm"], strict=True)]
    timed, keys = timed[[key in predicted for key in keys]], [key for key in keys if key in predicted]
    if len(keys) < FEWEST:
        return None
    loss = np.array([truth.losses[RankPair(*key)] for key in keys])
    law = np.array([predicted[key] for key in keys])
    logs = {name: np.log(timed[f"rewind_{name}"].to_numpy(dtype=float)) for name in ("me", "llm")}
    apart = (logs["me"] - logs["llm"]) ** 2
    without = np.column_stack([np.ones(len(loss)), law])
    with_it = np.column_stack([without, apart])
    b, t_value = _last_coefficient(with_it, loss)
    near = apart <= np.median(apart)
    ranks = np.column_stack([np.ones(len(loss)), np.log(np.array(keys, dtype=float))])
    slopes = {name: np.linalg.lstsq(ranks, own, rcond=None)[0] for name, own in logs.items()}
    return {
        "pairs": float(len(loss)),
        "b": b,
        "t_value": t_value,
        "ratio": _left_out(with_it, loss) / _left_out(without, loss),
        "nearer": float(loss[near].mean() - loss[~near].mean()),
        "t_me": float(np.exp(np.median(logs["me"]))),
        "t_llm": float(np.exp(np.median(logs["llm"]))),
        "own_me": float(slopes["me"][1]),
        "other_me": float(slopes["me"][2]),
        "own_llm": float(slopes["llm"][2]),
        "other_llm": float(slopes["llm"][1]),
    }


def _last_coefficient(design: Floats, values: Floats) -> tuple[float, float]:
    """The last coefficient of a least-squares fit and its t value."""
    found = np.linalg.lstsq(design, values, rcond=None)[0]
    residual = values - design @ found
    variance = float(residual @ residual) / (len(values) - design.shape[1]) * np.linalg.pinv(design.T @ design)
    return float(found[-1]), float(found[-1] / np.sqrt(variance[-1, -1]))


def _left_out(design: Floats, values: Floats) -> float:
    """Root mean square error of each value by a fit to all others."""
    hat = design @ np.linalg.pinv(design)
    return float(np.sqrt(np.mean(((values - hat @ values) / (1.0 - np.diag(hat))) ** 2)))
