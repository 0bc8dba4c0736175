"""`mars model`: look at a base checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from flows.cli.errors import one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson

app = typer.Typer(help="Look at a base checkpoint.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look at a base checkpoint."""


@app.command("inspect")
@one_message
def inspect(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or a hub id.")],
    ranks: Annotated[str, typer.Option("--ranks", help="Ranks to count parameters for.")] = "8,16,32,64",
    as_json: AsJson = False,
) -> None:
    """Show how the linear layers fall into vision encoder, projector and LLM, and what LoRA adds to each."""
    from tasks.inspect import inspect_model

    found = inspect_model(model, parse_ranks(ranks))
    if as_json:
        print_json(found)
        return
    console.print(f"{found['model']}: {found['model_type']}, {found['parameters']:,} parameters")
    table = Table("group", "adapted layers", "largest rank", *(f"LoRA at r={rank}" for rank in parse_ranks(ranks)))
    for name, group in found["groups"].items():
        counts = (f"{count:,}" for count in group["lora_parameters"].values())
        table.add_row(name, str(group["layers"]), str(group["largest_rank"]), *counts)
    console.print(table)
    console.print(f"not adapted: {', '.join(found['excluded']) or 'nothing'}")


def parse_ranks(text: str) -> list[int]:
    """Ranks from `8,16,32`."""
    try:
        ranks = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"ranks {text!r} are not whole numbers separated by commas, such as 8,16,32") from error
    if min(ranks) < 1:
        raise ValueError(f"ranks are 1 or more, got {text!r}")
    return ranks
