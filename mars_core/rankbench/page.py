"""RankBench's page: its tables and figures as one HTML document that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mars_core.rankbench.figures import frontier_figure, heatmaps_figure
from mars_core.rankbench.tables import tables_of
from mars_core.rankbench.truth import Truth
from mars_core.rankbench.verdicts import of_default
from mars_core.report.figures.svg import inline_svg

FRONTIER = "Mean regret against search cost of every method"
HEATMAPS = "Test perplexity of every pair in every cell, with the choices of MARS"


def render_page(cells: pd.DataFrame, records: pd.DataFrame, truths: Mapping[str, Truth]) -> str:
    """The page of a replay.

    Args:
        cells: what each cell is.
        records: what every method came to.
        truths: of each cell under the default alpha rule.
    """
    environment = Environment(
        loader=PackageLoader("mars_core.rankbench", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = of_default(records)
    shown = shown if len(shown) else records[records["rule"] == "constant"]
    return environment.get_template("page.html.j2").render(
        css=Markup(files("mars_core.report").joinpath("report.css").read_text(encoding="utf-8")),
        tables=tables_of(cells, records),
        n_cells=len(truths),
        frontier=inline_svg(frontier_figure(shown), "frontier", FRONTIER),
        heatmaps=inline_svg(heatmaps_figure(truths, records), "heatmaps", HEATMAPS),
    )
