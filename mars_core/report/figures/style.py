"""The look that every figure shares: sizes, colours, markers, axes.

Colours are placeholders that `svg.inline_svg` turns into the page's CSS variables, so that one drawing
suits light pages, dark pages and paper. Ranks are ordered, and so is their palette (viridis: readable with
any colour vision); every rank also has a marker of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

INK = "#010201"
MUTED = "#010202"
GRID = "#010203"
CARD = "#010204"
ACCENT = "#010205"
ME = "#010206"
LLM = "#010207"
RANK_SLOTS = tuple(f"#01030{slot}" for slot in range(8))

CSS_NAMES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    CARD: "var(--card)",
    ACCENT: "var(--accent)",
    ME: "var(--me)",
    LLM: "var(--llm)",
    **{colour: f"var(--rank-{slot})" for slot, colour in enumerate(RANK_SLOTS)},
}

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p")
WIDTH = 10.0  # inches; the page scales it to its column
FONT = 9.0
SMALL = 8.0
BAND = 0.14


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty transparent figure with constrained layout."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def panels(figure: Figure, n: int, *, columns: int = 4, sharey: bool = True) -> list[Any]:
    """`n` axes in reading order, at most `columns` a row, sharing both scales."""
    columns = min(n, columns)
    rows = -(-n // columns)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey, sharex=True)
    flat = list(grid.flat)
    for spare in flat[n:]:
        spare.remove()
    for index, axes in enumerate(flat[:n]):
        dress(axes)
        axes.tick_params(labelbottom=index + columns >= n)
    return flat[:n]


def dress(axes: Any) -> None:
    """Apply spines, grid, colours and text sizes to one set of axes."""
    axes.set_facecolor("none")
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
        axes.spines[side].set_linewidth(0.8)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=SMALL, length=3, which="both")


def label(axes: Any, *, title: str = "", x: str = "", y: str = "") -> None:
    """Set title and axis labels in the page's ink."""
    if title:
        axes.set_title(title, color=INK, fontsize=FONT, fontweight="bold", loc="left")
    if x:
        axes.set_xlabel(x, color=INK, fontsize=FONT)
    if y:
        axes.set_ylabel(y, color=INK, fontsize=FONT)


def figure_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend below all panels."""
    if handles:
        columns = min(len(handles), 7)
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL
        )
        _ink(legend)


def side_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend to the right of the panels; labels are the handles' own."""
    if handles:
        _ink(figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=SMALL))


def _ink(legend: Any) -> None:
    for text in legend.get_texts():
        text.set_color(INK)


def rank_colours(ranks: Sequence[int]) -> dict[int, str]:
    """A colour per rank, from low (dark) to high, spread over the palette."""
    ordered = sorted(set(ranks))
    slots = np.linspace(0, len(RANK_SLOTS) - 1, max(len(ordered), 2)).round().astype(int)
    return {rank: RANK_SLOTS[int(slot)] for rank, slot in zip(ordered, slots, strict=False)}


def rank_markers(ranks: Sequence[int]) -> dict[int, str]:
    """A marker per rank; they repeat after eight."""
    return {rank: MARKERS[index % len(MARKERS)] for index, rank in enumerate(sorted(set(ranks)))}


def log_count_axis(axis: Any, low: float, high: float, *, most: int = 6) -> None:
    """A log axis for counts, with plain integers (powers of two) as ticks.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        low: smallest value shown, positive.
        high: largest value shown.
        most: most ticks.
    """
    first, last = int(np.ceil(np.log2(low) - 1e-9)), int(np.floor(np.log2(high) + 1e-9))
    stride = max(1, -(-(last - first + 1) // most))
    exponents = range(last, first - 1, -stride)
    _fix_log(axis, [2.0**exponent for exponent in exponents], low, high)


def log_value_axis(axis: Any, low: float, high: float, *, most: int = 6) -> None:
    """A log axis for losses or steps, with round decimals as ticks even within one decade."""
    _fix_log(axis, round_ticks(low, high, most), low, high)


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between low and high, about evenly spread in logarithm, at most `most`."""
    for mantissas in _MANTISSAS:
        ticks = [m * 10.0**e for e in range(_decade(low), _decade(high) + 1) for m in mantissas]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= most:
            break
    if len(inside) >= 3:
        return inside
    step = _nice_step((high - low) / (most - 1))
    count = int(np.floor(high / step)) - int(np.ceil(low / step)) + 1
    return [float((np.ceil(low / step) + i) * step) for i in range(max(count, 1))]


_MANTISSAS = (
    (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0),
    (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0),
    (1.0, 2.0, 3.0, 5.0),
    (1.0, 2.0, 5.0),
    (1.0, 3.0),
    (1.0,),
)


def _decade(value: float) -> int:
    return int(np.floor(np.log10(value)))


def _nice_step(raw: float) -> float:
    scale = 10.0 ** np.floor(np.log10(max(raw, 1e-12)))
    return float(next(step * scale for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * scale >= raw * 0.999))


def _fix_log(axis: Any, ticks: Sequence[float], low: float, high: float) -> None:
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))
    axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})


def plain_number(value: float) -> str:
    """A tick label without exponents: 2048, 0.25, 1.4."""
    if abs(value - round(value)) < 1e-9 * max(abs(value), 1.0):
        return f"{round(value):d}"
    return f"{value:.6g}"
