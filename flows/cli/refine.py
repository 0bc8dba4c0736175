"""`mars refine`: layer-wise ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.compare import print_comparison
from flows.cli.errors import one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson, Study, load_for_flow, this_command
from flows.cli.tune import asked_rates

if TYPE_CHECKING:
    from tasks.settings.study import StudyConfig


@one_message
def refine(
    study: Study,
    method: Annotated[
        str,
        typer.Option("--method", help="How: hydra, hydra-coarse, uniform, adalora, eva, gradient (GoRA) or fisher."),
    ],
    ranks: Annotated[
        tuple[int, int] | None,
        typer.Option("--ranks", help="Share out this pair (r_me r_llm) instead of the chosen one."),
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option("--module", help="Share out this module's rank alone, llm or me; repeatable (default: both)."),
    ] = None,
    stages: Annotated[int, typer.Option("--stages", help="HyDRA: stages that the blocks are grouped into.")] = 3,
    step: Annotated[
        int | None,
        typer.Option("--step", help="HyDRA: step between the ranks of stages (default: 2, or 1 where 2 does not fit)."),
    ] = None,
    setting: Annotated[
        str, typer.Option("--setting", help="HyDRA: row of its Table VI, setting1 to setting5.")
    ] = "setting1",
    tune: Annotated[
        bool, typer.Option("--tune-lr", help="Search for the learning rate first, by short runs (default: the pair's).")
    ] = False,
    rates: Annotated[str | None, typer.Option("--rates", help="Peak rates that --tune-lr tries, as 1e-4,2e-4.")] = None,
    as_json: AsJson = False,
) -> None:
    """Share the chosen pair's trainable parameters out over the layers, train the result, and test it beside the pair.

    It needs no more trainable parameters than the pair. Whether it helps on your data is what the table shows.
    """
    from mars_core.layerwise.registry import allocator

    allocator(method, stages=stages, step=step, setting=setting)  # a misspelt name is found before data are read
    if rates is not None and not tune:
        raise ValueError("--rates are the learning rates that --tune-lr tries: add --tune-lr")
    given = asked_rates(rates)
    config = load_for_flow(study)
    from flows.refine import refine_flow

    shared = refine_flow(
        config,
        method,
        list(ranks) if ranks else None,
        module or [],
        stages,
        step,
        setting,
        tune,
        given,
        this_command(),
    )
    if as_json:
        print_json(shared)
        return
    console.print(_table(config, shared))
    print_comparison(config)


def _table(config: StudyConfig, shared: dict[str, Any]) -> Table:
    """The ranks, a row per block."""
    import pyarrow.parquet as pq

    from tasks.refine.ranks import shared_out_in
    from tasks.storage.location import working_folder
    from tasks.study.revision import newest_revision

    found = shared_out_in(newest_revision(working_folder(config.study)))
    (path,) = (path for path, own in found if own.name == shared["name"])
    rows = pq.read_table(path.with_suffix(".parquet")).to_pandas()
    table = Table("module", "block", "gradient norm", "uniform rank", "ranks")
    for (module, block), own in rows.groupby(["module", "block"], sort=False):
        ranks = ", ".join(f"{component} {rank}" for component, rank in zip(own["component"], own["rank"], strict=True))
        uniform = str(own["uniform_rank"].iloc[0])
        table.add_row(str(module), str(block + 1), f"{own['gradient_norm'].mean():.3g}", uniform, ranks)
    return table
