"""`mars export`: take the chosen pair away, merged into its base or as configuration of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.errors import one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson, Study
from mars_core.records import Record

TO_HELP = "Write the pair for this tool: trl, llama-factory, ms-swift, axolotl or unsloth."


@one_message
def export(
    study: Study,
    merged: Annotated[
        Path | None, typer.Option("--merged", help="Folder to be made: base and adapter as one checkpoint.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help=TO_HELP)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File for --to (default: mars-TOOL.yaml, .sh or .py); what it reads lies beside it."
        ),
    ] = None,
    ranks: Annotated[
        tuple[int, int] | None, typer.Option("--ranks", help="Export this pair (r_me r_llm) instead of the chosen one.")
    ] = None,
    refined: Annotated[
        str | None,
        typer.Option("--refined", help="Export layer-wise ranks of `mars refine` by their name, as hydra-me8-llm16."),
    ] = None,
    check: Annotated[
        str | None, typer.Option("--check", help="Address of an OpenAI-compatible server up to /v1, to be compared.")
    ] = None,
    served_model: Annotated[
        str | None, typer.Option("--served-model", help="The server's model to ask, where it has several.")
    ] = None,
    answers: Annotated[int, typer.Option("--answers", min=1, help="How many test questions --check asks.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Take the chosen pair away: merged into its base (--merged), or for another fine-tuning tool (--to).

    --check asks a server that has it some of the test questions, and says whether it answers as MARS scored.

    The adapter itself needs no export: it lies in the study folder, in PEFT's own format, with its model card.
    """
    if sum(option is not None for option in (merged, to, check)) != 1:
        raise ValueError(
            "say what to export: either --merged DIR, or --to trl, llama-factory, ms-swift, axolotl or unsloth; or "
            "--check URL"
        )
    if output is not None and to is None:
        raise ValueError("--output is for --to: --merged names its folder itself")
    from tasks.export.pair import default_output, export_config, merge
    from tasks.settings.find import find_study

    config = find_study(study)
    done: Record
    if check is not None:
        from tasks.export.served import check_served

        done = check_served(config, check, model=served_model, answers=answers)
    elif merged is not None:
        done = merge(config, ranks, merged, refined)
    else:
        done = export_config(config, ranks, str(to), output or default_output(str(to)), refined)
    if as_json:
        print_json(done.to_json())
    else:
        _print(done)


def _print(done: Record) -> None:
    for name, value in done.to_json().items():
        if name == "notes":
            for note in value:
                console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(f"{name}: {value}", markup=False, highlight=False, soft_wrap=True)
