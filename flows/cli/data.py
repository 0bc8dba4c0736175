"""`mars data`: look at a dataset before anything expensive."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from flows.cli.errors import CALLERS_MISTAKE, one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson, find_study

app = typer.Typer(help="Look at a dataset.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look at a dataset."""


@app.command("check")
@one_message
def check(
    study: Annotated[str, typer.Argument(help="A STUDY.yaml, a path or a URL.")],
    as_json: AsJson = False,
) -> None:
    """Check every row and image; list all bad rows with file, row and reason."""
    from tasks.data import check_data, load_data

    config = find_study(study)
    report = check_data(config.data)
    bad = [{"file": str(row.source.file), "row": row.source.row, "reason": row.reason} for row in report.problems]
    statistics = asdict(report.images) if report.images else None
    good = bool(report.rows) and not bad
    found = {"rows": report.rows, "bad": bad, "tasks": dict(report.tasks), "images": statistics}
    found |= {"notes": list(report.notes), "splits": load_data(config.data).summary() if good else None}
    if as_json:
        print_json(found)
    else:
        _print(found)
    if not good:
        if not report.rows:
            report.raise_if_bad()
        raise typer.Exit(CALLERS_MISTAKE)


def _print(found: dict[str, object]) -> None:
    for row in found["bad"]:  # type: ignore[attr-defined]
        console.print(f"{row['file']}, row {row['row']}: {row['reason']}", markup=False, highlight=False)
    console.print(f"{found['rows']} rows, {len(found['bad'])} problems")  # type: ignore[arg-type]
    for name in ("tasks", "images", "splits"):
        if found[name]:
            console.print(f"{name}: {found[name]}", markup=False)
    for note in found["notes"]:  # type: ignore[attr-defined]
        console.print(f"note: {note}", markup=False)
