"""`mars doctor`: what is missing on this machine, and what training does on it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from flows.cli.errors import FAILURE, one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson


@one_message
def doctor(
    train: Annotated[
        bool, typer.Option("--train", help="Train for about a minute on the device at hand, and check the result.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="With --train: a checkpoint in place of the demo's small backbone.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check packages, device, memory, disk and MLflow; say what is missing and what to do about it.

    With --train: packs against separate runs, a final run, reload and merge, in fp32 and on a GPU also with bf16 and
    4-bit weights. The table is Markdown, to be pasted into an issue.
    """
    if model is not None and not train:
        raise ValueError("--model is for the training that --train does: give both, or neither")
    if train:
        _train(model, as_json)
    else:
        _examine(as_json)


def _examine(as_json: bool) -> None:
    from tasks.service.doctor import examine

    findings = examine()
    if as_json:
        print_json(findings)
    else:
        table = Table("check", "state", "found", "what to do")
        for finding in findings:
            table.add_row(finding["check"], finding["state"], finding["found"], finding["remedy"])
        console.print(table)
    if any(finding["state"] == "missing" for finding in findings):
        raise typer.Exit(FAILURE)


def _train(model: str | None, as_json: bool) -> None:
    from tasks.service.doctor import examine_training

    found = examine_training(model)
    if as_json:
        print_json(found.as_json())
    else:
        typer.echo(found.markdown)
    if found.failed:
        raise typer.Exit(FAILURE)
