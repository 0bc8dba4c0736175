"""Validation loss of every calibration run against its steps, one panel per LLM rank."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mars_core.report.figures import style
from mars_core.report.figures.ranges import log_span
from mars_core.report.study_results import StudyResults

PANEL_HEIGHT = 2.8


def calibration_curves_figure(results: StudyResults) -> Figure | None:
    """One line per run; with several seeds the runs are thin, the mean of each length is thick. None without runs."""
    if results.metrics.empty:
        return None
    ranks = results.ranks_llm
    figure = style.new_figure(0.4 + PANEL_HEIGHT * -(-len(ranks) // 4))
    drawn = style.panels(figure, len(ranks))
    for r_llm, axes in zip(ranks, drawn, strict=True):
        rows = results.metrics[results.metrics["r_llm"] == r_llm]
        for r_me in results.ranks_me:
            _draw_pair(axes, results, rows[rows["r_me"] == r_me], r_me)
        style.label(axes, title=f"r_llm = {r_llm}", x="optimizer step")
    style.label(drawn[0], y="validation loss, nats/token")
    style.log_value_axis(drawn[0].yaxis, *log_span(results.metrics["val_loss"]))
    style.log_count_axis(drawn[0].xaxis, *log_span(results.metrics["step"], pad=0.04))
    style.figure_legend(figure, *_legend(results))
    return figure


def _draw_pair(axes: Any, results: StudyResults, rows: pd.DataFrame, r_me: int) -> None:
    colour = style.rank_colours(results.ranks_me)[r_me]
    marker = style.rank_markers(results.ranks_me)[r_me]
    for _, alike in rows.groupby(rows.groupby("run_id")["step"].transform("max")):
        _draw_runs(axes, alike, colour, marker)


def _draw_runs(axes: Any, rows: pd.DataFrame, colour: str, marker: Any) -> None:
    """Runs of one length."""
    several = rows["run_id"].nunique() > 1
    for _, run in rows.groupby("run_id", sort=False):
        axes.plot(
            run["step"], run["val_loss"], color=colour, linewidth=0.7 if several else 1.4, alpha=0.6 if several else 1
        )
    mean = rows.groupby("step")["val_loss"].mean()
    width = 1.8 if several else 0.0
    axes.plot(mean.index, mean, color=colour, linewidth=width, marker=marker, markersize=3.4)


def _legend(results: StudyResults) -> tuple[list[Any], list[str]]:
    colours, markers = style.rank_colours(results.ranks_me), style.rank_markers(results.ranks_me)
    handles = [Line2D([], [], color=colours[rank], marker=markers[rank], markersize=4) for rank in results.ranks_me]
    return handles, [f"r_me = {rank}" for rank in results.ranks_me]
