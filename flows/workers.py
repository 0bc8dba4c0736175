"""Train on workers: each pack, final run and evaluation is a flow run of its own on the pool `mars-gpu`."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.artifacts import create_link_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun

from flows.here import CALIBRATION_KEY
from mars_core import __version__
from mars_core.metrics.identity import content_hash
from tasks.calibration.packs import packs_for_workers
from tasks.calibration.stored import Expected
from tasks.choice.search import choice_path
from tasks.final.arm import Arm
from tasks.final.evaluate import EVALUATE
from tasks.final.pair import finetune_stage
from tasks.final.pairs import plain_rates, untrained_arms
from tasks.running.progress import progress_bar
from tasks.running.retrying import REQUESTS
from tasks.service.trigger import Request, flow_run_url, online_workers, run_all, start_once
from tasks.settings.study import StudyConfig
from tasks.storage.files import file_hash
from tasks.storage.location import study_key
from tasks.study.check import prepare_for_workers
from tasks.study.opened import Study
from tasks.study.plan import PlannedPack, PlannedRun
from tasks.study.revision import recipe_hash

PACK_DEPLOYMENT = "mars-calibrate-pack/calibrate-pack"
FINAL_DEPLOYMENT = "mars-final/final-finetune"
EVALUATE_DEPLOYMENT = "mars-score/evaluate"


class Workers:
    """The pool `mars-gpu` as a place (see `flows.place`)."""

    def check(self, config: StudyConfig) -> None:
        """Relative paths, bad rows and bad images are refused here."""
        prepare_for_workers(config)

    def plan_packs(self, study: Study, missing: Sequence[PlannedRun]) -> tuple[list[PlannedPack], Expected | None]:
        """The packs for the workers that the pool has at the moment."""
        return packs_for_workers(study, missing, online_workers(PACK_DEPLOYMENT))

    def train_packs(self, study: Study, packs: Sequence[PlannedPack], parent: str, what: str) -> None:
        """Train as many at once as workers are free."""
        requests = [pack_request(study, pack, parent) for pack in packs]
        with progress_bar(f"{what} packs", len(packs), CALIBRATION_KEY, after=0) as advance:
            run_all(requests, on_done=advance)

    def train_finals(self, study: Study) -> None:
        """Train side by side where there are several workers."""
        run_all([final_request(study, role, arm) for role, arm in untrained_arms(study).items()])
        study.pull()

    def evaluate(self, study: Study) -> None:
        """Score them on one worker."""
        inputs = EVALUATE.inputs_hash(study)
        if study.is_finished(EVALUATE.name, inputs):
            return
        run_all([evaluate_request(study, inputs)])
        study.pull()


def pack_request(study: Study, pack: PlannedPack, parent: str) -> Request:
    """The flow run that trains a pack."""
    return Request(
        deployment=PACK_DEPLOYMENT,
        identity=content_hash([study_key(study.folder), study.revision.number, study.plan.inputs_hash, pack.pack_id]),
        name=f"pack {pack.name}",
        parameters={
            "config": study.config.model_dump(mode="json"),
            "revision": study.revision.number,
            "runs": [run.run_id for run in pack.runs],
            "parent": parent,
            "code_version": __version__,
        },
        tags=_tags("calibration", study),
    )


def final_request(study: Study, role: str, arm: Arm) -> Request:
    """The flow run that trains an arm at the full budget: one per study, revision, data, recipe, choice and attempt."""
    identity = {
        "study": study_key(study.folder),
        "revision": study.revision.number,
        "data_hash": study.inputs.data.data_hash,
        "recipe_hash": recipe_hash(study.config),
        "choice": file_hash(choice_path(study.revision)),
        "pair": list(arm.pair),
        "final": finetune_stage(arm).inputs_hash(study),
    }
    return Request(
        deployment=FINAL_DEPLOYMENT,
        identity=content_hash(identity),
        name=f"final {arm.slug} ({role}) of {study.folder.name}",
        parameters={
            "config": study.config.model_dump(mode="json"),
            **arm.pair._asdict(),
            "learning_rates": plain_rates(study, arm),
        },
        tags=_tags("final", study),
    )


def evaluate_request(study: Study, inputs: str) -> Request:
    """The flow run that scores the final runs. inputs: hash of what decides the scores."""
    return Request(
        deployment=EVALUATE_DEPLOYMENT,
        identity=content_hash([study_key(study.folder), study.revision.number, inputs]),
        name=f"evaluate {study.folder.name}",
        parameters={"config": study.config.model_dump(mode="json")},
        tags=_tags("evaluate", study),
    )


def _tags(kind: str, study: Study) -> tuple[str, str, str]:
    return kind, f"study:{study.folder.name}", f"revision:{study.revision.number}"


def trigger_finals(study: Study) -> list[str]:
    """Start the final runs of a study on workers, without waiting; returns the flow run ids.

    Runs that are finished or under way are not started again.
    """
    return [trigger_final(final_request(study, role, arm)) for role, arm in untrained_arms(study).items()]


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
