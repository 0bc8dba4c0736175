"""Who trains and scores the final runs: this process, or workers; and the trigger of a final run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefect import task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun

from flows.packs import Where
from flows.stages import evaluate_flow, evaluate_hash, final_pairs, finetune_flow, finetune_stage
from mars_core.metrics.identity import content_hash
from mars_core.models.lora import RankPair
from tasks.choice.search import choice_path
from tasks.final.pair import final_inputs
from tasks.inputs.data import load_data
from tasks.running.retrying import REQUESTS
from tasks.service.trigger import Request, flow_run_url, run_all, start_once
from tasks.settings.study import StudyConfig
from tasks.storage.files import file_hash
from tasks.storage.folder import Revision, is_finished
from tasks.storage.location import study_key
from tasks.study.revision import current_revision, recipe_hash

FINAL_DEPLOYMENT = "mars-final/final-finetune"
EVALUATE_DEPLOYMENT = "mars-score/evaluate"

FinalTrainer = Callable[[StudyConfig, Revision, Mapping[str, RankPair]], None]


def train_finals_here(config: StudyConfig, revision: Revision, finals: Mapping[str, RankPair]) -> None:
    """Train the final runs in this process, one after the other."""
    for role, pair in finals.items():
        finetune_flow(config, pair.r_me, pair.r_llm, role)


def train_finals_on_workers(config: StudyConfig, revision: Revision, finals: Mapping[str, RankPair]) -> None:
    """Train the final runs on workers, side by side where there are several, and wait for them."""
    run_all([final_request(config, revision, role, pair) for role, pair in _missing(config, revision, finals).items()])


def trigger_finals(config: StudyConfig) -> list[str]:
    """Start the final runs of a study's newest revision on workers, without waiting; returns the flow run ids.

    Runs that are finished or under way are not started again.
    """
    revision = current_revision(config)
    missing = _missing(config, revision, final_pairs(config, revision))
    return [trigger_final(final_request(config, revision, role, pair)) for role, pair in missing.items()]


@task(
    name="trigger-final-fine-tune",
    task_run_name="trigger {request.name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    **REQUESTS,
)
def trigger_final(request: Request) -> str:
    """Start a final run on a worker unless it is under way; returns the id of its flow run."""
    run: FlowRun = start_once(request)
    create_link_artifact(
        flow_run_url(run), link_text=run.name, key="mars-final-run", description=f"{request.name} was triggered"
    )
    return str(run.id)


def final_request(config: StudyConfig, revision: Revision, role: str, pair: RankPair) -> Request:
    """The flow run that trains a pair at the full budget: one per study, revision, data, recipe, choice and attempt."""
    identity = {
        "study": study_key(revision.study),
        "revision": revision.number,
        "data_hash": load_data(config.data).data_hash,
        "recipe_hash": recipe_hash(config),
        "choice": file_hash(choice_path(revision)),
        "pair": [pair.r_me, pair.r_llm],
        "final": final_inputs(config, pair),
    }
    return Request(
        deployment=FINAL_DEPLOYMENT,
        identity=content_hash(identity),
        name=f"final {pair.slug} ({role}) of {revision.study.name}",
        parameters={"config": config.model_dump(mode="json"), "r_me": pair.r_me, "r_llm": pair.r_llm},
        tags=("final", f"study:{revision.study.name}", f"revision:{revision.number}"),
    )


def _missing(config: StudyConfig, revision: Revision, finals: Mapping[str, RankPair]) -> dict[str, RankPair]:
    return {
        role: pair
        for role, pair in finals.items()
        if not is_finished(revision, finetune_stage(pair), final_inputs(config, pair))
    }


def evaluate_here(config: StudyConfig) -> None:
    """Score base model and final adapters in this process."""
    evaluate_flow(config)


def evaluate_on_worker(config: StudyConfig) -> None:
    """Score base model and final adapters on a worker, and wait."""
    revision = current_revision(config)
    inputs = evaluate_hash(config, revision)
    if is_finished(revision, "evaluate", inputs):
        return
    parameters: dict[str, Any] = {"config": config.model_dump(mode="json")}
    run_all(
        [
            Request(
                deployment=EVALUATE_DEPLOYMENT,
                identity=content_hash([study_key(revision.study), revision.number, inputs]),
                name=f"evaluate {revision.study.name}",
                parameters=parameters,
                tags=("evaluate", f"study:{revision.study.name}", f"revision:{revision.number}"),
            )
        ]
    )


FINAL_TRAINERS: dict[Where, FinalTrainer] = {"here": train_finals_here, "workers": train_finals_on_workers}
EVALUATORS: dict[Where, Callable[[StudyConfig], None]] = {"here": evaluate_here, "workers": evaluate_on_worker}
