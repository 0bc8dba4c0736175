"""Who plans and trains the calibration packs: this process, or workers wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from mars_core import __version__
from mars_core.metrics.identity import content_hash
from tasks.calibration.packs import begin_packs, packs_for_workers
from tasks.calibration.plan import CalibrationPlan, PlannedPack, PlannedRun
from tasks.calibration.train import calibrate_pack
from tasks.running.progress import progress_artifact, progress_bar
from tasks.service.timeouts import bounded
from tasks.service.trigger import Request, online_workers, run_all
from tasks.settings.study import StudyConfig
from tasks.storage.folder import Revision
from tasks.storage.location import study_key
from tasks.study.check import prepare_for_workers

Where = Literal["here", "workers"]
PackPlanner = Callable[
    [StudyConfig, Revision, CalibrationPlan, Sequence[PlannedRun]], tuple[list[PlannedPack], dict[str, Any]]
]
PackTrainer = Callable[[StudyConfig, Revision, CalibrationPlan, Sequence[PlannedPack], str], None]

PACK_DEPLOYMENT = "mars-calibrate-pack/calibrate-pack"
CALIBRATION_KEY = "mars-calibration-progress"


def train_packs_here(
    config: StudyConfig, revision: Revision, plan: CalibrationPlan, packs: Sequence[PlannedPack], parent: str
) -> None:
    """Train packs in this process, one after the other."""
    train = bounded_pack(config)
    with progress_artifact(CALIBRATION_KEY, "calibration packs", len(packs)) as show:
        for number, pack in enumerate(packs, start=1):
            train(config, revision, plan, pack, parent, f"pack {number}/{len(packs)}, {len(pack.runs)} runs")
            show(number)


def bounded_pack(config: StudyConfig) -> Callable[..., list[str]]:
    """`calibrate_pack` with the study's time limit."""
    return bounded(calibrate_pack, config.timeouts.calibration_pack_hours, "timeouts.calibration_pack_hours")


def packs_for_online_workers(
    config: StudyConfig, revision: Revision, plan: CalibrationPlan, missing: Sequence[PlannedRun]
) -> tuple[list[PlannedPack], dict[str, Any]]:
    """The packs for the workers that the pool has at the moment."""
    return packs_for_workers(config, revision, plan, missing, online_workers(PACK_DEPLOYMENT))


def train_packs_on_workers(
    config: StudyConfig, revision: Revision, plan: CalibrationPlan, packs: Sequence[PlannedPack], parent: str
) -> None:
    """Train each pack in a flow run of its own on the pool `mars-gpu`: as many at once as workers are free."""
    requests = [pack_request(config, revision, plan, pack, parent) for pack in packs]
    with progress_bar("calibration packs", len(packs), CALIBRATION_KEY, after=0) as advance:
        run_all(requests, on_done=advance)


def pack_request(
    config: StudyConfig, revision: Revision, plan: CalibrationPlan, pack: PlannedPack, parent: str
) -> Request:
    """The flow run that trains a pack."""
    return Request(
        deployment=PACK_DEPLOYMENT,
        identity=content_hash([study_key(revision.study), revision.number, plan.inputs_hash, pack.pack_id]),
        name=f"pack {pack.name}",
        parameters={
            "config": config.model_dump(mode="json"),
            "revision": revision.number,
            "runs": [run.run_id for run in pack.runs],
            "parent": parent,
            "code_version": __version__,
        },
        tags=("calibration", f"study:{revision.study.name}", f"revision:{revision.number}"),
    )


def check_nothing(config: StudyConfig) -> None:
    """The command line has checked the data before the flow began."""


PACK_PLANNERS: dict[Where, PackPlanner] = {"here": begin_packs, "workers": packs_for_online_workers}
PACK_TRAINERS: dict[Where, PackTrainer] = {"here": train_packs_here, "workers": train_packs_on_workers}
DATA_CHECKS: dict[Where, Callable[[StudyConfig], Any]] = {"here": check_nothing, "workers": prepare_for_workers}
