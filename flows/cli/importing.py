"""`mars import`: laws and a choice from runs that exist already. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.errors import CALLERS_MISTAKE, one_message
from flows.cli.laws import print_fit
from flows.cli.model import parse_ranks
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson, print_decision, this_command

if TYPE_CHECKING:
    from tasks.importing.runs import Import

NAMES, CHOICE = "How your runs call things", "What to choose for"


def _named(flag: str, what: str) -> Any:
    return typer.Option(flag, help=f"Column (MLflow: parameter) of {what}.", rich_help_panel=NAMES)


@one_message
def import_(
    runs: Annotated[
        str, typer.Argument(help="A CSV or Parquet table, an MLflow tracking URI, or a folder with an mlflow.db.")
    ],
    experiment: Annotated[
        str | None, typer.Option("--experiment", help="MLflow experiment (default: the only one with runs).")
    ] = None,
    filter_string: Annotated[
        str, typer.Option("--filter", help="MLflow filter, such as \"params.phase = 'calibration'\".")
    ] = "",
    r_me: Annotated[str | None, _named("--r-me", "the vision rank (default: r_me)")] = None,
    r_llm: Annotated[str | None, _named("--r-llm", "the LLM rank (default: r_llm)")] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            "--loss",
            help="Column of the validation loss in nats per answer token (default: loss); MLflow: metric "
            "(default: val_loss).",
            rich_help_panel=NAMES,
        ),
    ] = None,
    size: Annotated[str | None, _named("--size", "unique training samples seen (default: D, where present)")] = None,
    step: Annotated[str | None, _named("--step", "optimizer steps (default: step; MLflow: the metric's steps)")] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            "--batch-size",
            help="Samples per step: a number, or the column (MLflow: parameter) that has it (default: batch_size).",
            rich_help_panel=NAMES,
        ),
    ] = None,
    lr: Annotated[
        str | None, _named("--lr", "the learning rate at the step, by which the warm-up is told (default: lr)")
    ] = None,
    peak_lr: Annotated[
        str | None,
        _named("--peak-lr", "the run's peak learning rate, where runs differ in it (default: peak_lr, where present)"),
    ] = None,
    seed: Annotated[str | None, _named("--seed", "the seed (default: seed, where present)")] = None,
    run_id: Annotated[
        str | None, _named("--run-id", "the run of a row (default: run_id, else one run per pair and seed)")
    ] = None,
    t_me: Annotated[str | None, _named("--t-me", "steps that the vision encoder needs to converge")] = None,
    t_llm: Annotated[str | None, _named("--t-llm", "steps that the LLM needs to converge")] = None,
    t: Annotated[str | None, _named("--t", "steps that the whole run needs to converge")] = None,
    dataset_size: Annotated[
        int | None, typer.Option("--dataset-size", min=1, help="Training samples: sizes stop growing there.")
    ] = None,
    target: Annotated[
        int | None,
        typer.Option(
            "--target", min=1, help="Dataset size to choose for (default: the largest seen).", rich_help_panel=CHOICE
        ),
    ] = None,
    ranks_me: Annotated[
        str | None,
        typer.Option("--ranks-me", help="Available vision ranks (default: those seen).", rich_help_panel=CHOICE),
    ] = None,
    ranks_llm: Annotated[
        str | None,
        typer.Option("--ranks-llm", help="Available LLM ranks (default: those seen).", rich_help_panel=CHOICE),
    ] = None,
    parameters_per_rank: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--parameters-per-rank",
            help="LoRA parameters per unit of vision rank and of LLM rank: what a pair costs (default: solved from "
            "trainable_parameters, where present).",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    reference: Annotated[
        tuple[int, int] | None,
        typer.Option("--reference", help="Pair whose ranks law C's slices hold fixed.", rich_help_panel=CHOICE),
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", help="Relative excess loss a cheaper pair may have.", rich_help_panel=CHOICE)
    ] = 0.0025,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            min=0.0,
            help="Rate you would train with otherwise: says what it would cost, where runs have several rates.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    law: Annotated[
        str, typer.Option("--law", help="`mars`, or `paper` for Eq. 1 and Eq. 3 as printed.", rich_help_panel=CHOICE)
    ] = "mars",
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=20, help="Bootstrap draws of every interval.")] = 200,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave bad rows out rather than refuse the table.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for laws.json, choice.json, report.html.")] = Path(
        "mars-import"
    ),
    as_json: AsJson = False,
) -> None:
    """Fit the laws to runs that exist already, and say which pair they speak for."""
    from mars_core.importing import BadRows, Question, Sizes
    from tasks.importing.runs import Source, import_runs, require_own_folder, write_import

    if law not in ("mars", "paper"):
        raise ValueError(f"--law {law!r}: expected mars or paper")
    require_own_folder(out)
    # A person waits for the answer: MLflow's own retries would take minutes to say that no server is there.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    number = int(batch_size) if batch_size is not None and batch_size.isdigit() else None
    asked = {"r_me": r_me, "r_llm": r_llm, "D": size, "step": step, "lr": lr, "seed": seed, "run_id": run_id}
    asked |= {
        "peak_lr": peak_lr,
        "t": t,
        "t_me": t_me,
        "t_llm": t_llm,
        "batch_size": batch_size if number is None else None,
    }
    names = {ours: theirs for ours, theirs in asked.items() if theirs is not None}
    question = Question(
        target_samples=target,
        ranks_me=tuple(parse_ranks(ranks_me)) if ranks_me else None,
        ranks_llm=tuple(parse_ranks(ranks_llm)) if ranks_llm else None,
        reference=reference,
        parameters_per_rank=parameters_per_rank,
        margin=margin,
        learning_rate=learning_rate,
        rule=law,  # type: ignore[arg-type]
        bootstrap=bootstrap,
    )
    source = Source(runs, names, loss, experiment, filter_string)
    try:
        done = import_runs(source, Sizes(number, dataset_size), question, skip_bad=skip_bad_rows)
    except BadRows as error:
        if not as_json:
            raise
        print_json({"problems": [vars(problem) for problem in error.problems]})
        raise typer.Exit(CALLERS_MISTAKE) from error
    files = write_import(done, out, this_command())
    if as_json:
        print_json(done.summary() | {"files": files})
    else:
        _print(done, files)


def _print(done: Import, files: dict[str, str]) -> None:
    found = done.summary()
    console.print(
        f"{found['name']}: {found['runs']} runs of {found['pairs']} pairs, {found['rows']} checkpoints, "
        f"sizes {found['sizes'][0]} to {found['sizes'][-1]}",
        highlight=False,
    )
    for note in found["laws"]["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)
    titles = {"performance": "law P", "me": "law C, vision encoder", "llm": "law C, LLM"}
    for (key, title), fit in zip(titles.items(), done.result.laws.by_name.values(), strict=True):
        if fit is None:
            console.print(f"{title}: no fit: {found['laws']['causes'][key]}", markup=False, highlight=False)
        else:
            console.print(f"[bold]{title}[/bold]")
            print_fit(fit)
    choice = done.result.choice
    console.print(f"[bold]r_me = {choice.pair[0]}, r_llm = {choice.pair[1]}[/bold]  ({choice.verdict})")
    console.print(f"for {choice.D_target:.0f} samples:", highlight=False)
    print_decision(choice)
    console.print(f"report: {files['report.html']}", highlight=False, soft_wrap=True)
