"""Law P: validation loss against dataset size, one panel per LLM rank, with the fit carried to D_target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mars_core.fitting import LawFit
from mars_core.report.figures import style
from mars_core.report.figures.ranges import log_span, sizes_to
from mars_core.report.study_results import StudyResults, last_per_size

PANEL_HEIGHT = 3.1


def law_performance_figure(results: StudyResults) -> Figure | None:
    """Points, curves and interval bands; None without runs."""
    if results.metrics.empty:
        return None
    rows = last_per_size(results.metrics)
    ranks = results.ranks_llm
    figure = style.new_figure(0.4 + PANEL_HEIGHT * -(-len(ranks) // 4))
    axes_of = dict(zip(ranks, style.panels(figure, len(ranks)), strict=True))
    sizes = sizes_to(results)
    for r_llm, axes in axes_of.items():
        for r_me in results.ranks_me:
            _draw_pair(axes, results, rows, r_me, r_llm, sizes)
        _mark_target(axes, results)
        style.label(axes, title=f"r_llm = {r_llm}", x="dataset size  D")
    first = axes_of[ranks[0]]
    objective = results.objective
    style.label(first, y="validation loss, nats/token" if objective.quantity == "loss" else objective.name)
    _set_scales(first, results, rows, sizes)
    style.figure_legend(figure, *_legend(results))
    return figure


def _draw_pair(axes: Any, results: StudyResults, rows: pd.DataFrame, r_me: int, r_llm: int, sizes: Any) -> None:
    colour = style.rank_colours(results.ranks_me)[r_me]
    marker = style.rank_markers(results.ranks_me)[r_me]
    own = rows[(rows["r_me"] == r_me) & (rows["r_llm"] == r_llm)]
    by_size = own.groupby("unique_samples")[results.objective.column]
    mean, low, high = by_size.mean(), by_size.min(), by_size.max()
    if len(results.seeds) > 1:
        axes.vlines(mean.index, low, high, color=colour, linewidth=1.0)
    axes.plot(mean.index, mean, linestyle="", marker=marker, color=colour, markersize=4.2, zorder=3)
    if results.performance is not None and min(r_me, r_llm) > 0:
        _draw_curve(axes, results.performance, r_me, r_llm, sizes, colour)


def _draw_curve(axes: Any, fit: LawFit, r_me: int, r_llm: int, sizes: Any, colour: str) -> None:
    X = {"r_me": np.full(len(sizes), r_me), "r_llm": np.full(len(sizes), r_llm), "D": sizes}
    if len(fit.draws):
        axes.fill_between(sizes, *fit.predict_interval(X), color=colour, alpha=style.BAND, linewidth=0)
    axes.plot(sizes, fit.predict(X), color=colour, linewidth=1.3)


def _mark_target(axes: Any, results: StudyResults) -> None:
    if results.D_target is not None:
        axes.axvline(results.D_target, color=style.MUTED, linewidth=1.0, linestyle=(0, (4, 3)))


def _set_scales(axes: Any, results: StudyResults, rows: pd.DataFrame, sizes: Any) -> None:
    losses = rows[results.objective.column].to_numpy(dtype=float)
    losses = losses[losses > 0]  # a metric may be 0 or have no value
    if results.performance is not None:
        losses = np.concatenate([losses, _corner_predictions(results, results.performance)])
    style.log_value_axis(axes.yaxis, *log_span(losses))
    style.log_count_axis(axes.xaxis, *log_span(sizes, pad=0.04))


def _corner_predictions(results: StudyResults, fit: LawFit) -> Any:
    """Predictions at D_target of all calibrated pairs, so that the curves' ends stay inside."""
    pairs = [(a, b) for a in results.ranks_me for b in results.ranks_llm if min(a, b) > 0]
    r_me, r_llm = np.array(pairs, dtype=float).reshape(-1, 2).T
    D = np.full(len(pairs), float(sizes_to(results)[-1]))
    return fit.predict({"r_me": r_me, "r_llm": r_llm, "D": D})


def _legend(results: StudyResults) -> tuple[list[Any], list[str]]:
    colours, markers = style.rank_colours(results.ranks_me), style.rank_markers(results.ranks_me)
    handles: list[Any] = [
        Line2D([], [], color=colours[rank], marker=markers[rank], markersize=4.2) for rank in results.ranks_me
    ]
    labels = [f"r_me = {rank}" for rank in results.ranks_me]
    if results.performance is not None and len(results.performance.draws):
        handles.append(Patch(facecolor=style.MUTED, alpha=0.3))
        labels.append(f"{results.performance.level:.0%} interval")
    if results.D_target is not None:
        handles.append(Line2D([], [], color=style.MUTED, linewidth=1.0, linestyle=(0, (4, 3))))
        labels.append(f"D_target = {results.D_target:,}")
    return handles, labels
