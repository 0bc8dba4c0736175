"""A night's report as Markdown: what drifted, what it means, what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mars_core.drift.choice import ChoiceDrift
from mars_core.drift.data import DataDrift
from mars_core.drift.laws import LAW_NAMES, CoefficientDrift, Interval
from mars_core.markdown import markdown_table, plain
from mars_core.records import Record


@dataclass(frozen=True)
class Night(Record):
    """Everything that a night's report says.

    Attributes:
        study: its name.
        revision: number of the revision that the choice belongs to.
        changes: what differs from the last night, one line each.
        trained: calibration runs trained tonight.
        adopted: calibration runs taken over from older revisions.
        compared_with: what the drift is measured against, None where there is nothing.
        data: what changed in the data, None where the older state was not recorded.
        laws: coefficients before and now.
        choice: the new choice against the champion.
    """

    study: str
    revision: int
    changes: Sequence[str]
    trained: int
    adopted: int
    compared_with: str | None
    data: DataDrift | None
    laws: Sequence[CoefficientDrift]
    choice: ChoiceDrift


def night_as_markdown(night: Night, done: str) -> str:
    """The report, for the study folder and for the Prefect UI. `done`: what was done about it, a sentence."""
    compared = [] if night.compared_with is None else [f"Data and laws are compared with {plain(night.compared_with)}."]
    parts = [
        f"# Nightly recalibration of {plain(night.study)}: revision {night.revision:03d}",
        f"**{night.choice.verdict}**: {plain(night.choice.reason)} {plain(done)}",
        f"Calibration runs: {night.trained} trained tonight, {night.adopted} taken over from older revisions.",
        "## What changed since the last night",
        "\n".join(f"- {plain(change)}" for change in night.changes) or "Nothing.",
        *compared,
        "## Data",
        _data(night.data),
        "## Laws",
        _laws(night.laws),
    ]
    return "\n\n".join(parts) + "\n"


def quiet_night_as_markdown(study: str, revision: int, choice: ChoiceDrift, done: str) -> str:
    """The report of a night that found everything as the last one left it."""
    return (
        f"# Nightly recalibration of {plain(study)}: revision {revision:03d}\n\n"
        "Data, model, recipe and settings are as they were. "
        f"**{choice.verdict}**: {plain(choice.reason)} {plain(done)}\n"
    )


def _data(drift: DataDrift | None) -> str:
    if drift is None:
        return "No older state of the data was recorded."
    if not drift.changed:
        return f"Unchanged (hash `{drift.hash_now}`)."
    splits = [[s.split, s.before, s.now, s.added, s.removed, s.from_other_splits] for s in drift.splits]
    tasks = [[t.split, plain(t.task), t.before, t.now] for t in drift.tasks]
    parts = [
        f"Hash `{drift.hash_before}` before, `{drift.hash_now}` now.",
        markdown_table(["split", "before", "now", "added", "removed", "of the added, from another split"], splits),
    ]
    return "\n\n".join([*parts, markdown_table(["split", "task type", "before", "now"], tasks)] if tasks else parts)


def _laws(drifts: Sequence[CoefficientDrift]) -> str:
    rows = [
        [
            LAW_NAMES[d.law],
            d.symbol,
            _value(d.before, d.before_interval),
            _value(d.now, d.now_interval),
            "apart" if d.apart else "" if d.same_form else "another form of the law",
        ]
        for d in drifts
    ]
    return (
        markdown_table(["law", "coefficient", "before", "now", "95% intervals"], rows) if rows else "No law was fitted."
    )


def _value(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if interval is None else f"{value:.4g} ({interval[0]:.4g} to {interval[1]:.4g})"
