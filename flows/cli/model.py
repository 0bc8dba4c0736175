"""`mars model`: look at a base checkpoint, or build one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.cli.app import App
from flows.cli.errors import one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson

if TYPE_CHECKING:
    from tasks.inputs.inspection import ModelReport

app = App(help="Look at a base checkpoint, or build one.", no_args_is_help=True)

SHOWN = 8


@app.callback()
def _group() -> None:
    """Look at a base checkpoint, or build one."""


@app.command("inspect")
@one_message
def inspect(
    model: Annotated[str, typer.Argument(help="A checkpoint folder, a hub id, or a STUDY.yaml.")],
    ranks: Annotated[
        str | None,
        typer.Option("--ranks", help="Ranks to count parameters for (default: the study's, else 8,16,32,64)."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that lies in the checkpoint; read it first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how the linear layers fall into vision encoder, projector and LLM, what LoRA adds, and what memory it takes.

    Only the configuration is read, no weights.
    """
    from tasks.inputs.inspection import inspect_model

    found = inspect_model(model, parse_ranks(ranks) if ranks else None, trust_remote_code=trust_remote_code)
    if as_json:
        print_json(found.to_json())
        return
    console.print(f"{found.model}: {found.model_type}, {found.parameters:,} parameters")
    console.print(_groups(found))
    console.print(f"modules: {_modules(found)}")
    console.print(f"not adapted: {_some(found.excluded) or 'nothing'}")
    for other in found.other_weights:
        console.print(f"not linear layers, so not adapted: {other['kind']}, {other['parameters']:,} parameters")
    console.print(_pairs(found))
    memory = found.memory
    frozen = ", ".join(f"{_gigabytes(amount)} in {kept}" for kept, amount in memory.frozen_bytes.items())
    console.print(
        f"frozen weights: {frozen}; adapters and Adam state of a pack of these {memory.pack_runs} runs: "
        f"{_gigabytes(memory.pack_adapter_and_adam_bytes)}. Activations come on top: `mars calibrate --dry-run` "
        "measures them with your data."
    )


def _modules(found: ModelReport) -> str:
    projector = ", ".join(found.family["projector"]) or "none"
    return f"ME {found.family['me']}; projector {projector}; LLM {found.family['llm']}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:SHOWN])} and {more} more (--json lists all)"


def _groups(found: ModelReport) -> Table:
    ranks = next(iter(found.groups.values())).lora_parameters
    table = Table("group", "layers", "widths (in x out)", "largest rank", *(f"LoRA at r={rank}" for rank in ranks))
    for name, group in found.groups.items():
        widths = ", ".join(f"{width['layers']} of {width['in']}x{width['out']}" for width in group.widths)
        counts = (f"{count:,}" for count in group.lora_parameters.values())
        table.add_row(name, str(group.layers), widths or "-", str(group.largest_rank or "-"), *counts)
    return table


def _pairs(found: ModelReport) -> Table:
    table = Table("r_me", "r_llm", "trainable parameters", "adapters and Adam state")
    for pair in found.pairs:
        memory = _gigabytes(pair.adapter_and_adam_bytes)
        table.add_row(str(pair.r_me), str(pair.r_llm), f"{pair.trainable_parameters:,}", memory)
    return table


def _gigabytes(amount: int) -> str:
    return f"{amount / 1e9:.3g} GB"


@app.command("assemble")
@one_message
def assemble(
    vision: Annotated[str, typer.Option("--vision", help="SigLIP checkpoint: a folder or a hub id.")],
    llm: Annotated[str, typer.Option("--llm", help="LLM with a chat template: a folder, a hub id or a GGUF file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to be made.")],
    captions: Annotated[
        str | None, typer.Option("--captions", help="LLaVA JSON or Parquet to align the projector on.")
    ] = None,
    images: Annotated[str | None, typer.Option("--images", help="Folder of the captions' images.")] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps of the alignment.")] = 1000,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Captions per step.")] = 32,
    learning_rate: Annotated[float, typer.Option("--learning-rate", min=0.0, help="Peak learning rate.")] = 1e-3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=16, help="Longer captions are left out.")] = 2048,
    grid: Annotated[int, typer.Option("--grid", min=1, max=6, help="Most tiles along one side of a picture.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the projector and of the captions' order.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Build a LLaVA-OneVision checkpoint from a SigLIP encoder and an LLM, with a fresh 2-layer projector between them.

    With captions, the projector is trained on them while both others stay as they are.
    """
    from tasks.inputs.assembly import Alignment, assemble_checkpoint

    alignment = None
    if captions is not None:
        alignment = Alignment(captions, images, steps, batch_size, learning_rate, max_tokens)
    done = assemble_checkpoint(vision, llm, out, grid=grid, seed=seed, device=device, alignment=alignment)
    if as_json:
        print_json(done.to_json())
        return
    console.print(f"{done.checkpoint}: {done.parameters:,} parameters")
    aligned = done.aligned
    if aligned is None:
        console.print("the projector is untrained: give --captions to align it")
    else:
        console.print(
            f"projector aligned on {aligned.samples} captions ({aligned.too_long} too long) in "
            f"{aligned.steps} steps: loss {aligned.first_loss:.3f} -> {aligned.last_loss:.3f}"
        )


def parse_ranks(text: str) -> list[int]:
    """Ranks from `8,16,32`."""
    try:
        ranks = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"ranks {text!r} are not whole numbers separated by commas, such as 8,16,32") from error
    if min(ranks) < 1:
        raise ValueError(f"ranks are 1 or more, got {text!r}")
    return ranks
