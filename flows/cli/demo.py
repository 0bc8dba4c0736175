"""`mars demo`: the whole pipeline on the bundled data and backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.errors import one_message
from flows.cli.output import print_json, print_summary
from flows.cli.stages import AsJson, this_command
from flows.cli.temporary_server import start_temporary_server


@one_message
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where data, study and report go.")] = Path("mars-demo"),
    as_json: AsJson = False,
) -> None:
    """Run everything on the bundled data and backbone: about 20 minutes on two cores, installation included, no GPU."""
    from flows.study import study_flow
    from tasks.settings.demo import prepare_demo

    config = prepare_demo(folder)
    start_temporary_server()
    summary = study_flow(config, command=this_command())
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)
