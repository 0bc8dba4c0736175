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
    from mars_core.rankbench.cells import Cell, Role
    from mars_core.rankbench.tables import TextTable
    from tasks.bench.replay import Replayed

bench_app = typer.Typer(help="RankBench: stored runs of rank pairs and rates, and what each method would have chosen.")
RESULTS = Path("benchmarks/results/rankbench")

Folder = Annotated[Path, typer.Option("--folder", help="Where the stored runs lie.")]
Names = Annotated[list[str] | None, typer.Option("--cell", help="A cell, once or more (default: all).")]


@bench_app.command()
@one_message
def run(
    folder: Folder = RESULTS,
    cell: Names = None,
    minutes: Annotated[float, typer.Option("--minutes", min=0, help="Begin no further block after this time.")] = 110,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    shard: Annotated[str, typer.Option("--shard", help="I/N: every Nth cell from the Ith on.")] = "1/1",
) -> None:
    """Train the runs that are missing; stop and start it as you like."""
    from tasks.bench.run import run_bench

    done = run_bench(folder, _shard(_cells(cell), shard), minutes, typer.echo, device)
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
    cell: Names = None,
    role: Annotated[str, typer.Option("--role", help="develop, verdict or all.")] = "all",
    as_json: AsJson = False,
) -> None:
    """Let every method choose from the stored calibrations, and show its regret on the runs that judge."""
    from mars_core.rankbench.tables import tables_of

    replayed = _replayed(folder, cell, role)
    if as_json:
        shown = {"cells": replayed.cells, "choices": replayed.records}
        print_json({name: json.loads(table.to_json(orient="records")) for name, table in shown.items()})
        return
    for table in tables_of(replayed.cells, replayed.records):
        console.print(_shown(table))


@bench_app.command()
@one_message
def report(
    folder: Folder = RESULTS,
    cell: Names = None,
    out: Annotated[Path, typer.Option("--out", help="Where the page is written.")] = Path("rankbench.html"),
) -> None:
    """Write a page with cost against regret of all methods, every cell's losses with the choices, and all tables."""
    from tasks.bench.report import write_page

    typer.echo(f"written to {write_page(_replayed(folder, cell, 'all'), out)}")


def _replayed(folder: Path, names: list[str] | None, role: str) -> Replayed:
    from mars_core.packing.cores import usable_cores
    from tasks.bench.replay import replay_bench, with_role

    return replay_bench(folder, with_role(_cells(names), _roles(role)), processes=min(4, usable_cores()))


def _roles(text: str) -> tuple[Role, ...]:
    roles: dict[str, tuple[Role, ...]] = {
        "develop": ("develop",),
        "verdict": ("verdict",),
        "all": ("develop", "verdict"),
    }
    if text not in roles:
        raise ValueError(f"--role is develop, verdict or all, got {text!r}")
    return roles[text]


def _shown(table: TextTable) -> Table:
    shown = Table(title=table.title, caption=table.note, caption_justify="left", title_justify="left")
    for heading in table.headings:
        shown.add_column(heading)
    for row in table.rows:
        shown.add_row(*row)
    return shown


def _shard(cells: tuple[Cell, ...], text: str) -> tuple[Cell, ...]:
    first, _, every = text.partition("/")
    if not (first.isdigit() and every.isdigit() and 1 <= int(first) <= int(every)):
        raise ValueError(f"--shard is I/N with 1 <= I <= N, such as 1/4, got {text!r}")
    return cells[int(first) - 1 :: int(every)]


def _cells(names: list[str] | None) -> tuple[Cell, ...]:
    from mars_core.rankbench.cells import CELLS, cell_named

    return tuple(cell_named(name) for name in names) if names else CELLS
