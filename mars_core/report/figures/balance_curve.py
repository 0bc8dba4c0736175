"""The balance curve r_me(r_llm) of Eq. 3 over the grid of available ranks, with the pairs next to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from mars_core.fitting import LawFit
from mars_core.report.figures import style
from mars_core.report.study_results import StudyResults
from mars_core.search import Choice, balance_log_rank

Floats = NDArray[np.float64]

HEIGHT = 4.6
FACTOR = 1.6  # room around the grid of ranks


def balance_curve_figure(results: StudyResults) -> Figure | None:
    """Curve with its interval, available pairs, those next to it and the chosen pair; None before the search."""
    choice = results.choice
    if choice is None:
        return None
    ranks_me, ranks_llm = results.grid_ranks_me, results.grid_ranks_llm
    figure = style.new_figure(HEIGHT, 7.6)
    axes = figure.subplots()
    style.dress(axes)
    low, high = min(ranks_llm) / FACTOR, max(ranks_llm) * FACTOR
    bottom, top = min(ranks_me) / FACTOR, max(ranks_me) * FACTOR
    style.log_count_axis(axes.xaxis, low, high, most=12)
    style.log_count_axis(axes.yaxis, bottom, top, most=12)
    style.label(axes, x="LLM rank  r_llm", y="vision rank  r_me")
    handles = _draw_grid(axes, ranks_me, ranks_llm)
    handles += _draw_curve(axes, results, (low, high), (bottom, top))
    handles += _draw_pairs(axes, results, choice)
    style.side_legend(figure, handles)
    return figure


def fitted_curve(me: LawFit, llm: LawFit, r_llm: Floats, D: float) -> tuple[Floats, Floats, Floats]:
    """Balance rank with the interval over bootstrap draws, each (n,); NaN where Eq. 3 has no solution."""
    middle = np.array([float(np.exp(_clipped(balance_log_rank(me.theta, llm.theta, r, D)))) for r in r_llm])
    n = min(len(me.draws), len(llm.draws))
    if n == 0:
        return middle, np.full_like(middle, np.nan), np.full_like(middle, np.nan)
    draws = np.stack([_clipped(balance_log_rank(me.draws[:n], llm.draws[:n], r, D)) for r in r_llm])
    bounds = [_quantiles(row) for row in draws]
    low, high = np.array(bounds).T
    return middle, low, high


def _clipped(log_rank: Floats) -> Floats:
    return np.clip(log_rank, -100.0, 100.0)


def _quantiles(log_ranks: Floats) -> tuple[float, float]:
    defined = log_ranks[~np.isnan(log_ranks)]
    if defined.size == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(np.exp(low)), float(np.exp(high))


def _draw_grid(axes: Any, ranks_me: list[int], ranks_llm: list[int]) -> list[Any]:
    points = [(r_llm, r_me) for r_llm in ranks_llm for r_me in ranks_me]
    axes.plot(*zip(*points, strict=True), linestyle="", marker="+", color=style.MUTED, markersize=6)
    ends = [min(ranks_llm + ranks_me) / 4, max(ranks_llm + ranks_me) * 4]
    axes.plot(ends, ends, color=style.MUTED, linewidth=0.9, linestyle=":", scalex=False, scaley=False)
    return [
        Line2D([], [], linestyle="", marker="+", color=style.MUTED, markersize=6, label="available pair"),
        Line2D([], [], linestyle=":", color=style.MUTED, linewidth=0.9, label="equal ranks"),
    ]


def _draw_curve(axes: Any, results: StudyResults, span: tuple[float, float], frame: tuple[float, float]) -> list[Any]:
    """The curve between grid points from law C; nothing where a module has no law C."""
    me, llm = results.convergence.get("me"), results.convergence.get("llm")
    if me is None or llm is None or results.choice is None:
        return []
    r_llm = np.geomspace(*span, 60)
    middle, low, high = fitted_curve(me, llm, r_llm, results.choice.D_target)
    bottom, top = frame[0] / 2, frame[1] * 2
    band = np.clip(low, bottom, top), np.clip(high, bottom, top)
    axes.fill_between(r_llm, *band, color=style.ME, alpha=0.16, linewidth=0)
    axes.plot(r_llm, np.clip(middle, bottom, top), color=style.ME, linewidth=1.8)
    return [
        Line2D([], [], color=style.ME, linewidth=1.8, label="balance curve  t_me = t_llm"),
        Patch(facecolor=style.ME, alpha=0.25, label="95% interval"),
    ]


def _draw_pairs(axes: Any, results: StudyResults, choice: Choice) -> list[Any]:
    """Balanced pairs as rings, dropped pairs as crosses, the chosen pair as a star."""
    ring = {"marker": "o", "markerfacecolor": "none", "markeredgecolor": style.ACCENT, "markeredgewidth": 1.6}
    cross, star = {"marker": "x", "color": style.MUTED}, {"marker": "*", "color": style.ACCENT}
    others = [pair for pair in results.balanced_pairs if pair != choice.pair]
    dropped = [(item.r_me, item.r_llm) for item in choice.dropped if item.r_me]
    handles = []
    for pairs, look, name, size in (
        (others, ring, "balanced pair", 9),
        (dropped, cross, "dropped", 8),
        ([choice.pair], star, "chosen pair", 15),
    ):
        if pairs:
            r_me, r_llm = zip(*pairs, strict=True)
            axes.plot(r_llm, r_me, linestyle="", markersize=size, zorder=4, **look)
            handles.append(Line2D([], [], linestyle="", markersize=0.75 * size, label=name, **look))
    return handles
