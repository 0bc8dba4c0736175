"""`mars forgetting`: what adapters gained on the target tasks, and what they forgot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

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
    console.print(_table(table))
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


def _table(table: dict[str, dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(task["name"] for found in table.values() for task in found["tasks"]))
    shown = Table("points", "E: gained", "F: forgotten", "O: average", *names)
    for model, found in table.items():
        cells = {task["name"]: f"{task['base']['value']:.1f} → {task['tuned']['value']:.1f}" for task in found["tasks"]}
        overall = [_estimate(found[symbol]) for symbol in ("E", "F", "O")]
        shown.add_row(model, *overall, *(cells.get(name, "") for name in names))
    return shown


def _estimate(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['value']:+.1f} ({found['low']:.1f} to {found['high']:.1f})"
