"""A grid of values over rank pairs, and the marks that single out pairs; shared by the heatmaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from mars_core.ranks import Pair
from mars_core.report.figures import style
from mars_core.report.study_results import StudyResults

DARK_TEXT, LIGHT_TEXT = "#10202b", "#ffffff"
COLOURS = LinearSegmentedColormap.from_list("perplexity", colormaps["YlGnBu"](np.linspace(0.02, 0.82, 64)))
HALF = 0.47  # half of a cell's side
LEGEND_WIDTH = 1.6  # inches beside a single grid


@dataclass(frozen=True)
class RankGrid:
    """Values by pair over ordered ranks; a pair without value stays an empty cell.

    Attributes:
        ranks_me: vision ranks, from bottom to top.
        ranks_llm: LLM ranks, from left to right.
        values: (r_me, r_llm) -> value, smaller is better (lighter).
        small_print: a second, smaller line for some cells.
    """

    ranks_me: Sequence[int]
    ranks_llm: Sequence[int]
    values: Mapping[Pair, float]
    small_print: Mapping[Pair, str]

    def position(self, pair: Pair) -> tuple[int, int] | None:
        """Column and row of a pair, None outside the grid."""
        r_me, r_llm = pair
        if r_me not in self.ranks_me or r_llm not in self.ranks_llm:
            return None
        return list(self.ranks_llm).index(r_llm), list(self.ranks_me).index(r_me)

    def ink(self, pair: Pair) -> str:
        """Text colour that can be read on the pair's cell."""
        value = self.values.get(pair)
        return style.MUTED if value is None else _ink_on(COLOURS(self._scale()(value)))

    def draw(self, axes: Any, *, digits: int, size: float, print_values: bool = True) -> None:
        """Cells with their values, and the ranks along both axes."""
        for r_me in self.ranks_me:
            for r_llm in self.ranks_llm:
                self._draw_cell(axes, (r_me, r_llm), digits, size, print_values)
        axes.set_xlim(-0.5, len(self.ranks_llm) - 0.5)
        axes.set_ylim(-0.5, len(self.ranks_me) - 0.5)
        thin = 1 if print_values else 2
        axes.set_xticks(range(0, len(self.ranks_llm), thin), [str(rank) for rank in self.ranks_llm[::thin]])
        axes.set_yticks(range(0, len(self.ranks_me), thin), [str(rank) for rank in self.ranks_me[::thin]])
        axes.set_facecolor("none")
        axes.tick_params(colors=style.MUTED, labelcolor=style.INK, labelsize=style.SMALL, length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    def _draw_cell(self, axes: Any, pair: Pair, digits: int, size: float, print_value: bool) -> None:
        at, value = self.position(pair), self.values.get(pair)
        if at is None:
            return
        colour = "none" if value is None else COLOURS(self._scale()(value))
        axes.add_patch(_box(at, facecolor=colour, edgecolor=style.GRID if value is None else "none"))
        if not print_value:
            return
        text = "no value" if value is None else f"{value:.{digits}f}"
        below = self.small_print.get(pair)
        axes.text(
            at[0], at[1] + (0.1 if below else 0.0), text, ha="center", va="center", fontsize=size, color=self.ink(pair)
        )
        if below:
            axes.text(
                at[0], at[1] - 0.2, below, ha="center", va="center", fontsize=style.SMALL - 1, color=self.ink(pair)
            )

    def _scale(self) -> Normalize:
        return Normalize(min(self.values.values(), default=0.0), max(self.values.values(), default=1.0))


def marked_grid_figure(grid: RankGrid, results: StudyResults, corner_marks: Mapping[str, Pair | None]) -> Figure:
    """One large grid with the chosen pair outlined, balanced pairs dotted and words in the corners of single cells.

    Args:
        grid: what to draw.
        results: where the choice comes from.
        corner_marks: words -> the pair whose cell they stand in, None where there is none.
    """
    width = min(style.WIDTH, 1.0 + LEGEND_WIDTH + 1.25 * len(grid.ranks_llm))
    figure = style.new_figure(max(2.4, min(5.5, 0.8 + 0.82 * len(grid.ranks_me))), width)
    axes = figure.subplots()
    grid.draw(axes, digits=3, size=style.FONT + 1)
    style.label(axes, x="LLM rank  r_llm", y="vision rank  r_me")
    style.side_legend(figure, _mark_choice(axes, grid, results))
    for height, (words, pair) in enumerate(corner_marks.items()):
        if pair is not None and grid.position(pair) is not None:
            _write_in_corner(axes, grid, pair, words, at_top=height == 0)
    return figure


def _mark_choice(axes: Any, grid: RankGrid, results: StudyResults) -> list[Any]:
    """Outline and dots; returns the legend's handles."""
    choice = results.choice
    if choice is None:
        return []
    handles: list[Any] = []
    if (at := grid.position(choice.pair)) is not None:
        axes.add_patch(_box(at, facecolor="none", edgecolor=style.ACCENT, linewidth=3.2))
        handles.append(Patch(facecolor="none", edgecolor=style.ACCENT, linewidth=2.5, label="chosen pair"))
    dots = [at for pair in results.balanced_pairs if (at := grid.position(pair)) is not None]
    if dots:
        look: dict[str, Any] = {"marker": "o", "linestyle": "", "color": style.ACCENT, "markersize": 5.5}
        axes.plot([x + 0.37 for x, _ in dots], [y + 0.35 for _, y in dots], markeredgecolor="white", zorder=4, **look)
        handles.append(Line2D([], [], label="balanced pair", **look))
    return handles


def _write_in_corner(axes: Any, grid: RankGrid, pair: Pair, words: str, *, at_top: bool) -> None:
    at = grid.position(pair)
    assert at is not None
    y, align = (at[1] + 0.4, "top") if at_top else (at[1] - 0.41, "bottom")
    axes.text(
        at[0] - 0.43,
        y,
        words,
        ha="left",
        va=align,
        fontsize=style.SMALL - 1.3,
        fontstyle="italic",
        color=grid.ink(pair),
    )


def _box(at: tuple[int, int], **look: Any) -> Rectangle:
    return Rectangle((at[0] - HALF, at[1] - HALF), 2 * HALF, 2 * HALF, **look)


def _ink_on(colour: Sequence[float]) -> str:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return DARK_TEXT if luminance > 0.3 else LIGHT_TEXT
