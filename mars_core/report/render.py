"""Put tables, figures and the answer into the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from mars_core.evaluation.correlation import in_words
from mars_core.report import forgetting, formatting, layer_ranks, tables
from mars_core.report.answer import answer_of
from mars_core.report.data import ReportData
from mars_core.report.figures.balance_curve import balance_curve_figure
from mars_core.report.figures.best_rates import best_rates_figure
from mars_core.report.figures.calibration_curves import calibration_curves_figure
from mars_core.report.figures.final_curves import final_curves_figure
from mars_core.report.figures.forgetting_front import forgetting_front_figure
from mars_core.report.figures.law_convergence import law_convergence_figure
from mars_core.report.figures.law_performance import law_performance_figure
from mars_core.report.figures.layer_ranks import layer_ranks_figure
from mars_core.report.figures.perplexity_accuracy import correlation_of, perplexity_accuracy_figure
from mars_core.report.figures.perplexity_heatmap import earlier_sizes_figure, heatmap_figure
from mars_core.report.figures.predicted_heatmap import predicted_heatmap_figure
from mars_core.report.figures.rate_curves import rate_curves_figure
from mars_core.report.figures.svg import inline_svg, standalone_svg
from mars_core.report.findings import LAW_NAMES, findings, fit_details, fits
from mars_core.report.next_steps import next_steps
from mars_core.report.spread import spread_sentence
from mars_core.report.study_results import StudyResults, read_results

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Plot:
    """How one figure is made, and what it shows in words."""

    name: str
    description: str
    draw: Callable[[ReportData, StudyResults], Figure | None]


PLOTS = (
    Plot("heatmap", "Measured validation perplexity over rank pairs", lambda _, r: heatmap_figure(r)),
    Plot("earlier", "The same at earlier dataset sizes", lambda _, r: earlier_sizes_figure(r)),
    Plot("rates", "Validation perplexity over the learning rate", lambda _, r: rate_curves_figure(r)),
    Plot("best-rates", "Best learning rate over the ranks", lambda _, r: best_rates_figure(r)),
    Plot("law-p", "Validation loss against dataset size with law P", lambda _, r: law_performance_figure(r)),
    Plot("predicted", "Perplexity predicted at the target size", lambda _, r: predicted_heatmap_figure(r)),
    Plot("law-c", "Steps to convergence against dataset size with law C", lambda _, r: law_convergence_figure(r)),
    Plot("balance", "Balance curve over the grid of rank pairs", lambda _, r: balance_curve_figure(r)),
    Plot("correlation", "Perplexity against accuracy", lambda _, r: perplexity_accuracy_figure(r)),
    Plot("calibration", "Validation loss of the calibration runs", lambda _, r: calibration_curves_figure(r)),
    Plot("forgetting", "Loss on the target task against the upstream tasks", lambda d, _: forgetting_front_figure(d)),
    Plot("layer-ranks", "Gradient norms and ranks over the layers", lambda d, _: layer_ranks_figure(d)),
    Plot("finals", "Loss of the final fine-tunes", lambda d, _: final_curves_figure(d.finals)),
)


def render_report(data: ReportData) -> str:
    """The report as one HTML document that loads nothing from anywhere.

    Args:
        data: results of one revision; stages that have not run yet may be missing.

    Raises:
        ValueError: a stored law, choice or table is not what its writer makes.
    """
    results = read_results(data)
    return _page(data, results, _figures(data, results))


def render_with_figures(data: ReportData) -> tuple[str, dict[str, str]]:
    """The report as `render_report` makes it, and the figures that the results allow as SVG documents by name."""
    results = read_results(data)
    figures = _figures(data, results)  # once for both: drawing is what a report takes its time for
    page = _page(data, results, figures)
    return page, {name: standalone_svg(figure) for name, figure in figures.items()}


def _figures(data: ReportData, results: StudyResults) -> dict[str, Figure]:
    drawn = {plot.name: plot.draw(data, results) for plot in PLOTS}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _page(data: ReportData, results: StudyResults, figures: Mapping[str, Figure]) -> str:
    return _environment().get_template(TEMPLATE).render(**_context(data, results, figures))


def _context(data: ReportData, results: StudyResults, figures: Mapping[str, Figure]) -> dict[str, Any]:
    correlation = correlation_of(results)
    return {
        "data": data,
        "correlation": correlation,
        "correlation_words": in_words(correlation) if correlation else "",
        "results": results,
        "answer": answer_of(data, results),
        "next_steps": next_steps(data, results),
        "findings": findings(data, results),
        "details": fit_details(data, results),
        "fits": [(name, LAW_NAMES[name], fit) for name, fit in fits(results)],
        "missing_laws": {name: results.causes.get(name, "") for name in LAW_NAMES} | _fitted(results),
        "spread": "" if results.metrics.empty else spread_sentence(results),
        "plots": {
            plot.name: inline_svg(figures[plot.name], plot.name, plot.description) if plot.name in figures else None
            for plot in PLOTS
        },
        "css": Markup(files("mars_core.report").joinpath("report.css").read_text(encoding="utf-8")),
        "f": formatting,
        "t": tables,
        "g": forgetting,
        "lr": layer_ranks,
    }


def _fitted(results: StudyResults) -> dict[str, None]:
    return {name: None for name, _ in fits(results)}


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("mars_core.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
