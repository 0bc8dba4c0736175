"""The best peak learning rate of each pair over its ranks, with 95% intervals, as the learning-rate law has it."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from mars_core.report.figures import style
from mars_core.report.figures.ranges import log_span
from mars_core.report.study_results import StudyResults
from mars_core.search.rates import BestRate

AXES = {"all": "all modules", "me": "vision encoder", "llm": "LLM"}


def best_rates_figure(results: StudyResults) -> Figure | None:
    """A panel for each axis, a line for each vision rank over the LLM's; None where the runs have one rate."""
    rates = None if results.choice is None else results.choice.rates
    if rates is None:
        return None
    found = [one for one in rates.pairs if 0 not in one.pair]
    if not found:
        return None
    names = list(dict.fromkeys(one.axis for one in found))
    figure = style.new_figure(3.0, width=6.0 if len(names) == 1 else style.WIDTH)
    handles: dict[str, Any] = {}
    for axes, name in zip(style.panels(figure, len(names)), names, strict=True):
        own = [one for one in found if one.axis == name]
        _draw(axes, own, handles)
        style.log_count_axis(axes.xaxis, *log_span([one.pair[1] for one in own]))
        style.log_value_axis(axes.yaxis, *log_span([edge for one in own for edge in one.interval]))
        style.label(axes, title=AXES[name], x="LLM rank r_llm")
    style.label(figure.axes[0], y="best peak learning rate")
    style.figure_legend(figure, list(handles.values()), list(handles))
    return figure


def _draw(axes: Any, rates: list[BestRate], handles: dict[str, Any]) -> None:
    ranks = sorted({one.pair[0] for one in rates})
    colours, markers = style.rank_colours(ranks), style.rank_markers(ranks)
    for rank in ranks:
        own = sorted((one for one in rates if one.pair[0] == rank), key=lambda one: one.pair[1])
        x, y = [one.pair[1] for one in own], [one.rate for one in own]
        axes.vlines(x, *zip(*(one.interval for one in own), strict=True), color=colours[rank], linewidth=0.8, alpha=0.6)
        (line,) = axes.plot(x, y, color=colours[rank], marker=markers[rank], markersize=4, linewidth=1.2)
        handles.setdefault(f"r_me = {rank}", line)
