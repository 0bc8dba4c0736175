"""`mars data`: look at a dataset before anything expensive."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.app import App
from flows.cli.errors import CALLERS_MISTAKE, one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson

if TYPE_CHECKING:
    from mars_core.data.check import DataReport

app = App(help="Look at a dataset.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look at a dataset."""


@app.command("check")
@one_message
def check(
    study: Annotated[str, typer.Argument(help="A STUDY.yaml, a path or a URL.")],
    as_json: AsJson = False,
    tokens: Annotated[
        bool, typer.Option("--tokens/--no-tokens", help="Count tokens with the model's processor (about 1 ms a row).")
    ] = True,
) -> None:
    """Check every row and image; list all bad rows with file, row and reason, and say what the data are like."""
    from mars_core.data.lengths import TokenCounter
    from tasks.inputs.data import check_data
    from tasks.inputs.opened import open_inputs
    from tasks.settings.find import find_study

    config = find_study(study)
    inputs = open_inputs(config)
    measure = TokenCounter(inputs.processor).measure if tokens else None
    report = check_data(config.data, measure=measure, max_tokens=config.recipe.max_tokens)
    good = bool(report.rows) and not report.problems
    found: dict[str, Any] = _as_json(report) | {"splits": None}
    refused = None
    if good:
        try:
            found["splits"] = inputs.data.summary()
        except ValueError as error:  # the report comes first: it says more than the first few
            refused = error
    if as_json:
        print_json(found)
    else:
        _print(report, found)
    if refused is not None:
        raise refused
    if not good:
        if not report.rows:
            report.raise_if_bad()
        raise typer.Exit(CALLERS_MISTAKE)


def _as_json(report: DataReport) -> dict[str, Any]:
    """The report as JSON values, without what was seen of every image."""
    places = [(row.source, row.reason) for row in report.problems]
    return {
        "rows": report.rows,
        "bad": [{"file": str(at.file), "row": at.row, "line": at.line, "reason": reason} for at, reason in places],
        "tasks": dict(report.tasks),
        "images_per_sample": {str(number): rows for number, rows in report.images_per_sample.items()},
        **{
            name: asdict(part) if (part := getattr(report, name)) else None
            for name in ("exchanges", "images", "tokens")
        },
        "notes": list(report.notes),
    }


def _print(report: DataReport, found: dict[str, Any]) -> None:
    for problem in report.problems:
        console.print(str(problem), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{report.rows} rows, {len(report.problems)} problems")
    for name in ("tasks", "images_per_sample"):
        console.print(f"{name.replace('_', ' ')}: {_counts(found[name])}", markup=False, highlight=False)
    console.print(_table(report))
    if report.tokens and report.tokens.too_long:
        console.print(f"{report.tokens.too_long} samples are longer than recipe.max_tokens: they will be dropped")
    if found["splits"]:
        parts = ", ".join(f"{name} {found['splits'][name]}" for name in ("train", "validation", "test"))
        console.print(f"splits: {parts}", highlight=False)
    for note in [*report.notes, *(found["splits"] or {}).get("notes", [])]:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items()) or "none"


def _table(report: DataReport) -> Table:
    table = Table("", "smallest", "median", "90%", "99%", "largest")
    images, tokens = report.images, report.tokens
    rows = {
        "exchanges": report.exchanges,
        f"image width ({images.count} images)" if images else "image width": images and images.width,
        "image height": images and images.height,
        "tokens": tokens and tokens.sample,
        "tokens of images": tokens and tokens.images,
        "tokens of answers": tokens and tokens.answers,
    }
    for name, spread in rows.items():
        if spread:
            table.add_row(name, *map(str, asdict(spread).values()))
    return table
