"""Commands that run a study, whole or one stage at a time."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.cli.errors import one_message
from flows.cli.output import print_json, print_summary
from flows.cli.temporary_server import start_temporary_server
from mars_core.planning.devices import DEVICES, UTILISATION, device_named
from tasks.running.addresses import without_password

if TYPE_CHECKING:
    from mars_core.search import Choice
    from tasks.settings.study import StudyConfig
    from tasks.storage.folder import Revision
    from tasks.study.plan import CalibrationPlan

Study = Annotated[
    str, typer.Argument(help="A STUDY.yaml, or the folder of a study that exists; a path or a URL (s3://bucket/study).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
NewRevision = Annotated[
    bool, typer.Option("--new-revision", help="Open a new revision in the study folder: new model, data or recipe.")
]
Place = Annotated[
    Literal["here", "workers"],
    typer.Option("--where", help="Train in this process, or in runs of their own on the workers of a Prefect server."),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        help=f"With --dry-run: estimate time and memory on this GPU ({', '.join(DEVICES)}); no weights are read.",
    ),
]
Utilisation = Annotated[
    float | None,
    typer.Option("--utilisation", help=f"With --on: share of its peak that is reached, assumed to be {UTILISATION}."),
]


@one_message
def run(study: Study, new_revision: NewRevision = False, where: Place = "here", as_json: AsJson = False) -> None:
    """Run the whole pipeline on your model and data; what is already done is kept."""
    config = load_for_flow(study)
    from flows.study import study_flow

    summary = study_flow(config, new_revision, where=where, command=this_command())
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)


@one_message
def calibrate(
    study: Study,
    new_revision: NewRevision = False,
    where: Place = "here",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print plan and predicted cost, from a few steps measured here; record no run."),
    ] = False,
    on: On = None,
    utilisation: Utilisation = None,
    as_json: AsJson = False,
) -> None:
    """Train the short calibration runs of every rank pair."""
    if on is not None or utilisation is not None:
        _print_cost(study, on, utilisation, dry_run=dry_run, as_json=as_json)
        return
    config = load_study(study)
    if dry_run:
        from tasks.calibration.expected import describe_expected, expected_plan
        from tasks.calibration.packs import forecast
        from tasks.inputs.opened import open_inputs

        inputs = open_inputs(config)
        plan = expected_plan(inputs)
        described, expected = describe_expected(config, plan), forecast(inputs, plan, plan.every_run)
        if as_json:
            print_json(described | {"cost": expected.as_json()})
        else:
            _print_plan(config, plan, str(expected))
        return
    start_temporary_server()
    from flows.calibrate import calibrate_flow

    print_result({"revision": calibrate_flow(config, new_revision, where)}, as_json)


def _print_plan(config: StudyConfig, plan: CalibrationPlan, expected: str) -> None:
    from tasks.calibration.expected import axes_of, parts_in_words, parts_of

    pairs = ", ".join(f"({r_me}, {r_llm})" for r_me, r_llm in sorted({run.pair for run in plan.runs}))
    for one in plan.schedules:
        checkpoints = ", ".join(map(str, one.checkpoint_steps))
        size = "" if one.size is None else f" for size {one.size}"
        runs = sum(run.schedule == one for run in plan.runs)
        typer.echo(f"{runs} runs of {one.horizon} steps{size}, evaluated at steps {checkpoints}")
    typer.echo(f"pairs (r_me, r_llm): {pairs}")
    for line in parts_in_words(axes_of(config, plan), parts_of(plan, config)):
        typer.echo(line)
    typer.echo(f"expected: {expected}")
    for note in plan.notes:
        typer.echo(f"note: {note}")


def _print_cost(study: str, on: str | None, utilisation: float | None, *, dry_run: bool, as_json: bool) -> None:
    if on is None or not dry_run:
        raise ValueError("--on and --utilisation estimate: give them as `--dry-run --on h100 [--utilisation 0.3]`")
    from flows.cli.cost import print_cost
    from tasks.inputs.data import check_data
    from tasks.planning.cost import cost_on
    from tasks.settings.find import find_study

    device_named(on)
    config = find_study(study)
    check_data(config.data).raise_if_bad()
    found = cost_on(config, on, UTILISATION if utilisation is None else utilisation)
    if as_json:
        print_json(found)
    else:
        print_cost(found)


@one_message
def fit(study: Study, as_json: AsJson = False) -> None:
    """Fit law P and law C to the calibration runs."""
    config = load_for_flow(study)
    from flows.stages import fit_flow
    from tasks.choice.fit import read_laws

    path = fit_flow(config)
    if as_json:
        print_json(read_laws(_newest_revision(config)).to_json())
    else:
        print_result({"laws": path}, as_json)


@one_message
def search(study: Study, as_json: AsJson = False) -> None:
    """Choose the rank pair: every pair's outlook at the target size, the best one, and how sure that is."""
    config = load_for_flow(study)
    from flows.stages import search_flow
    from tasks.choice.search import read_choice

    search_flow(config)
    choice = read_choice(_newest_revision(config))
    if as_json:
        print_json(decision_of(choice))
    else:
        print_result({"pair": choice.pair, "verdict": choice.verdict}, as_json)
        print_decision(choice)


DECISION = ("pair", "verdict", "reason", "regret", "regret_bound", "seeds_needed", "warnings", "rivals")


def decision_of(choice: Choice) -> dict[str, Any]:
    """What a program wants to know of a choice; everything else is in choice.json."""
    stored = choice.to_json()
    return {name: stored[name] for name in DECISION}


def print_decision(choice: Choice) -> None:
    """Print why the pair was chosen, how it compares, and what may change it."""
    from mars_core.report.decision import decision_sentences

    for sentence in decision_sentences(choice):
        typer.echo(sentence)
    for warning in choice.warnings:
        typer.echo(f"warning: {warning}")


@one_message
def finetune(
    study: Study,
    ranks: Annotated[
        tuple[int, int] | None, typer.Option("--ranks", help="Train this pair (r_me r_llm) instead of the chosen one.")
    ] = None,
    accelerate: Annotated[
        str | None,
        typer.Option("--accelerate", help="Configuration of accelerate: train in its processes, by DDP or FSDP."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train the chosen pair at the full budget and save its adapter; the uniform-rank default too, to compare."""
    config = load_for_flow(study, accelerate)
    from flows.stages import finetune_arms, finetune_flow
    from tasks.storage.location import working_folder
    from tasks.study.lock import at_work_on
    from tasks.study.opened import open_study

    with at_work_on(working_folder(config.study)):
        if ranks is not None:
            adapters = {"asked for": finetune_flow(config, *ranks, role="asked for")}
        else:
            adapters = finetune_arms(open_study(config))
    print_result(adapters, as_json)


@one_message
def evaluate(study: Study, as_json: AsJson = False) -> None:
    """Score the base model and the final adapters on the test split."""
    config = load_for_flow(study)
    from flows.stages import evaluate_flow
    from tasks.final.evaluate import read_evaluation

    path = evaluate_flow(config)
    if as_json:
        print_json({role: found.to_json() for role, found in read_evaluation(_newest_revision(config)).items()})
    else:
        print_result({"scores": path}, as_json)


@one_message
def report(study: Study, as_json: AsJson = False) -> None:
    """Write the HTML report of what has run so far."""
    config = load_for_flow(study)
    from flows.stages import report_flow

    print_result({"report": report_flow(config, command=this_command())}, as_json)


def load_for_flow(where: str, accelerate: str | None = None) -> StudyConfig:
    """Read and check a study as `load_study` does, and get ready to run flows on it."""
    config = load_study(where, accelerate)
    start_temporary_server()
    return config


def load_study(where: str, accelerate: str | None = None) -> StudyConfig:
    """Read a study file, or the one that lies in a study folder, and check data and model before anything expensive.

    accelerate: configuration of accelerate that takes the place of the study's.
    """
    from tasks.inputs.data import check_data
    from tasks.inputs.opened import open_inputs
    from tasks.running.progress import show_message
    from tasks.settings.accelerate import acceleration_of, require_one_process
    from tasks.settings.find import find_study
    from tasks.storage.folder import revisions
    from tasks.storage.location import is_remote, working_folder
    from tasks.storage.transfer import pull
    from tasks.study.plan import plan_calibration

    require_one_process()
    config = find_study(where)
    if accelerate is not None:
        file = str(Path(accelerate).expanduser().absolute())
        config = config.model_copy(update={"final": config.final.model_copy(update={"accelerate": file})})
    acceleration_of(config)
    if is_remote(config.study):
        show_message(f"working copy of {config.study}: {working_folder(config.study)}")
    pull(config.study)
    known = bool(revisions(working_folder(config.study)))
    check_data(config.data, decode=not known).raise_if_bad()
    plan_calibration(open_inputs(config))
    return config


def _newest_revision(config: StudyConfig) -> Revision:
    from tasks.storage.location import working_folder
    from tasks.study.revision import newest_revision

    return newest_revision(working_folder(config.study))


def print_result(result: Mapping[str, object], as_json: bool) -> None:
    """Print a small result."""
    if as_json:
        print_json(result)
    else:
        for name, value in result.items():
            typer.echo(f"{name}: {value}")


def this_command() -> str:
    """The command line as it was typed."""
    return without_password(shlex.join(["mars", *sys.argv[1:]]))
