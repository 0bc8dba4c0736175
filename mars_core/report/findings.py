"""What a reader must not miss, since it may change the decision; and apart from it, what the fits say of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mars_core.fitting import LawFit
from mars_core.report.data import ReportData
from mars_core.report.study_results import MODULES, StudyResults
from mars_core.search import Choice

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
    """What may change the decision, the gravest first."""
    return [
        *_no_runs(results),
        *(_missing_laws(results, "error") if _laws_decided(results) else ()),
        *_choice(results),
        *(Finding("warning", "Study", str(warning)) for warning in data.warnings),
    ]


def fit_details(data: ReportData, results: StudyResults) -> list[Finding]:
    """What the fits say of themselves and how the results came about, the gravest first: it changes no decision."""
    found = [
        *(() if _laws_decided(results) else _missing_laws(results, "info")),
        *(finding for name, fit in fits(results) for finding in _statuses(name, fit)),
        *_undefined_balance(results),
        *(Finding("info", "Study", str(note)) for note in data.notes),
    ]
    return sorted(found, key=lambda finding: ORDER.get(finding.severity, 1))


def _laws_decided(results: StudyResults) -> bool:
    """Whether a missing law may have changed the pair: by `law: paper`, and in choices of earlier versions."""
    choice = results.choice
    return choice is not None and (choice.rule == "paper" or choice.verdict == "fallback")


def fits(results: StudyResults) -> list[tuple[str, LawFit]]:
    """The laws that could be fitted, under the keys of `LAW_NAMES`."""
    performance = [] if results.performance is None else [("performance", results.performance)]
    return performance + [(m, results.convergence[m]) for m in MODULES if m in results.convergence]


def _missing_laws(results: StudyResults, severity: str) -> Iterator[Finding]:
    fitted = {name for name, _ in fits(results)}
    for name, title in LAW_NAMES.items():
        if name not in fitted:
            cause = results.causes.get(name, "no reason was recorded")
            yield Finding(severity, title, f"could not be fitted: {cause}", "no_fit")


def _statuses(name: str, fit: LawFit) -> Iterator[Finding]:
    for status in fit.statuses:
        yield Finding(status.severity, LAW_NAMES[name], status.message, status.code)


def _choice(results: StudyResults) -> Iterator[Finding]:
    choice = results.choice
    if choice is None:
        return
    for warning in choice.warnings:
        yield Finding("warning", "Choice", warning)
    if choice.regret is None and not choice.warnings:
        yield from _of_an_earlier_version(choice)


def _of_an_earlier_version(choice: Choice) -> Iterator[Finding]:
    """Earlier versions left these two to the report."""
    chosen = [candidate for candidate in choice.candidates if candidate.pair == choice.pair]
    if any(candidate.source.extrapolated for candidate in chosen):
        message = "the chosen pair has a rank that was never calibrated: its loss is extrapolated"
        yield Finding("warning", "Choice", message)
    elif not all(candidate.source.measured for candidate in chosen):
        yield Finding(
            "warning", "Choice", "no calibration run has the chosen pair: its loss is read off its neighbours"
        )


def _undefined_balance(results: StudyResults) -> Iterator[Finding]:
    choice = results.choice
    if choice is not None and choice.n_undefined:
        of = len(choice.balance_curve)
        message = f"the balance condition has no real, finite solution at {choice.n_undefined} of {of} LLM ranks"
        yield Finding("info", "Balance", message)


def _no_runs(results: StudyResults) -> Iterator[Finding]:
    if results.metrics.empty:
        yield Finding("error", "Calibration", "there are no calibration runs")
