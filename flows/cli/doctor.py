"""`mars doctor`: what is missing on this machine."""

from __future__ import annotations

import typer
from rich.table import Table

from flows.cli.errors import FAILURE, one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson


@one_message
def doctor(as_json: AsJson = False) -> None:
    """Check packages, device, memory, disk and MLflow; say what is missing and what to do about it."""
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
