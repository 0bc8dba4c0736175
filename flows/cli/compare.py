"""`mars compare`: baselines on the user's own data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.errors import one_message
from flows.cli.output import console, minutes, print_json, print_names
from flows.cli.stages import AsJson, load_for_flow, this_command
from flows.cli.tune import asked_rates

if TYPE_CHECKING:
    from tasks.settings.study import StudyConfig


@one_message
def compare(
    study: Annotated[
        str | None, typer.Argument(help="A STUDY.yaml, or the folder of a study; a path or a URL.")
    ] = None,
    baselines: Annotated[
        list[str] | None,
        typer.Option("--with", help="A baseline (uniform-16, adalora, full-rank, ...) or its YAML file; repeatable."),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune-lr", help="Search for each baseline's learning rate first, by equally many short runs."),
    ] = False,
    rates: Annotated[
        str | None,
        typer.Option("--rates", help="Peak rates that --tune-lr tries, as 1e-4,2e-4 (default: four about a start)."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the baselines that ship.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train baselines at the chosen pair's budget and test them beside it; what is done is kept."""
    from tasks.settings.baselines import describe_baseline, read_baseline, shipped_baselines

    if listed:
        print_names({name: describe_baseline(name) for name in shipped_baselines()}, as_json)
        return
    if study is None or not baselines:
        raise ValueError("name a study and at least one baseline: mars compare STUDY --with uniform-16 --with adalora")
    if rates is not None and not tune:
        raise ValueError("--rates are the learning rates that --tune-lr tries: add --tune-lr")
    given = asked_rates(rates)
    for text in baselines:
        read_baseline(text)  # a misspelt name is found before data are read
    config = load_for_flow(study)
    from flows.compare import compare_flow
    from tasks.final.rate_search import NoRateHeld

    try:
        compare_flow(config, baselines, this_command(), tune, given)
    except NoRateHeld:
        _print(_rows(config), as_json)  # the other baselines went on
        raise
    _print(_rows(config), as_json)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
    else:
        console.print(_table(rows))
        if any(row.get("search") for row in rows):
            console.print(_searches(rows))


def _rows(config: StudyConfig) -> list[dict[str, Any]]:
    from tasks.final.compare import read_comparison
    from tasks.storage.location import working_folder
    from tasks.study.revision import newest_revision

    return read_comparison(newest_revision(working_folder(config.study)))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("test split", "trainable parameters", "perplexity", "exact match", "generated answers", "training")
    for row in rows:
        score, seconds = row["test"]["overall"], row.get("seconds")
        table.add_row(
            _name(row),
            f"{row['trainable_parameters']:,}" if row["trainable_parameters"] else "",
            f"{score['perplexity']:.4f}",
            f"{score['accuracy']:.1%}",
            _generated(row),
            minutes(seconds) if seconds is not None else "",
        )
    return table


def _searches(rows: list[dict[str, Any]]) -> Table:
    """Peak rates, and what was spent to find them: by MARS its calibration, by a baseline short runs."""
    from mars_core.rates import LearningRates

    table = Table("search", "learning rate", "runs", "steps", "time")
    for row in (row for row in rows if row.get("search")):
        search = row["search"]
        rates = str(LearningRates(*row["learning_rates"]))
        table.add_row(_name(row), rates, str(search["runs"]), f"{search['pair_steps']:,}", minutes(search["seconds"]))
    return table


def _generated(row: dict[str, Any]) -> str:
    """Share of right answers among those generated; nothing where none was short enough."""
    found = (row["test"].get("generated") or {}).get("overall")
    return f"{found['accuracy']:.1%}" if found else ""


def _name(row: dict[str, Any]) -> str:
    return f"MARS {_pair(row)}" if row["role"] == "chosen" else str(row["name"])


def _pair(row: dict[str, Any]) -> str:
    return f"({row['settings']['r_me']}, {row['settings']['r_llm']})"
