"""`mars schedule`: recalibrate studies every night on the workers of a Prefect server."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from flows.cli.app import App
from flows.cli.errors import one_message
from flows.cli.nightly import Trigger
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson, Study, print_result

if TYPE_CHECKING:
    from tasks.nightly.schedules import NightlySchedule

app = App(help="Recalibrate studies every night on a Prefect server.", no_args_is_help=True)


@app.command("set")
@one_message
def set_(
    study: Study,
    cron: Annotated[
        str, typer.Option("--cron", help="When: minute, hour, day of month, month, day of week.")
    ] = "0 2 * * *",
    timezone: Annotated[str, typer.Option("--timezone", help="Time zone of --cron, such as Europe/Berlin.")] = "UTC",
    trigger: Annotated[
        Trigger, typer.Option("--trigger", help="On a material change, propose a final run or run it.")
    ] = Trigger.propose,
    as_json: AsJson = False,
) -> None:
    """Recalibrate a study by the clock; its settings are read anew each time from what is given here.

    Set again, all of it is replaced.
    """
    from tasks.nightly.schedules import set_schedule
    from tasks.settings.find import find_study, full_address

    config = find_study(study)
    done = set_schedule(config, full_address(study), cron, timezone, trigger.value)
    print_result({"schedule": done, "study": full_address(study), "when": f"{cron} ({timezone})"}, as_json)


@app.command("list")
@one_message
def list_(as_json: AsJson = False) -> None:
    """List the schedules, those made in the Prefect UI too."""
    from tasks.nightly.schedules import schedules

    known = schedules()
    if as_json:
        print_json([_as_json(one) for one in known])
    elif known:
        console.print(_table(known))
    else:
        typer.echo("no study has a schedule: `mars schedule set STUDY` makes one")


@app.command("remove")
@one_message
def remove(study: Study, as_json: AsJson = False) -> None:
    """End a study's schedule; a night that is under way goes on."""
    from tasks.nightly.schedules import remove_schedule
    from tasks.settings.find import find_study

    config = find_study(study)
    remove_schedule(config)
    print_result({"schedule": "removed", "study": config.study}, as_json)


def _as_json(one: NightlySchedule) -> dict[str, Any]:
    return asdict(one) | {"upcoming": one.upcoming.isoformat() if one.upcoming else None}


def _table(known: list[NightlySchedule]) -> Table:
    table = Table(Column("study", overflow="fold"), "when", "time zone", "trigger", "next run")
    for one in known:
        upcoming = f"{one.upcoming:%Y-%m-%d %H:%M %Z}" if one.upcoming else "not planned yet"
        table.add_row(
            one.study or "none given", one.when, one.timezone, one.trigger, upcoming if one.active else "paused"
        )
    return table
