"""Figures of RankBench's page: cost against regret of all methods, and every cell's losses with the choices marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from mars_core.rankbench.truth import Truth
from mars_core.rankbench.verdicts import PRODUCT, summary
from mars_core.report.figures import style
from mars_core.report.figures.rank_grid import RankGrid

COLUMNS = 3
FREE = 0.002
"""Where methods without a search stand on the axis of cost, a share of the naive grid."""


def frontier_figure(default: pd.DataFrame) -> Figure:
    """Mean regret against search cost of every method, with the frontier of those that nothing beats at their cost.

    Args:
        default: records that tables of regret are made from.
    """
    table = summary(default)
    table = table.assign(cost=table["cost"].clip(lower=FREE)).sort_values(["cost", "mean_regret"])
    figure = style.new_figure(5.2)
    axes = figure.subplots()
    style.dress(axes)
    best = table["mean_regret"].cummin()
    frontier = table[table["mean_regret"] <= best]
    axes.step(frontier["cost"], 100 * frontier["mean_regret"], where="post", color=style.MUTED, linewidth=1.2)
    for number, (name, row) in enumerate(table.iterrows()):
        own = str(name).startswith("MARS")
        colour = style.ACCENT if own else style.LLM
        y, low, high = (100 * row[key] for key in ("mean_regret", "low", "high"))
        axes.plot([row["cost"]] * 2, [low, high], color=colour, linewidth=1, alpha=0.45)
        axes.plot(row["cost"], y, marker="s" if own else "o", color=colour, markersize=6 if name == PRODUCT else 4.5)
        above = number % 2 == 0
        axes.annotate(
            str(name), (row["cost"], y), xytext=(5, 4 if above else -9), textcoords="offset points",
            fontsize=style.SMALL - 1, color=style.INK, fontweight="bold" if name == PRODUCT else "normal",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(FREE / 1.4, 4.0)
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value <= FREE else f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
    style.label(axes, x="search cost, share of the naive grid's pair-steps", y="mean regret, test perplexity")
    return figure


def heatmaps_figure(truths: Mapping[str, Truth], records: pd.DataFrame) -> Figure:
    """Test perplexity of every pair of every cell; outlined what MARS chose, one line for each calibration.

    Args:
        truths: of each cell under the default alpha rule.
        records: of all methods.
    """
    rows = -(-len(truths) // COLUMNS)
    figure = style.new_figure(2.9 * rows)
    panels = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes, (name, truth) in zip(panels.flat, truths.items(), strict=False):
        _heatmap(axes, name, truth, records)
    for spare in list(panels.flat)[len(truths) :]:
        spare.remove()
    return figure


def _heatmap(axes: Any, name: str, truth: Truth, records: pd.DataFrame) -> None:
    ranks_me = sorted({pair.r_me for pair in truth.losses})
    ranks_llm = sorted({pair.r_llm for pair in truth.losses})
    values = {tuple(pair): float(np.exp(loss)) for pair, loss in truth.losses.items()}
    grid = RankGrid(ranks_me, ranks_llm, values, {})  # type: ignore[arg-type]
    grid.draw(axes, digits=3, size=style.SMALL - 1)
    style.label(axes, title=name, x="r_llm", y="r_me")
    _mark(axes, grid.position(tuple(truth.best)), 0.47, style.INK, ":")
    own = records[(records["cell"] == name) & (records["method"] == PRODUCT) & (records["rule"] == "constant")]
    for at, (r_me, r_llm) in enumerate(zip(own["r_me"], own["r_llm"], strict=True)):
        _mark(axes, grid.position((int(r_me), int(r_llm))), 0.44 - 0.05 * at, style.ACCENT, "-")


def _mark(axes: Any, at: tuple[int, int] | None, half: float, colour: str, line: str) -> None:
    if at is not None:
        corner = (at[0] - half, at[1] - half)
        axes.add_patch(
            Rectangle(corner, 2 * half, 2 * half, facecolor="none", edgecolor=colour, linewidth=2, linestyle=line)
        )
