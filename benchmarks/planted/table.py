"""The tables of a record, narrow enough for a terminal of 120 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 120
FIGURES = {
    "mean_regret": "mean regret",
    "median_regret": "median",
    "share_over_1_percent": "over 1%",
    "mean_parameters": "parameters",
    "no_effect_cheap": "cheap if no effect",
    "seconds": "s per choice",
    "choices": "choices",
}
STATED = {
    "cheaper_taken": "cheaper taken",
    "cheaper_within_margin_of_best": "… within margin of best",
    "cheaper_within_margin_of_other": "… of the other",
    "expected_regret": "expected regret",
    "mean_regret": "true regret",
    "excess_coverage": "excess covered",
    "excess_width": "its width",
    "loss_coverage": "loss covered",
    "loss_width": "its width, nats",
}
VERDICT = {"share": "share", "mean_regret": "mean regret", "share_over_1_percent": "over 1%", "right": "right"}
PLAIN = ("choices", "seconds", "mean_parameters", "loss_width")


def print_record(record: Mapping[str, Any]) -> None:
    """All tables of a record, the rules of an earlier version among them."""
    console = Console(width=WIDTH)
    rules = with_before(record)
    console.print(_table("All choices", {name: of["all"]["all"] for name, of in rules.items()}, FIGURES))
    for split in ("half and target", "shape"):
        console.print(_crossed(f"Mean regret by {split}", rules, split, "mean_regret"))
    stating = {name: of for name, of in rules.items() if "verdicts" in of["all"]["all"]}
    if not stating:
        return
    for group in next(iter(stating.values()))["half"]:
        console.print(_table(f"What is stated, {group}", {n: of["half"][group] for n, of in stating.items()}, STATED))
    for split in ("half and target", "shape"):
        for key, what in (("excess_coverage", "excess"), ("loss_coverage", "final-loss")):
            if any(of["all"]["all"][key] is not None for of in stating.values()):
                console.print(_crossed(f"Coverage of 95% {what} intervals by {split}", stating, split, key))
    console.print(_verdicts(stating))


def with_before(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record's rules and, under names of their own, those measured at an earlier commit."""
    before = record.get("before", {}).get("rules", {})
    return {**record["rules"], **{f"before: {name}": of for name, of in before.items()}}


def _table(title: str, rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> Table:
    """One row per rule, one column per figure."""
    table = _empty(title, ["rule", *columns.values()])
    for name, figures in rows.items():
        table.add_row(name, *(_show(key, figures.get(key)) for key in columns))
    return table


def _crossed(title: str, rules: Mapping[str, Any], split: str, key: str) -> Table:
    """One row per group, one column per rule."""
    table = _empty(title, ["", *rules])
    groups = list(dict.fromkeys(group for of in rules.values() for group in of[split]))
    for group in groups if split == "shape" else sorted(groups, key=_half_then_size):
        table.add_row(group, *(_show(key, of[split].get(group, {}).get(key)) for of in rules.values()))
    return table


def _verdicts(rules: Mapping[str, Any]) -> Table:
    table = _empty("Verdicts", ["rule", "verdict", *VERDICT.values()])
    for name, of in rules.items():
        for verdict, figures in of["all"]["all"]["verdicts"].items():
            table.add_row(name, verdict, *(_show(key, figures[key]) for key in VERDICT))
    return table


def _empty(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", padding=(0, 0, 0, 1), pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold", no_wrap=i == 0)
    return table


def _half_then_size(group: str) -> tuple[str, int]:
    half, size = group.split(", ")
    return half, int(size)


def _show(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key == "choices":
        return f"{value:.0f}"
    return f"{value:.3g}" if key in PLAIN else f"{100 * value:.2f}%" if "regret" in key else f"{100 * value:.1f}%"
