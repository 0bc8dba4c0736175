"""An open study: its settings, its revision, its plan, and which of its stages have finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.inputs.opened import Inputs, open_inputs
from tasks.running.kept import keep, kept
from tasks.settings.study import StudyConfig
from tasks.storage import folder as storage
from tasks.storage import location, transfer
from tasks.storage.folder import Revision
from tasks.study.plan import CalibrationPlan, plan_calibration
from tasks.study.rates import read_rates
from tasks.study.revision import current_revision, open_revision


class Study:
    """A study, what it is made of, and the revision of it that a command works on.

    Outputs of a stage are hashed once: what was found finished stays so until it is finished again or pulled anew.
    """

    def __init__(self, config: StudyConfig, revision: Revision, inputs: Inputs | None = None) -> None:
        self.config, self.revision = config, revision
        self.inputs = inputs or open_inputs(config)
        self._finished: dict[str, str] = {}

    @property
    def folder(self) -> Path:
        """The folder on this machine that the stages work on."""
        return self.revision.study

    @cached_property
    def plan(self) -> CalibrationPlan:
        """All calibration runs; with automatic learning rates, those that are decided."""
        return plan_calibration(self.inputs, read_rates(self.revision))

    def plan_again(self) -> None:
        """Plan anew: learning rates have been decided since."""
        vars(self).pop("plan", None)

    def with_plan(self, plan: CalibrationPlan) -> Study:
        """The same study with other calibration runs; its own plan is left as it is."""
        other = Study(self.config, self.revision, self.inputs)
        other.plan = plan
        return other

    def at(self, revision: Revision) -> Study:
        """The same study and plan at another revision."""
        other = Study(self.config, revision, self.inputs)
        other.plan = self.plan
        return other

    def path(self, *parts: str) -> Path:
        """A path within the revision."""
        return self.revision.path(*parts)

    def address(self, path: Path) -> str:
        """What to tell the user about a file: its URL where the study is remote, else its path."""
        return location.address(self.config.study, path)

    def pull(self) -> None:
        """Bring down what other machines have published."""
        transfer.pull(self.config.study)
        if location.is_remote(self.config.study):
            self.look_again()

    def look_again(self) -> None:
        """Forget which stages were found finished, and the plan: others may have worked on the study since."""
        self._finished.clear()
        self.plan_again()

    def is_finished(self, stage: str, inputs: str) -> bool:
        """Whether a stage has finished with these inputs and its outputs are all still as it left them."""
        if self._finished.get(stage) == inputs:
            return True
        finished = storage.is_finished(self.revision, stage, inputs)
        if finished:
            self._finished[stage] = inputs
        return finished

    def has_finished_once(self, stage: str) -> bool:
        """Whether a stage has finished, with whatever inputs."""
        return self.revision.manifest(stage).is_file()

    def finish(self, stage: str, inputs: str, outputs: Iterable[Path], details: Mapping[str, Any]) -> None:
        """Record that a stage has finished, and publish what it wrote."""
        storage.finish(self.revision, stage, inputs, outputs, details)
        self._finished[stage] = inputs
        self.publish(stage)

    def publish(self, stage: str) -> None:
        """Bring a finished stage's outputs up to a remote study folder, as far as they are not there."""
        transfer.publish_stage(self.config.study, self.revision, stage)

    def outputs_hash(self, *stages: str) -> str:
        """Hash of what some finished stages wrote.

        Raises:
            ValueError: one of the stages has not finished.
        """
        return storage.outputs_hash(self.revision, *stages)


def open_study(config: StudyConfig, *, new: bool = False) -> Study:
    """Open a study at its newest revision, or at a new one where there is none or `new` asks for it.

    Raises:
        ValueError: the newest revision was made with another model, data or recipe.
    """
    found = None if new else kept(Study, config)
    if found is None:
        inputs = open_inputs(config)
        found = Study(config, open_revision(inputs, new=new), inputs)
        keep(found)
    return found


def begun_study(config: StudyConfig) -> Study:
    """As `open_study`, for stages that read what a calibration wrote: they begin no study.

    Raises:
        ValueError: the study holds no revision, or its newest was made with another model, data or recipe.
    """
    if not storage.revisions(location.working_folder(config.study)):
        current_revision(config)  # looks in a remote study too, and says what to run first
    return open_study(config)


def reopen_study(config: StudyConfig) -> Study:
    """Open the newest revision as it is, whatever its model, data and recipe are now.

    Raises:
        ValueError: the study holds none.
    """
    return Study(config, current_revision(config))
