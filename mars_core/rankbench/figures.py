"""Figures of RankBench's page: cost against regret of all methods, and every cell's losses with the choices marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter

from mars_core.rankbench.truth import Truth
from mars_core.rankbench.verdicts import PRODUCT, summary
from mars_core.ranks import Pair
from mars_core.report.figures import style
from mars_core.report.figures.rank_grid import RankGrid

COLUMNS = 3
FREE = 0.002
"""Where methods without a search stand on the axis of cost, a share of the naive grid."""
MOST = 30.0
"""Percent of regret up to which methods are drawn; the legend names those above too."""
SIDE_BY_SIDE = 1.13
"""Factor of cost by which methods of equal cost are drawn apart."""


def frontier_figure(default: pd.DataFrame) -> Figure:
    """Mean regret against search cost of every method, with the frontier of those that nothing beats at their cost.

    Args:
        default: records that tables of regret are made from.
    """
    table = summary(default)
    table = table.assign(cost=table["cost"].clip(lower=FREE), number=range(1, len(table) + 1))
    table = table.sort_values(["cost", "mean_regret"])
    figure = style.new_figure(5.4)
    axes = figure.subplots()
    style.dress(axes)
    frontier = table[table["mean_regret"] <= table["mean_regret"].cummin()]
    axes.step(frontier["cost"], 100 * frontier["mean_regret"], where="post", color=style.MUTED, linewidth=1.2)
    beside = table["cost"] * SIDE_BY_SIDE ** table.groupby(table["cost"].round(6)).cumcount()
    handles = {}
    for (name, row), x in zip(table.iterrows(), beside, strict=True):
        colour = style.ACCENT if str(name).startswith("MARS") else style.LLM
        y, low, high = (100 * row[key] for key in ("mean_regret", "low", "high"))
        axes.plot([x, x], [low, high], color=colour, linewidth=1, alpha=0.45)
        look: dict[str, Any] = {"marker": "o", "linestyle": "", "color": colour, "markersize": 11}
        axes.plot(x, y, **look)
        axes.text(x, y, f"{row['number']:.0f}", ha="center", va="center", color=style.CARD, fontsize=style.SMALL - 1.5)
        handles[row["number"]] = Line2D(
            [], [], label=f"{row['number']:.0f}  {name}: {y:.2f}%", **{**look, "markersize": 5}
        )
    style.side_legend(figure, [handles[number] for number in sorted(handles)])
    axes.set_xscale("log")
    axes.set_xlim(FREE / 1.4, 4.0)
    axes.set_yscale("symlog", linthresh=1.0)
    axes.set_ylim(0, min(MOST, 110 * float(table["high"].max())))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value <= FREE else f"{value:g}"))
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200]))
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
    values: dict[Pair, float] = {pair: float(np.exp(loss)) for pair, loss in truth.losses.items()}
    grid = RankGrid(ranks_me, ranks_llm, values, {})
    grid.draw(axes, digits=3, size=style.SMALL - 1)
    style.label(axes, title=name, x="r_llm", y="r_me")
    _mark(axes, grid.position(truth.best), 0.47, style.INK, ":")
    own = records[(records["cell"] == name) & (records["method"] == PRODUCT) & (records["rule"] == "constant")]
    for at, (r_me, r_llm) in enumerate(zip(own["r_me"], own["r_llm"], strict=True)):
        _mark(axes, grid.position((int(r_me), int(r_llm))), 0.44 - 0.05 * at, style.ACCENT, "-")


def _mark(axes: Any, at: tuple[int, int] | None, half: float, colour: str, line: str) -> None:
    if at is not None:
        corner = (at[0] - half, at[1] - half)
        axes.add_patch(
            Rectangle(corner, 2 * half, 2 * half, facecolor="none", edgecolor=colour, linewidth=2, linestyle=line)
        )
