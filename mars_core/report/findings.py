"""What a reader must not miss: fallbacks, missing laws, doubtful fits and the caller's notes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mars_core.fitting import LawFit
from mars_core.report.data import ReportData
from mars_core.report.study_results import MODULES, StudyResults

LAW_NAMES = {"performance": "Law P", "me": "Law C, vision encoder", "llm": "Law C, LLM"}
ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class Finding:
    """One thing to know: `severity` is error, warning or info; `where` names the part it is about."""

    severity: str
    where: str
    message: str
    code: str = ""


def findings(data: ReportData, results: StudyResults) -> list[Finding]:
    """All findings, the gravest first."""
    found = [
        *_notes(data),
        *_missing_laws(results),
        *(finding for name, fit in fits(results) for finding in _statuses(name, fit)),
        *_choice(results),
        *_calibration(results),
    ]
    return sorted(found, key=lambda finding: ORDER.get(finding.severity, 1))


def fits(results: StudyResults) -> list[tuple[str, LawFit]]:
    """The laws that could be fitted, under the keys of `LAW_NAMES`."""
    performance = [] if results.performance is None else [("performance", results.performance)]
    return performance + [(m, results.convergence[m]) for m in MODULES if m in results.convergence]


def _notes(data: ReportData) -> Iterator[Finding]:
    for note in data.notes:
        yield Finding("warning", "Study", str(note))


def _missing_laws(results: StudyResults) -> Iterator[Finding]:
    fitted = {name for name, _ in fits(results)}
    for name, title in LAW_NAMES.items():
        if name not in fitted:
            cause = results.causes.get(name, "no reason was recorded")
            yield Finding("error", title, f"could not be fitted: {cause}", "no_fit")


def _statuses(name: str, fit: LawFit) -> Iterator[Finding]:
    for status in fit.statuses:
        yield Finding(status.severity, LAW_NAMES[name], status.message, status.code)


def _choice(results: StudyResults) -> Iterator[Finding]:
    choice = results.choice
    if choice is None:
        return
    chosen = [candidate for candidate in choice.candidates if candidate.pair == choice.pair]
    if any(candidate.source.extrapolated for candidate in chosen):
        yield Finding(
            "warning", "Choice", "the chosen pair has a rank that was never calibrated: its loss is extrapolated"
        )
    elif not all(candidate.source.measured for candidate in chosen):
        message = "no calibration run has the chosen pair: its loss is read off the laws alone"
        yield Finding("warning", "Choice", message)
    if choice.n_undefined:
        n = len(choice.balance_curve)
        yield Finding(
            "warning",
            "Choice",
            f"the balance condition has no real, finite solution at {choice.n_undefined} of {n} LLM ranks",
        )


def _calibration(results: StudyResults) -> Iterator[Finding]:
    if results.metrics.empty:
        yield Finding("error", "Calibration", "there are no calibration runs")
        return
    if len(results.seeds) == 1:
        message = "one seed per pair: the noise between runs is not measured, so small differences may be chance"
        yield Finding("info", "Calibration", message)
    if results.D_target is not None and results.D_target > 4 * results.sizes[-1]:
        message = (
            f"the target size of {results.D_target:,} samples is {results.D_target / results.sizes[-1]:.1f} times the "
            f"largest calibrated size of {results.sizes[-1]:,}: the laws are extrapolated that far"
        )
        yield Finding("warning", "Calibration", message)
