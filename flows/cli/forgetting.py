"""`mars forgetting`: what adapters gained on the target tasks, and what they forgot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from flows.cli.errors import one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson, Study


@one_message
def forgetting(
    study: Study,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", help="Also measure this folder of a PEFT adapter, whoever trained it; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print E (gained on the target tasks), F (forgotten upstream) and O of every adapter that was evaluated.

    The study's own adapters are measured by `mars evaluate` and `mars compare`, where the study has an `upstream`
    section.
    """
    from tasks.final.forgetting import forgetting_table
    from tasks.settings.find import find_study
    from tasks.storage.transfer import pull
    from tasks.study.opened import begun_study

    config = find_study(study)
    if not config.upstream:
        raise ValueError(
            "the study names no upstream tasks: add an `upstream` section with data that the base model could answer "
            "before (docs/what-it-forgets.md)"
        )
    pull(config.study)
    opened = begun_study(config)
    table = forgetting_table(opened) | _of_adapters(opened, adapter or [])
    if not table:
        raise ValueError("nothing has been measured with the present settings: run `mars evaluate` first")
    if as_json:
        print_json(table)
        return
    console.print(overall_table(table))
    console.print(_task_table(table))
    for name, found in table.items():
        for sign in found["signs"]:
            console.print(f"{sign['severity']}: {name}: {sign['message']}", markup=False, highlight=False)


def _of_adapters(study: Any, folders: list[str]) -> dict[str, dict[str, Any]]:
    if not folders:
        return {}
    from tasks.final.forgetting import adapter_scores, base_scores, described
    from tasks.study.lock import at_work_on

    with at_work_on(study.folder):
        base = base_scores(study)
        return {folder: described(base, adapter_scores(study, Path(folder)), ()) for folder in folders}


def overall_table(table: dict[str, dict[str, Any]]) -> Table:
    """E, F and O of each model with their intervals; heads stay whole however long a model's name is."""
    shown = Table(Column("points", overflow="fold"))
    for head in ("E: gained", "F: forgotten", "O: average"):
        shown.add_column(head, min_width=len("(-10.1 to -10.1)"))
    for model, found in table.items():
        shown.add_row(model, _estimate(found["E"], "+"), _estimate(found["F"], "+"), _estimate(found["O"], ""))
    return shown


def _task_table(table: dict[str, dict[str, Any]]) -> Table:
    """Scores before and after: tasks down, since there may be many of them, and models across."""
    names = list(dict.fromkeys(task["name"] for found in table.values() for task in found["tasks"]))
    shown = Table("before → after", *(Column(model, overflow="fold") for model in table))
    for name in names:
        shown.add_row(name, *(_change(found, name) for found in table.values()))
    return shown


def _change(found: dict[str, Any], name: str) -> str:
    own = [task for task in found["tasks"] if task["name"] == name]
    return f"{own[0]['base']['value']:.1f} → {own[0]['tuned']['value']:.1f}" if own else ""


def _estimate(found: dict[str, float] | None, sign: str) -> str:
    return "" if found is None else f"{found['value']:{sign}.1f} ({found['low']:.1f} to {found['high']:.1f})"
