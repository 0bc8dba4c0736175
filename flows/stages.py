"""The stages of a study as flows: each reads what the stage before wrote, and does only what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow

from flows.packs import DATA_CHECKS, PACK_PLANNERS, PACK_TRAINERS, Where
from flows.results import JSON_RESULTS
from mars_core.metrics.identity import content_hash
from mars_core.models.lora import RankPair
from tasks.calibration.hours import publish_calibration
from tasks.calibration.plan import CalibrationPlan, plan_calibration
from tasks.calibration.reuse import adopt_runs
from tasks.calibration.stored import beside_taken, calibration_cost, calibration_outputs, describe_cost, missing_runs
from tasks.choice.approval import pair_to_train
from tasks.choice.fit import fit_inputs, fit_laws, laws_path, levels_path
from tasks.choice.search import choice_path, choose_ranks, chosen_pair, search_inputs
from tasks.export.card import card_path, card_stage, card_text, has_adapter, write_card
from tasks.final.evaluate import evaluate_finals, evaluation_outputs, evaluation_path
from tasks.final.pair import final_folder, final_inputs, final_outputs, finetune_pair
from tasks.nightly.champion import accept_by_hand, accept_if_better, keep_champion_adapter
from tasks.report.write import Results, publish_artifacts, publish_to_mlflow, report_path, show_report, write_report
from tasks.running.progress import say
from tasks.service.timeouts import bounded
from tasks.settings.study import StudyConfig
from tasks.storage.folder import Revision, finish, is_finished, outputs_hash
from tasks.storage.location import address, working_folder
from tasks.storage.transfer import publish_stage, pull
from tasks.study.lock import at_work_on
from tasks.study.revision import open_revision
from tasks.tracking import runs as tracking


@flow(name="mars-calibrate", flow_run_name="calibrate {config.study}", **JSON_RESULTS)
def calibrate_flow(config: StudyConfig, new_revision: bool = False, where: Where = "here") -> str:
    """Train the calibration runs that are missing; returns the revision's folder.

    Args:
        config: The study.
        new_revision: Open a new revision in the study folder, for a new model, new data or a new recipe.
        where: Train in this process, or each pack in a run of its own on the workers of pool mars-gpu.
    """
    DATA_CHECKS[where](config)
    with at_work_on(working_folder(config.study)):
        return _calibrate(config, new_revision, where)


def _calibrate(config: StudyConfig, new_revision: bool, where: Where) -> str:
    plan = plan_calibration(config)
    revision = open_revision(config, new=new_revision)
    for note in plan.notes:
        say(f"note: {note}")
    if is_finished(revision, "calibrate", plan.inputs_hash):
        say("calibrate: already done")
        publish_stage(config.study, revision, "calibrate")
        return address(config.study, revision.folder)
    adopted = adopt_runs(revision, plan)
    if adopted:
        say(f"calibrate: {len(adopted)} runs taken over from older revisions")
    missing = missing_runs(revision, plan)
    say(f"calibrate: {len(missing)} of {len(plan.runs)} runs to train, {plan.run_lengths} each")
    packs, expected = PACK_PLANNERS[where](config, revision, plan, missing)
    with parent_run(config, revision) as parent:
        PACK_TRAINERS[where](config, revision, plan, packs, parent)
        pull(config.study)  # the runs that other machines trained
        _insist_on_every_run(revision, plan)
        publish_calibration(config, revision, plan, missing, parent)
    cost = calibration_cost(revision, plan) | beside_taken(revision, expected)
    say(f"calibrate: took {describe_cost(cost)}")
    finish(revision, "calibrate", plan.inputs_hash, calibration_outputs(revision, plan), cost)
    publish_stage(config.study, revision, "calibrate")
    return address(config.study, revision.folder)


def _insist_on_every_run(revision: Revision, plan: CalibrationPlan) -> None:
    missing = missing_runs(revision, plan)
    if missing:
        raise RuntimeError(
            f"{len(missing)} of {len(plan.runs)} calibration runs are missing or not measured at steps "
            f"{list(missing[0].schedule.checkpoint_steps)} after all packs have ended, first {missing[0].name} in "
            f"{revision.path('calibration')}: run `mars calibrate` again, it trains those"
        )


def parent_run(config: StudyConfig, revision: Revision) -> AbstractContextManager[str]:
    """The MLflow run of the revision, open; gives its id."""
    return tracking.study_run(working_folder(config.study), revision.number, config.model_dump(mode="json"))


@flow(name="mars-fit", flow_run_name="fit {config.study}", **JSON_RESULTS)
def fit_flow(config: StudyConfig) -> str:
    """Fit law P and law C; returns the path of the laws."""
    revision = open_revision(config, new=False)
    plan = plan_calibration(config)
    run_stage(
        config,
        revision,
        "fit",
        fit_hash(config, revision, plan),
        [laws_path(revision), levels_path(revision)],
        lambda: fit_laws(config, revision, plan),
    )
    return address(config.study, laws_path(revision))


@flow(name="mars-search", flow_run_name="search {config.study}", **JSON_RESULTS)
def search_flow(config: StudyConfig) -> dict[str, int]:
    """Choose the rank pair; returns it."""
    revision = open_revision(config, new=False)
    plan = plan_calibration(config)

    def work() -> None:
        choose_ranks(config, revision, plan)
        publish_artifacts(revision)

    run_stage(config, revision, "search", search_hash(config, revision, plan), [choice_path(revision)], work)
    pair = chosen_pair(revision)
    return {"r_me": pair.r_me, "r_llm": pair.r_llm}


@flow(name="mars-final-fine-tune", flow_run_name="fine-tune me{r_me}-llm{r_llm} {config.study}", **JSON_RESULTS)
def finetune_flow(config: StudyConfig, r_me: int, r_llm: int, role: str = "chosen") -> str:
    """Train one pair at the full budget; returns the path of its adapter."""
    revision = open_revision(config, new=False)
    pair = RankPair(r_me, r_llm)
    inputs = final_inputs(config, pair)
    train = bounded(finetune_pair, config.timeouts.final_run_hours, "timeouts.final_run_hours")

    def work() -> None:
        keep_champion_adapter(config, revision, pair, inputs)
        with parent_run(config, revision) as parent:
            train(config, revision, pair, role, parent)

    run_stage(config, revision, finetune_stage(pair), inputs, final_outputs(revision, pair), work)
    _write_cards(config, revision, [pair])
    return address(config.study, final_folder(revision, pair) / "adapter")


@flow(name="mars-evaluate", flow_run_name="evaluate {config.study}", **JSON_RESULTS)
def evaluate_flow(config: StudyConfig) -> str:
    """Score base model and final adapters on the test split; returns the path of the scores."""
    revision = open_revision(config, new=False)
    finals = final_pairs(config, revision)
    score = bounded(evaluate_finals, config.timeouts.evaluation_hours, "timeouts.evaluation_hours")

    def work() -> None:
        tracking.open_experiment(working_folder(config.study))
        score(config, revision, finals)

    outputs = evaluation_outputs(revision, finals)
    run_stage(config, revision, "evaluate", evaluate_hash(config, revision), outputs, work)
    _write_cards(config, revision, finals.values())
    return address(config.study, evaluation_path(revision))


@flow(name="mars-accept", flow_run_name="accept {config.study}", **JSON_RESULTS)
def accept_flow(config: StudyConfig) -> dict[str, Any]:
    """Make the chosen pair's final run the standing choice if it is better on validation; returns the decision."""
    revision, pair = _finished_final(config)
    decision = accept_if_better(config, revision, pair)
    say(f"final run of {pair}: {'accepted' if decision['accepted'] else 'not accepted'}, {decision['reason']}")
    return decision


@flow(name="mars-accept-by-hand", flow_run_name="accept by hand {config.study}", **JSON_RESULTS)
def accept_by_hand_flow(config: StudyConfig) -> dict[str, Any]:
    """Make the chosen pair's final run the standing choice because a person says so; returns the decision."""
    revision, pair = _finished_final(config)
    return accept_by_hand(config, revision, pair)


def _finished_final(config: StudyConfig) -> tuple[Revision, RankPair]:
    revision = open_revision(config, new=False)
    pair = final_pairs(config, revision)["chosen"]
    require(revision, finetune_stage(pair), final_inputs(config, pair))
    return revision, pair


@flow(name="mars-report", flow_run_name="report {config.study}", **JSON_RESULTS)
def report_flow(config: StudyConfig, command: str = "mars report") -> str:
    """Write the HTML report of what has run so far; returns its path."""
    revision = open_revision(config, new=False)
    plan = plan_calibration(config)
    chosen = search_hash(config, revision, plan)
    require(revision, "search", chosen)
    finals = trained_pairs(config, revision)
    evaluated = _evaluated(config, revision, finals)
    later = [*(["evaluate"] * evaluated), *(["compare"] * revision.manifest("compare").is_file())]
    stages = ["calibrate", "fit", "search", *map(finetune_stage, finals.values()), *later]
    inputs = content_hash([chosen, outputs_hash(revision, *stages), stages])

    def work() -> None:
        results = Results(revision, plan, finals, evaluated)
        write_report(config, results, command)
        with parent_run(config, revision) as parent:
            publish_to_mlflow(revision, evaluated, parent)
            show_report(config, results, parent)

    run_stage(config, revision, "report", inputs, [report_path(revision)], work)
    return address(config.study, report_path(revision))


def fit_hash(config: StudyConfig, revision: Revision, plan: CalibrationPlan) -> str:
    """Inputs of the fit; refuses a calibration that is not the planned one."""
    require(revision, "calibrate", plan.inputs_hash)
    return content_hash([outputs_hash(revision, "calibrate"), fit_inputs(config, plan)])


def search_hash(config: StudyConfig, revision: Revision, plan: CalibrationPlan) -> str:
    """Inputs of the search; refuses laws that were fitted to something else."""
    require(revision, "fit", fit_hash(config, revision, plan))
    return content_hash([outputs_hash(revision, "calibrate", "fit"), search_inputs(config)])


def evaluate_hash(config: StudyConfig, revision: Revision) -> str:
    """Inputs of the evaluation; refuses final runs that are missing or made with other settings."""
    finals = final_pairs(config, revision)
    for pair in finals.values():
        require(revision, finetune_stage(pair), final_inputs(config, pair))
    settings = config.evaluation.model_dump(mode="json")
    return content_hash([sorted(finals), settings, outputs_hash(revision, *map(finetune_stage, finals.values()))])


def require(revision: Revision, stage: str, inputs: str) -> None:
    """Insist that an earlier stage has finished with its present inputs.

    Raises:
        ValueError: it has not run, its outputs were changed, or it ran with other settings.
    """
    if not is_finished(revision, stage, inputs):
        command = stage.partition("-")[0]
        raise ValueError(
            f"stage {stage!r} is missing in {revision.folder}, or was made with other settings: "
            f"run `mars {command}` first"
        )


def finetune_stage(pair: RankPair) -> str:
    """Name of the final fine-tune's stage."""
    return f"finetune-{pair.slug}"


def final_pairs(config: StudyConfig, revision: Revision) -> dict[str, RankPair]:
    """Pairs of the final runs by role: the chosen one (or what a person put in its place), and the uniform default."""
    chosen = pair_to_train(revision)
    uniform = RankPair(config.calibration.reference_rank, config.calibration.reference_rank)
    if not config.final.compare_uniform or uniform == chosen:
        return {"chosen": chosen}
    return {"chosen": chosen, "uniform": uniform}


def trained_pairs(config: StudyConfig, revision: Revision) -> dict[str, RankPair]:
    """Those of `final_pairs` whose final run has finished."""
    if not choice_path(revision).is_file():
        return {}
    return {
        role: pair
        for role, pair in final_pairs(config, revision).items()
        if is_finished(revision, finetune_stage(pair), final_inputs(config, pair))
    }


def _evaluated(config: StudyConfig, revision: Revision, trained: dict[str, RankPair]) -> bool:
    """Whether the stored test scores are those of the present final runs."""
    if not trained or trained != final_pairs(config, revision):
        return False
    return is_finished(revision, "evaluate", evaluate_hash(config, revision))


def _write_cards(config: StudyConfig, revision: Revision, pairs: Iterable[RankPair]) -> None:
    """Write the model card of each finished final run, or complete it, where it does not say what is known by now."""
    trained = trained_pairs(config, revision)
    scored = trained if _evaluated(config, revision, trained) else None
    for pair in filter(partial(has_adapter, revision), pairs):
        text, stage = card_text(config, revision, pair, scored), card_stage(pair)
        inputs = content_hash(text)
        if not is_finished(revision, stage, inputs):
            write_card(revision, pair, text)
            finish(revision, stage, inputs, [card_path(revision, pair)], {})
        publish_stage(config.study, revision, stage)


def run_stage(
    config: StudyConfig, revision: Revision, name: str, inputs: str, outputs: Iterable[Path], work: Callable[[], Any]
) -> bool:
    """Do a stage's work unless it has finished with these inputs; returns whether it was done now."""
    if is_finished(revision, name, inputs):
        say(f"{name}: already done")
        publish_stage(config.study, revision, name)  # where it was killed before its results were all up
        return False
    say(f"{name}: running")
    started = time.perf_counter()
    work()
    finish(revision, name, inputs, outputs, {"seconds": time.perf_counter() - started})
    publish_stage(config.study, revision, name)
    return True
