"""`mars import`: laws and a choice from runs that exist already. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.errors import CALLERS_MISTAKE, one_message
from flows.cli.laws import print_fit
from flows.cli.model import parse_ranks
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson, print_decision, this_command

if TYPE_CHECKING:
    from mars_core.importing import Question, Sizes
    from mars_core.search.choose import Rule
    from tasks.importing.runs import Import, Source

NAMES, CHOICE = "How your runs call things", "What to choose for"


def _named(flag: str, what: str) -> Any:
    return typer.Option(flag, help=f"Column (MLflow: parameter) of {what}.", rich_help_panel=NAMES)


def _asked(flag: str, text: str, **limits: Any) -> Any:
    return typer.Option(flag, help=text, rich_help_panel=CHOICE, **limits)


Runs = Annotated[
    str, typer.Argument(help="A CSV or Parquet table, an MLflow tracking URI, or a folder with an mlflow.db.")
]
Experiment = Annotated[
    str | None, typer.Option("--experiment", help="MLflow experiment (default: the only one with runs).")
]
Filter = Annotated[str, typer.Option("--filter", help="MLflow filter, such as \"params.phase = 'calibration'\".")]
RMe = Annotated[str | None, _named("--r-me", "the vision rank (default: r_me)")]
RLlm = Annotated[str | None, _named("--r-llm", "the LLM rank (default: r_llm)")]
Loss = Annotated[
    str | None,
    typer.Option(
        "--loss",
        help="Column of the validation loss in nats per answer token (default: loss); MLflow: metric "
        "(default: val_loss).",
        rich_help_panel=NAMES,
    ),
]
Size = Annotated[str | None, _named("--size", "unique training samples seen (default: D, where present)")]
Step = Annotated[str | None, _named("--step", "optimizer steps (default: step; MLflow: the metric's steps)")]
BatchSize = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        help="Samples per step: a number, or the column (MLflow: parameter) that has it (default: batch_size).",
        rich_help_panel=NAMES,
    ),
]
Rate = Annotated[
    str | None, _named("--lr", "the learning rate at the step, by which the warm-up is told (default: lr)")
]
PeakRate = Annotated[
    str | None,
    _named("--peak-lr", "the run's peak learning rate, where runs differ in it (default: peak_lr, where present)"),
]
Seed = Annotated[str | None, _named("--seed", "the seed (default: seed, where present)")]
RunId = Annotated[str | None, _named("--run-id", "the run of a row (default: run_id, else one run per pair and seed)")]
TimeMe = Annotated[str | None, _named("--t-me", "steps that the vision encoder needs to converge")]
TimeLlm = Annotated[str | None, _named("--t-llm", "steps that the LLM needs to converge")]
Time = Annotated[str | None, _named("--t", "steps that the whole run needs to converge")]
DatasetSize = Annotated[
    int | None, typer.Option("--dataset-size", min=1, help="Training samples: sizes stop growing there.")
]
Target = Annotated[int | None, _asked("--target", "Dataset size to choose for (default: the largest seen).", min=1)]
RanksMe = Annotated[str | None, _asked("--ranks-me", "Available vision ranks (default: those seen).")]
RanksLlm = Annotated[str | None, _asked("--ranks-llm", "Available LLM ranks (default: those seen).")]
ParametersPerRank = Annotated[
    tuple[float, float] | None,
    _asked(
        "--parameters-per-rank",
        "LoRA parameters per unit of vision rank and of LLM rank: what a pair costs (default: solved from "
        "trainable_parameters, where present).",
    ),
]
Reference = Annotated[tuple[int, int] | None, _asked("--reference", "Pair whose ranks law C's slices hold fixed.")]
Margin = Annotated[float, _asked("--margin", "Relative excess loss a cheaper pair may have.")]
OtherRate = Annotated[
    float | None,
    _asked(
        "--learning-rate",
        "Rate you would train with otherwise: says what it would cost, where runs have several rates.",
        min=0.0,
    ),
]
LawRule = Annotated[str, _asked("--law", "`mars`, or `paper` for Eq. 1 and Eq. 3 as printed.")]
Bootstrap = Annotated[int, typer.Option("--bootstrap", min=20, help="Bootstrap draws of every interval.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out rather than refuse the table.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for laws.json, choice.json, report.html.")]


@one_message
def import_(
    runs: Runs,
    experiment: Experiment = None,
    filter_string: Filter = "",
    r_me: RMe = None,
    r_llm: RLlm = None,
    loss: Loss = None,
    size: Size = None,
    step: Step = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    peak_lr: PeakRate = None,
    seed: Seed = None,
    run_id: RunId = None,
    t_me: TimeMe = None,
    t_llm: TimeLlm = None,
    t: Time = None,
    dataset_size: DatasetSize = None,
    target: Target = None,
    ranks_me: RanksMe = None,
    ranks_llm: RanksLlm = None,
    parameters_per_rank: ParametersPerRank = None,
    reference: Reference = None,
    margin: Margin = 0.0025,
    learning_rate: OtherRate = None,
    law: LawRule = "mars",
    bootstrap: Bootstrap = 200,
    skip_bad_rows: SkipBadRows = False,
    out: Out = Path("mars-import"),
    as_json: AsJson = False,
) -> None:
    """Fit the laws to runs that exist already, and say which pair they speak for."""
    from mars_core.importing import Question, Sizes
    from tasks.importing.runs import Source

    number = int(batch_size) if batch_size is not None and batch_size.isdigit() else None
    names = {"r_me": r_me, "r_llm": r_llm, "D": size, "step": step, "lr": lr, "seed": seed, "run_id": run_id}
    names |= {"peak_lr": peak_lr, "t": t, "t_me": t_me, "t_llm": t_llm}
    names["batch_size"] = batch_size if number is None else None
    question = Question(
        target_samples=target,
        ranks_me=_ranks(ranks_me),
        ranks_llm=_ranks(ranks_llm),
        reference=reference,
        parameters_per_rank=parameters_per_rank,
        margin=margin,
        learning_rate=learning_rate,
        rule=_rule(law),
        bootstrap=bootstrap,
    )
    called = {ours: theirs for ours, theirs in names.items() if theirs is not None}
    source = Source(runs, called, loss, experiment, filter_string)
    _import(source, Sizes(number, dataset_size), question, _Way(skip_bad_rows, out, as_json))


def _ranks(text: str | None) -> tuple[int, ...] | None:
    return tuple(parse_ranks(text)) if text else None


def _rule(law: str) -> Rule:
    if law == "mars":
        return "mars"
    if law == "paper":
        return "paper"
    raise ValueError(f"--law {law!r}: expected mars or paper")


@dataclass(frozen=True)
class _Way:
    """What becomes of bad rows and of the result."""

    skip_bad_rows: bool
    out: Path
    as_json: bool


def _import(source: Source, sizes: Sizes, question: Question, way: _Way) -> None:
    from mars_core.importing import BadRows
    from tasks.importing.runs import import_runs, require_own_folder, write_import

    require_own_folder(way.out)
    # A person waits for the answer: MLflow's own retries would take minutes to say that no server is there.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        done = import_runs(source, sizes, question, skip_bad=way.skip_bad_rows)
    except BadRows as error:
        if not way.as_json:
            raise
        print_json({"problems": [vars(problem) for problem in error.problems]})
        raise typer.Exit(CALLERS_MISTAKE) from error
    files = write_import(done, way.out, this_command())
    if way.as_json:
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
