"""Where a study is trained: what differs between this process and workers, wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from flows.here import Here
from flows.workers import Workers
from tasks.calibration.stored import Expected
from tasks.settings.study import StudyConfig
from tasks.study.opened import Study
from tasks.study.plan import PlannedPack, PlannedRun

Where = Literal["here", "workers"]


class Place(Protocol):
    """Plans and trains packs, trains and scores final runs. `flows.here` and `flows.workers` are the two there are."""

    def check(self, config: StudyConfig) -> None:
        """Refuse what cannot be trained there, before anything expensive."""

    def plan_packs(self, study: Study, missing: Sequence[PlannedRun]) -> tuple[list[PlannedPack], Expected | None]:
        """The packs that train the missing runs, and what they are expected to take where that is known."""

    def train_packs(self, study: Study, packs: Sequence[PlannedPack], parent: str, what: str) -> None:
        """Train packs, and wait for them. parent: MLflow run of the revision. what: the packs' step, for people."""

    def train_finals(self, study: Study) -> None:
        """Make the final runs of the present choice (`tasks.final.pairs`), and wait for them."""

    def evaluate(self, study: Study) -> None:
        """Score base model and final adapters, and wait for it."""


def place_of(where: Where) -> Place:
    """The place that a flow's parameter names."""
    places: dict[Where, Place] = {"here": Here(), "workers": Workers()}
    return places[where]
