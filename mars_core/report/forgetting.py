"""Rows of the report on what was gained and forgotten, formatted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mars_core.report import formatting as f
from mars_core.report.data import ReportData

Row = dict[str, Any]


def forgetting_tasks(data: ReportData) -> list[str]:
    """Names of the tasks, in the order that they were asked in."""
    names = [task["name"] for found in data.forgetting.values() for task in found["tasks"]]
    return list(dict.fromkeys(names))


def forgetting_rows(data: ReportData) -> list[Row]:
    """One row per model: E, F and O with intervals, and the scores of each task."""
    return [
        {
            "name": name,
            **{symbol: _estimate(found[symbol]) for symbol in ("E", "F", "O")},
            "tasks": [_task_cell(found, task) for task in forgetting_tasks(data)],
        }
        for name, found in data.forgetting.items()
    ]


def forgetting_signs(data: ReportData) -> list[Row]:
    """What speaks against the models."""
    return [
        {"name": name, "severity": sign["severity"], "message": sign["message"]}
        for name, found in data.forgetting.items()
        for sign in found["signs"]
    ]


def tradeoff_rows(data: ReportData) -> list[Row]:
    """One row per pair, the smallest weighted loss first."""
    if data.tradeoffs is None:
        return []
    return [
        {
            "pair": f.pair(tuple(one["pair"])),
            "target": f.fixed(one["target"], 4),
            "upstream": f.fixed(one["upstream"], 4),
            "forgotten": f.fixed(one["forgotten"], 4),
            "weighted": f.fixed(one["weighted"], 4),
            "front": "yes" if one["on_front"] else "",
        }
        for one in data.tradeoffs["pairs"]
    ]


def _estimate(found: Mapping[str, float] | None) -> str:
    return f.DASH if found is None else f"{found['value']:.1f} ({found['low']:.1f} to {found['high']:.1f})"


def _task_cell(found: Mapping[str, Any], name: str) -> str:
    own = [task for task in found["tasks"] if task["name"] == name]
    return f"{own[0]['base']['value']:.1f} \u2192 {own[0]['tuned']['value']:.1f}" if own else f.DASH
