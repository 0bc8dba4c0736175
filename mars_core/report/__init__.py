"""The report: one self-contained HTML file on a study's choice and its evidence. Imports no torch."""

from mars_core.report.data import ReportData
from mars_core.report.render import render_report, render_with_figures

__all__ = ["ReportData", "render_report", "render_with_figures"]
