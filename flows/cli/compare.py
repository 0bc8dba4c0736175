"""`mars compare`: baselines on the user's own data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from flows.cli.errors import one_message
from flows.cli.forgetting import overall_table
from flows.cli.output import console, minutes, print_json, print_names
from flows.cli.stages import AsJson, load_for_flow, this_command
from flows.cli.tune import asked_rates

if TYPE_CHECKING:
    from tasks.final.compare import ComparedModel
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
        _print(config, as_json)  # the other baselines went on
        raise
    _print(config, as_json)


def _print(config: StudyConfig, as_json: bool) -> None:
    from tasks.final.compare import read_comparison
    from tasks.storage.location import working_folder
    from tasks.study.revision import newest_revision

    revision = newest_revision(working_folder(config.study))
    if as_json:
        print_json(read_comparison(revision))
        return
    print_comparison(config)


def print_comparison(config: StudyConfig) -> None:
    """Print the table of base model, chosen pair and all that was compared with it; nothing where there is none."""
    from tasks.final.compare import compared_models
    from tasks.storage.location import working_folder
    from tasks.study.revision import newest_revision

    models = compared_models(newest_revision(working_folder(config.study)))
    if not models:
        return
    console.print(_table(models))
    if any(model.search for model in models):
        console.print(_searches(models))
    if config.upstream:
        _print_forgetting(config)


def _print_forgetting(config: StudyConfig) -> None:
    """E, F and O of the models compared: a table of their own, since one of all columns fits no terminal."""
    from tasks.final.forgetting import forgetting_table
    from tasks.study.opened import begun_study

    console.print(overall_table(forgetting_table(begun_study(config))))


def _table(models: Sequence[ComparedModel]) -> Table:
    table = Table("test split", "trainable parameters", "perplexity", "exact match", "generated answers", "training")
    for model in models:
        score = model.test.overall
        table.add_row(
            _name(model),
            f"{model.trainable_parameters:,}" if model.trainable_parameters else "",
            f"{score.perplexity:.4f}",
            f"{score.accuracy:.1%}",
            _generated(model),
            minutes(model.seconds) if model.seconds is not None else "",
        )
    return table


def _searches(models: Sequence[ComparedModel]) -> Table:
    """Peak rates, and what was spent to find them: by MARS its calibration, by a baseline short runs."""
    from mars_core.rates import LearningRates

    table = Table("search", "learning rate", "runs", "steps", "time")
    for model in models:
        if model.search is None or model.learning_rates is None:
            continue
        rates, cost = str(LearningRates(*model.learning_rates)), model.search
        table.add_row(_name(model), rates, str(cost.runs), f"{cost.pair_steps:,}", minutes(cost.seconds))
    return table


def _generated(model: ComparedModel) -> str:
    """Share of right answers among those generated; nothing where none was short enough."""
    found = model.test.generated.overall if model.test.generated else None
    return f"{found.accuracy:.1%}" if found else ""


def _name(model: ComparedModel) -> str:
    return f"MARS {_pair(model)}" if model.role == "chosen" else model.name


def _pair(model: ComparedModel) -> str:
    settings = model.settings or {}
    return f"({settings['r_me']}, {settings['r_llm']})"
