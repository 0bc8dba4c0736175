"""Law C: steps to convergence against dataset size, one panel per module, one line per rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mars_core.fitting import LawFit
from mars_core.report.figures import style
from mars_core.report.figures.ranges import log_span
from mars_core.report.study_results import MODULE_NAMES, MODULES, StudyResults

HEIGHT = 3.9


def law_convergence_figure(results: StudyResults) -> Figure | None:
    """Times of both modules with their fitted lines; None where no run gave a time."""
    if results.times.empty:
        return None
    figure = style.new_figure(HEIGHT)
    ranks = sorted({int(rank) for rank in results.times["r"]})
    for module, axes in zip(MODULES, style.panels(figure, 2), strict=True):
        times = results.times[results.times["module"] == module]
        _draw_module(axes, results, times, results.convergence.get(module), ranks)
        style.label(axes, title=MODULE_NAMES[module] + _held(results, module), x="dataset size  D")
        if results.D_target is not None:
            axes.axvline(results.D_target, color=style.MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    first = figure.axes[0]
    style.label(first, y="steps to convergence  t")
    style.log_count_axis(first.xaxis, *log_span(_sizes(results), pad=0.04))
    style.log_value_axis(first.yaxis, *log_span(_steps(results)))
    style.figure_legend(figure, *_legend(results, ranks))
    return figure


def _held(results: StudyResults, module: str) -> str:
    """What the other module's rank is held at."""
    if results.signal != "slice" or results.reference is None:
        return ""
    r_me, r_llm = results.reference
    return f", r_llm held at {r_llm}" if module == "me" else f", r_me held at {r_me}"


def _draw_module(axes: Any, results: StudyResults, times: pd.DataFrame, fit: LawFit | None, ranks: list[int]) -> None:
    if times.empty:
        axes.text(0.5, 0.5, "no convergence times", transform=axes.transAxes, ha="center", color=style.MUTED)
        return
    reach = times.groupby("D")["S_D"].max()
    axes.plot(reach.index, reach, color=style.MUTED, linewidth=1.0, linestyle=":")
    colours, markers = style.rank_colours(ranks), style.rank_markers(ranks)
    for rank in sorted({int(rank) for rank in times["r"]}):
        own = times[times["r"] == rank]
        _draw_points(axes, own, colours[rank], markers[rank])
        if fit is not None and rank > 0:
            _draw_line(axes, fit, rank, _sizes(results), colours[rank])


def _draw_points(axes: Any, own: pd.DataFrame, colour: str, marker: str) -> None:
    """Observed times as filled markers, censored ones as open markers with an arrow upwards."""
    censored = own["censored"].astype(bool)
    seen, open_ended = own[~censored], own[censored]
    look = {"linestyle": "", "marker": marker, "color": colour, "markersize": 5, "zorder": 3}
    axes.plot(seen["D"], seen["steps"], **look)
    if len(open_ended):
        rise = 0.28 * open_ended["steps"]
        axes.errorbar(open_ended["D"], open_ended["steps"], yerr=rise, lolims=True, markerfacecolor=style.CARD, **look)


def _draw_line(axes: Any, fit: LawFit, rank: int, sizes: Any, colour: str) -> None:
    grid = np.geomspace(sizes.min(), sizes.max(), 40)
    X = {"r": np.full(len(grid), rank), "D": grid}
    if len(fit.draws):
        axes.fill_between(grid, *fit.predict_interval(X), color=colour, alpha=style.BAND * 0.7, linewidth=0)
    axes.plot(grid, fit.predict(X), color=colour, linewidth=1.3)


def _sizes(results: StudyResults) -> Any:
    """Sizes with a time, and D_target."""
    sizes = results.times["D"].to_numpy(dtype=float)
    return sizes if results.D_target is None else np.append(sizes, float(results.D_target))


def _steps(results: StudyResults) -> Any:
    """All times, the lines' ends and S_D: what the y axis must hold."""
    parts = [results.times["steps"].to_numpy(dtype=float), results.times["S_D"].to_numpy(dtype=float)]
    for module, fit in results.convergence.items():
        own = results.times[results.times["module"] == module]
        ranks = np.array(sorted({int(rank) for rank in own["r"] if rank > 0}), dtype=float)
        if len(ranks):
            ends = fit.predict({"r": ranks, "D": np.full(len(ranks), _sizes(results).max())})
            parts.append(np.minimum(ends, 100.0 * parts[0].max()))
    return np.concatenate(parts)


def _legend(results: StudyResults, ranks: list[int]) -> tuple[list[Any], list[str]]:
    colours, markers = style.rank_colours(ranks), style.rank_markers(ranks)
    handles: list[Any] = [Line2D([], [], color=colours[r], marker=markers[r], markersize=5) for r in ranks]
    labels = [f"r = {rank}" for rank in ranks]
    if results.times["censored"].astype(bool).any():
        handles.append(
            Line2D([], [], color=style.MUTED, marker="o", markersize=5, markerfacecolor=style.CARD, linestyle="")
        )
        labels.append("open, with arrow: not reached yet")
    handles.append(Line2D([], [], color=style.MUTED, linewidth=1.0, linestyle=":"))
    labels.append("all steps up to size D")
    if results.D_target is not None:
        handles.append(Line2D([], [], color=style.MUTED, linewidth=1.0, linestyle=(0, (4, 3))))
        labels.append(f"D_target = {results.D_target:,}")
    return handles, labels
