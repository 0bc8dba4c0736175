"""Commands of a study that goes on: a night's recalibration, and taking over a final run by hand."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from flows.cli.errors import one_message
from flows.cli.stages import AsJson, Place, Study, load_for_flow, print_result
from flows.cli.temporary_server import start_temporary_server


class Trigger(StrEnum):
    """What to do about a material change."""

    propose = "propose"
    run = "run"


@one_message
def nightly(
    study: Study,
    trigger: Annotated[
        Trigger, typer.Option("--trigger", help="On a material change, propose a final run or run it.")
    ] = Trigger.propose,
    where: Place = "here",
    as_json: AsJson = False,
) -> None:
    """Recalibrate what is new since the last night, and compare the new choice with the champion."""
    from tasks.settings.find import find_study, full_address

    find_study(study)  # a mistake in it is found before a server starts
    start_temporary_server()
    from flows.nightly import nightly_flow

    print_result(nightly_flow(full_address(study), trigger.value, where), as_json)


@one_message
def accept(study: Study, as_json: AsJson = False) -> None:
    """Take the newest final run of the chosen pair as the champion, whatever its validation loss."""
    config = load_for_flow(study)
    from flows.stages import accept_by_hand_flow

    print_result(accept_by_hand_flow(config), as_json)
