"""Gradient norms of a pair's layers, and beside them the ranks that were shared out by them, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from mars_core.report.data import ReportData
from mars_core.report.figures import style

MOST_METHODS = 3
"""Panels of ranks; further methods are in the table alone."""
NAMES = {"me": "vision encoder", "llm": "LLM"}


def layer_ranks_figure(data: ReportData) -> Figure | None:
    """A row of panels for each module; None where no ranks were shared out."""
    shared = data.layer_ranks.get("shared", [])[-MOST_METHODS:]
    if not shared:
        return None
    modules = list(dict.fromkeys(row["module"] for own in shared for row in own["rows"]))
    components = list(dict.fromkeys(row["component"] for own in shared for row in own["rows"]))
    looks = {
        name: (style.RANK_SLOTS[slot % len(style.RANK_SLOTS)], style.MARKERS[slot % len(style.MARKERS)])
        for slot, name in enumerate(components)
    }
    figure = style.new_figure(2.6 * len(modules) + 0.4)
    grid = figure.subplots(len(modules), 1 + len(shared), squeeze=False, sharex="row")
    lines: dict[str, Any] = {}
    for number, module in enumerate(modules):
        norms, *ranks = grid[number]
        first = [row for row in shared[-1]["rows"] if row["module"] == module]
        lines |= _panel(norms, first, "gradient_norm", looks)
        style.label(norms, title=f"{NAMES.get(module, module)}: gradient norm", y="average norm")
        for axes, own in zip(ranks, shared, strict=True):
            rows = [row for row in own["rows"] if row["module"] == module]
            lines |= _panel(axes, rows, "rank", looks)
            for uniform in {row["uniform_rank"] for row in rows}:
                axes.axhline(uniform, color=style.MUTED, linewidth=0.8, linestyle="--")
            axes.set_ylim(bottom=0)
            style.label(axes, title=own["name"], y="rank")
        for axes in grid[number]:
            style.label(axes, x="block")
    style.figure_legend(figure, list(lines.values()), list(lines))
    return figure


def _panel(
    axes: Any, rows: Sequence[Mapping[str, Any]], column: str, looks: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """A line per component over the blocks, counted from 1; gives the lines by component."""
    style.dress(axes)
    axes.xaxis.get_major_locator().set_params(integer=True)
    drawn = {}
    for name in dict.fromkeys(row["component"] for row in rows):
        own = sorted((row["block"] + 1, row[column]) for row in rows if row["component"] == name)
        colour, marker = looks[name]
        (drawn[name],) = axes.plot(*zip(*own, strict=True), color=colour, marker=marker, markersize=3.5, linewidth=1.1)
    return drawn
