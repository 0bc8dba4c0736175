"""`mars model`: look at a base checkpoint."""

from __future__ import annotations

from typing import Annotated, Any

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
    model: Annotated[str, typer.Argument(help="A checkpoint folder, a hub id, or a STUDY.yaml.")],
    ranks: Annotated[str, typer.Option("--ranks", help="Ranks to count parameters for.")] = "8,16,32,64",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that lies in the checkpoint; read it first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how the linear layers fall into vision encoder, projector and LLM, what LoRA adds, and what memory it takes.

    Only the configuration is read, no weights.
    """
    from tasks.inspect import inspect_model

    found = inspect_model(model, parse_ranks(ranks), trust_remote_code=trust_remote_code)
    if as_json:
        print_json(found)
        return
    console.print(f"{found['model']}: {found['model_type']}, {found['parameters']:,} parameters")
    console.print(_groups(found))
    console.print(f"not adapted: {', '.join(found['excluded']) or 'nothing'}")
    console.print(_pairs(found))
    memory = found["memory"]
    frozen = ", ".join(f"{_gigabytes(amount)} in {kept}" for kept, amount in memory["frozen_bytes"].items())
    console.print(
        f"frozen weights: {frozen}; adapters and Adam state of a pack of these {memory['pack_runs']} runs: "
        f"{_gigabytes(memory['pack_adapter_and_adam_bytes'])}. Activations come on top: `mars calibrate --dry-run` "
        "measures them with your data."
    )


def _groups(found: dict[str, Any]) -> Table:
    ranks = next(iter(found["groups"].values()))["lora_parameters"]
    table = Table("group", "layers", "widths (in x out)", "largest rank", *(f"LoRA at r={rank}" for rank in ranks))
    for name, group in found["groups"].items():
        widths = ", ".join(f"{width['layers']} of {width['in']}x{width['out']}" for width in group["widths"])
        counts = (f"{count:,}" for count in group["lora_parameters"].values())
        table.add_row(name, str(group["layers"]), widths or "-", str(group["largest_rank"] or "-"), *counts)
    return table


def _pairs(found: dict[str, Any]) -> Table:
    table = Table("r_me", "r_llm", "trainable parameters", "adapters and Adam state")
    for pair in found["pairs"]:
        memory = _gigabytes(pair["adapter_and_adam_bytes"])
        table.add_row(str(pair["r_me"]), str(pair["r_llm"]), f"{pair['trainable_parameters']:,}", memory)
    return table


def _gigabytes(amount: int) -> str:
    return f"{amount / 1e9:.3g} GB"


def parse_ranks(text: str) -> list[int]:
    """Ranks from `8,16,32`."""
    try:
        ranks = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"ranks {text!r} are not whole numbers separated by commas, such as 8,16,32") from error
    if min(ranks) < 1:
        raise ValueError(f"ranks are 1 or more, got {text!r}")
    return ranks
