"""The stages of a study as flows: each reads what the stage before wrote, and does only what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from prefect import flow

from flows.results import JSON_RESULTS
from tasks.choice.fit import FIT, fit_laws, laws_path
from tasks.choice.search import SEARCH, choose_ranks, chosen_pair
from tasks.export.card import card_stage, card_text, has_adapter, write_card
from tasks.final.arm import Arm
from tasks.final.evaluate import EVALUATE, evaluate_finals, evaluation_path, is_evaluated
from tasks.final.forgetting import FORGETTING, measure_forgetting
from tasks.final.pair import final_folder, finetune_arm, finetune_stage
from tasks.final.pair_forgetting import PAIR_FORGETTING, measure_pairs
from tasks.final.pairs import asked_arm, final_arms, plain_rates, trained_arms
from tasks.nightly.champion import accept_by_hand, accept_if_better, keep_champion_adapter
from tasks.report.write import (
    REPORT,
    Results,
    publish_artifacts,
    publish_to_mlflow,
    report_path,
    show_report,
    write_report,
)
from tasks.running.progress import show_message
from tasks.service.timeouts import bounded
from tasks.settings.study import StudyConfig
from tasks.study.opened import Study, begun_study, open_study
from tasks.study.parent_run import parent_run
from tasks.tracking import runs as tracking


@flow(name="mars-fit", flow_run_name="fit {config.short_name}", **JSON_RESULTS)
def fit_flow(config: StudyConfig) -> str:
    """Fit law P and law C; returns the path of the laws."""
    study = begun_study(config)

    def work() -> None:
        fit_laws(study)

    FIT.run(study, work)
    return study.address(laws_path(study.revision))


@flow(name="mars-search", flow_run_name="search {config.short_name}", **JSON_RESULTS)
def search_flow(config: StudyConfig) -> dict[str, int]:
    """Choose the rank pair; returns it."""
    study = begun_study(config)

    def work() -> None:
        choose_ranks(study)
        publish_artifacts(study.revision)

    SEARCH.run(study, work)
    if config.search.forgetting_weight is not None:
        PAIR_FORGETTING.run(study, partial(_measure_pairs, study))
    pair = chosen_pair(study.revision)
    return pair._asdict()


def _measure_pairs(study: Study) -> None:
    measure_pairs(study)


@flow(name="mars-final-fine-tune", flow_run_name="fine-tune me{r_me}-llm{r_llm} {config.short_name}", **JSON_RESULTS)
def finetune_flow(
    config: StudyConfig, r_me: int, r_llm: int, role: str = "chosen", learning_rates: list[float] | None = None
) -> str:
    """Train one pair at the full budget; returns the path of its adapter.

    learning_rates: Peak rates of vision encoder, projector and LLM, by default the best that the choice knows for the
        pair, or the recipe's; they must be given where several were calibrated and nothing has chosen one yet.
    """
    study = open_study(config)
    arm = asked_arm(study, r_me, r_llm, learning_rates)
    stage = finetune_stage(arm)
    train = bounded(finetune_arm, config.timeouts.final_run_hours, "timeouts.final_run_hours")

    def work() -> None:
        study.pull()  # another machine may have accepted a run since the study was opened
        keep_champion_adapter(study, arm, stage.inputs_hash(study))
        with parent_run(study) as parent:
            train(study, arm, role, parent)

    stage.run(study, work)
    _write_cards(study, [arm])
    return study.address(final_folder(study.revision, arm) / "adapter")


def finetune_arms(study: Study) -> dict[str, str]:
    """Make the final runs of the present choice in this process; returns the adapter of each role."""
    return {
        role: finetune_flow(study.config, *arm.pair, role, plain_rates(study, arm))
        for role, arm in final_arms(study).items()
    }


@flow(name="mars-evaluate", flow_run_name="evaluate {config.short_name}", **JSON_RESULTS)
def evaluate_flow(config: StudyConfig) -> str:
    """Score base model and final adapters on the test split; returns the path of the scores."""
    study = begun_study(config)
    finals = final_arms(study)
    score = bounded(evaluate_finals, config.timeouts.evaluation_hours, "timeouts.evaluation_hours")

    def work() -> None:
        tracking.open_experiment(study.folder)
        score(study, finals)

    EVALUATE.run(study, work)
    if config.upstream:
        _measure_forgetting(study, finals)
    _write_cards(study, finals.values())
    return study.address(evaluation_path(study.revision))


def _measure_forgetting(study: Study, finals: dict[str, Arm]) -> None:
    limit = study.config.timeouts.evaluation_hours
    measured = bounded(measure_forgetting, limit, "timeouts.evaluation_hours")

    def work() -> None:
        tracking.open_experiment(study.folder)
        measured(study, finals)

    FORGETTING.run(study, work)


@flow(name="mars-accept", flow_run_name="accept {config.short_name}", **JSON_RESULTS)
def accept_flow(config: StudyConfig) -> dict[str, Any]:
    """Make the chosen pair's final run the champion if it is better on validation; returns the decision."""
    study = begun_study(config)
    study.pull()  # another machine may have accepted a run while this one trained
    arm = _finished_final(study)
    decision = accept_if_better(study, arm)
    show_message(f"final run of {arm}: {'accepted' if decision.accepted else 'not accepted'}, {decision.reason}")
    return decision.to_json()


@flow(name="mars-accept-by-hand", flow_run_name="accept by hand {config.short_name}", **JSON_RESULTS)
def accept_by_hand_flow(config: StudyConfig) -> dict[str, Any]:
    """Make the chosen pair's final run the champion because a person says so; returns the decision."""
    study = begun_study(config)
    return accept_by_hand(study, _finished_final(study)).to_json()


def _finished_final(study: Study) -> Arm:
    arm = final_arms(study)["chosen"]
    finetune_stage(arm).require(study)
    return arm


@flow(name="mars-report", flow_run_name="report {config.short_name}", **JSON_RESULTS)
def report_flow(config: StudyConfig, command: str = "mars report") -> str:
    """Write the HTML report of what has run so far; returns its path."""
    study = begun_study(config)

    def work() -> None:
        results = Results(study, trained_arms(study), is_evaluated(study))
        write_report(results, command)
        with parent_run(study) as parent:
            publish_to_mlflow(study.revision, results.evaluated, parent)
            show_report(results, parent)

    REPORT.run(study, work)
    return study.address(report_path(study.revision))


def _write_cards(study: Study, arms: Iterable[Arm]) -> None:
    """Write the model card of each finished final run, or complete it, where it does not say what is known by now."""
    scored = trained_arms(study) if is_evaluated(study) else None
    for arm in filter(partial(has_adapter, study.revision), arms):
        text = card_text(study, arm, scored)
        card_stage(arm, text).run(study, partial(_write_card, study, arm, text))


def _write_card(study: Study, arm: Arm, text: str) -> None:
    write_card(study.revision, arm, text)
