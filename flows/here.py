"""Train in this process, one thing after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flows.stages import evaluate_flow, finetune_arms
from tasks.calibration.packs import begin_packs
from tasks.calibration.steps import ALL_AT_ONCE
from tasks.calibration.stored import Expected
from tasks.calibration.train import calibrate_pack
from tasks.running.progress import progress_artifact
from tasks.service.timeouts import bounded
from tasks.settings.study import StudyConfig
from tasks.study.opened import Study
from tasks.study.plan import PlannedPack, PlannedRun

CALIBRATION_KEY = "mars-calibration-progress"


class Here:
    """This process as a place (see `flows.place`)."""

    def check(self, config: StudyConfig) -> None:
        """The command line has checked the data before the flow began."""

    def plan_packs(self, study: Study, missing: Sequence[PlannedRun]) -> tuple[list[PlannedPack], Expected | None]:
        """Packs as large as memory and settings allow, by a measurement of a few steps."""
        return begin_packs(study, missing)

    def train_packs(self, study: Study, packs: Sequence[PlannedPack], parent: str, what: str) -> None:
        """Train them one after the other."""
        train, of = bounded_pack(study.config), "" if what == ALL_AT_ONCE else f"{what}, "
        with progress_artifact(CALIBRATION_KEY, f"{what} packs", len(packs)) as show:
            for number, pack in enumerate(packs, start=1):
                train(study, pack, parent, f"{of}pack {number}/{len(packs)}, {len(pack.runs)} runs")
                show(number)

    def train_finals(self, study: Study) -> None:
        """Train them one after the other."""
        finetune_arms(study)

    def evaluate(self, study: Study) -> None:
        """Score them in this process."""
        evaluate_flow(study.config)


def bounded_pack(config: StudyConfig) -> Callable[..., list[str]]:
    """`calibrate_pack` with the study's time limit."""
    return bounded(calibrate_pack, config.timeouts.calibration_pack_hours, "timeouts.calibration_pack_hours")
