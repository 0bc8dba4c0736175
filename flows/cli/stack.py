"""`mars up` and `mars down`: Prefect, MLflow and workers on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.environment import services_environment
from flows.cli.errors import interrupted, one_message
from flows.cli.output import print_json
from flows.cli.stages import AsJson

Folder = Annotated[
    Path | None,
    typer.Option("--folder", help="Databases, artifacts and logs of the stack. [default: MARS_STACK or ~/.mars/stack]"),
]


@one_message
def up(
    prefect_port: Annotated[int, typer.Option("--prefect-port", help="Port of the Prefect server and UI.")] = 4200,
    mlflow_port: Annotated[int, typer.Option("--mlflow-port", help="Port of the MLflow server and UI.")] = 5000,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Start Prefect, MLflow and workers on this machine, and register the deployments.

    Everything listens on 127.0.0.1 and goes on when the terminal is closed; `mars down` ends it. Running it again
    starts what has ended meanwhile. There is one training worker per GPU that CUDA_VISIBLE_DEVICES leaves visible.
    """
    from tasks.service.stack.local import bring_up, default_folder, names_of_running
    from tasks.service.stack.services import Stack

    stack = Stack((folder or default_folder()).resolve(), prefect_port, mlflow_port)
    try:
        processes = bring_up(stack, services_environment())
    except KeyboardInterrupt as error:
        raise interrupted(_left_running(names_of_running(stack.folder), folder)) from error
    if as_json:
        logs = {process.name: process.log for process in processes}
        print_json({"prefect": stack.prefect_ui, "mlflow": stack.mlflow, "settings": stack.settings, "logs": logs})
        return
    typer.echo(f"Prefect: {stack.prefect_ui}\nMLflow:  {stack.mlflow}\nlogs:")
    for process in processes:
        typer.echo(f"  {process.name}: {process.log}")
    typer.echo("for commands in this terminal:")
    for name, value in stack.settings.items():
        typer.echo(f"  export {name}={value}")
    typer.echo(f"to stop all of this: mars down{f' --folder {folder}' if folder else ''}")


def _left_running(running: list[str], folder: Path | None) -> str:
    if not running:
        return "nothing was started"
    names = " and ".join(filter(None, [", ".join(running[:-1]), running[-1]]))
    option = f" --folder {folder}" if folder else ""
    verb = "keeps" if len(running) == 1 else "keep"
    return f"{names} {verb} running: `mars down{option}` stops them, the same command again goes on from here"


@one_message
def down(folder: Folder = None) -> None:
    """Stop what `mars up` started; its databases and artifacts stay.

    Flow runs that its workers are training end as crashed; start them again later and they go on.
    """
    from tasks.service.stack.local import bring_down, default_folder

    stopped = bring_down((folder or default_folder()).resolve())
    typer.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")
