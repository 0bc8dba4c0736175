"""`mars bench`: RankBench, trained and replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.cli.errors import one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson

if TYPE_CHECKING:
    import pandas as pd

    from mars_core.rankbench.cells import Cell, Role

bench_app = typer.Typer(help="RankBench: stored runs of rank pairs and rates, and what each method would have chosen.")
RESULTS = Path("benchmarks/results/rankbench")

_CELL_COLUMNS = (
    "cell", "alpha", "best pair", "at rate", "perplexity", "worst pair", "noise", "ME / LLM effect", "ME / LLM frozen",
)  # fmt: skip

Folder = Annotated[Path, typer.Option("--folder", help="Where the stored runs lie.")]
Names = Annotated[list[str] | None, typer.Option("--cell", help="A cell, once or more (default: all).")]


@bench_app.command()
@one_message
def run(
    folder: Folder = RESULTS,
    cell: Names = None,
    minutes: Annotated[float, typer.Option("--minutes", min=0, help="Begin no further block after this time.")] = 110,
) -> None:
    """Train the runs that are missing; stop and start it as you like."""
    from tasks.bench.run import run_bench

    done = run_bench(folder, _cells(cell), minutes, lambda text: typer.echo(text))
    typer.echo(f"{done} blocks trained")


@bench_app.command("list")
@one_message
def list_cells(folder: Folder = RESULTS) -> None:
    """Show the cells, what each is for, and what of it is stored."""
    from mars_core.rankbench.blocks import blocks_of
    from mars_core.rankbench.cells import CELLS
    from tasks.bench.store import missing_blocks

    for cell in CELLS:
        blocks = list(blocks_of(cell))
        stored = len(blocks) - len(list(missing_blocks(folder, (cell,))))
        typer.echo(f"{cell.name}: {cell.role}, {len(cell.pairs)} pairs, {stored} of {len(blocks)} blocks stored")


@bench_app.command()
@one_message
def replay(
    folder: Folder = RESULTS,
    role: Annotated[str, typer.Option("--role", help="develop, verdict or all.")] = "develop",
    as_json: AsJson = False,
) -> None:
    """Let every method choose from the stored calibrations, and show its regret on the runs that judge."""
    from mars_core.rankbench.verdicts import summary
    from tasks.bench.replay import replay_bench

    cells, records = replay_bench(folder, _roles(role))
    methods = summary(records)
    if as_json:
        shown = {"cells": cells, "methods": methods.reset_index(), "choices": records}
        print_json({name: json.loads(table.to_json(orient="records")) for name, table in shown.items()})
        return
    console.print(_cells_table(cells))
    console.print(_methods_table(methods))


def _roles(text: str) -> tuple[Role, ...]:
    roles: dict[str, tuple[Role, ...]] = {
        "develop": ("develop",),
        "verdict": ("verdict",),
        "all": ("develop", "verdict"),
    }
    if text not in roles:
        raise ValueError(f"--role is develop, verdict or all, got {text!r}")
    return roles[text]


def _cells_table(cells: pd.DataFrame) -> Table:
    table = Table(title="cells: regret is excess test perplexity over the best pair at its best rate")
    for name in _CELL_COLUMNS:
        table.add_column(name)
    for row in cells.to_dict("records"):
        edge = "" if row["interior"] else " (edge)"
        table.add_row(
            row["cell"], row["rule"], str(tuple(row["best"])), f"{row['best_rate']:.1e}{edge}",
            f"{row['perplexity']:.3f}", f"{row['spread']:.1%}", f"{row['noise']:.1%}",
            f"{row['effect_me']:.1f} / {row['effect_llm']:.1f} se",
            f"{row['frozen_tower']:.1%} / {row['frozen_llm']:.1%}",
        )  # fmt: skip
    return table


def _methods_table(methods: pd.DataFrame) -> Table:
    table = Table(
        title="methods: cost as a share of the naive grid's pair-steps, size of the largest pair's parameters"
    )
    for name in ("method", "choices", "median regret", "mean", "worst", "within noise", "cost", "size"):
        table.add_column(name)
    for row in methods.reset_index().to_dict("records"):
        table.add_row(
            row["method"], str(row['choices']), f"{row['median_regret']:.2%}", f"{row['mean_regret']:.2%}",
            f"{row['worst_regret']:.1%}", f"{row['within_noise']:.0%}", f"{row['cost']:.3f}", f"{row['size']:.2f}",
        )  # fmt: skip
    return table


def _cells(names: list[str] | None) -> tuple[Cell, ...]:
    from mars_core.rankbench.cells import CELLS, cell_named

    return tuple(cell_named(name) for name in names) if names else CELLS
