"""The flows that exist for workers: one calibration pack, one final run, the test scores, fit and search."""

from __future__ import annotations

import socket
from typing import Any

from prefect import flow

from flows.approval import AfterChoice, may_train
from flows.here import bounded_pack
from flows.results import JSON_RESULTS
from flows.stages import accept_flow, evaluate_flow, finetune_flow, fit_flow, search_flow
from flows.workers import trigger_finals
from mars_core import __version__
from mars_core.ranks import RankPair
from tasks.calibration.stored import missing_runs
from tasks.choice.approval import pair_to_train
from tasks.choice.search import choice_path
from tasks.final.arm import Arm
from tasks.final.pairs import asked_arm, final_arms, plain_rates
from tasks.running.kept import kept_open
from tasks.running.progress import show_message
from tasks.service.device_slot import device_slot
from tasks.settings.study import StudyConfig
from tasks.storage.folder import Revision
from tasks.storage.location import working_folder
from tasks.study.opened import Study, open_study, reopen_study
from tasks.study.plan import CalibrationPlan, PlannedPack

ASKED_FOR = "asked for"


@flow(name="mars-calibrate-pack", **JSON_RESULTS)
def calibrate_pack_flow(
    config: StudyConfig, revision: int, runs: list[str], parent: str, code_version: str = __version__
) -> list[str]:
    """Train one calibration pack. A calibration starts these runs, one per pack; there is no need to do it by hand.

    Args:
        config: The study.
        revision: Number of the revision that the pack belongs to.
        runs: Identities of the calibration runs in the pack.
        parent: MLflow run of the revision.
        code_version: Version of MARS that asks for the pack; a worker with another one refuses.
    """
    if code_version != __version__:
        raise ValueError(
            f"this worker runs MARS {__version__}, the calibration that asked for the pack {code_version}: "
            "install the same version on all machines"
        )
    study = Study(config, Revision(working_folder(config.study), revision))
    study.pull()
    pack = _planned_pack(study.plan, runs)
    if not missing_runs(study, pack.runs):
        show_message("calibrate-pack: already done")
        return []
    with device_slot(config.device):
        return bounded_pack(config)(study, pack, parent, pack.name)


def _planned_pack(plan: CalibrationPlan, runs: list[str]) -> PlannedPack:
    """The pack as it was asked for, runs that are stored by now included: its state is found by all of them."""
    known = {run.run_id: run for run in plan.every_run}
    if unknown := [run for run in runs if run not in known]:
        raise ValueError(
            f"{len(unknown)} of {len(runs)} calibration runs are not in this worker's plan: data, model or code on "
            f"{socket.gethostname()} differ from those of the machine that asked for them; give all machines the same"
        )
    return PlannedPack(tuple(known[run] for run in runs))


@flow(name="mars-final", **JSON_RESULTS)
def final_flow(
    config: StudyConfig,
    r_me: int | None = None,
    r_llm: int | None = None,
    learning_rates: list[float] | None = None,
) -> str:
    """Train one pair at the full budget, by default the one that the search chose; returns its adapter's path.

    The chosen pair's adapter becomes the champion if it is better on validation.

    Args:
        config: The study; its search must have run, unless both ranks are given.
        r_me: Rank of the vision encoder, by default the chosen one.
        r_llm: Rank of the language model, by default the chosen one.
        learning_rates: Peak learning rates of vision encoder, projector and language model, by default the best that
            the choice knows for the pair, or the recipe's. Give them where several were calibrated and nothing has
            chosen one yet.
    """
    study = reopen_study(config)
    arm = asked_arm(study, *_asked_for(study.revision, r_me, r_llm), learning_rates)
    role = _role(study, arm)
    with device_slot(config.device), kept_open():
        adapter = finetune_flow(config, *arm.pair, role, plain_rates(study, arm))
        if role == "chosen":  # here, where there is a GPU: the champion's adapter may have to be scored again
            accept_flow(config)
    return adapter


def _asked_for(revision: Revision, r_me: int | None, r_llm: int | None) -> RankPair:
    if r_me is not None and r_llm is not None:
        return RankPair(r_me, r_llm)
    if (r_me, r_llm) != (None, None):
        raise ValueError(f"one rank is missing: got r_me = {r_me} and r_llm = {r_llm}; give both, or none")
    return pair_to_train(revision)


def _role(study: Study, arm: Arm) -> str:
    if not choice_path(study.revision).is_file():
        return ASKED_FOR
    roles = {known: role for role, known in final_arms(study).items()}
    return roles.get(arm, ASKED_FOR)


@flow(name="mars-score", **JSON_RESULTS)
def score_flow(config: StudyConfig) -> str:
    """Score the base model and the final adapters on the test split; returns the path of the scores.

    Args:
        config: The study; its final runs must have finished.
    """
    with device_slot(config.device):
        return evaluate_flow(config)


@flow(name="mars-fit-and-search", flow_run_name="fit and search {config.short_name}", **JSON_RESULTS)
def fit_and_search_flow(config: StudyConfig, after_choice: AfterChoice = "train") -> dict[str, Any]:
    """Fit both laws, choose the pair, and trigger its final run on a worker; returns the pair and the flow runs.

    Args:
        config: The study; its calibration must have finished.
        after_choice: Train the chosen pair at once, ask a person first (this run pauses), or stop.
    """
    with kept_open():
        fit_flow(config)
        chosen = search_flow(config)
        study = open_study(config)
        if not may_train(study, after_choice):
            return {"chosen": chosen, "triggered": []}
        return {"chosen": chosen, "triggered": trigger_finals(study)}
