"""A stage of a study as a record: what it reads, what decides what it writes, and which files those are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.running.progress import show_message
from tasks.study.opened import Study


def _nothing(study: Study) -> Sequence[Stage]:
    return ()


@dataclass(frozen=True)
class Stage:
    """One stage.

    name: of its manifest; up to the first hyphen, the command that runs it. inputs: hash of all that decides what it
    writes, given the hash of what the stages that it reads wrote. outputs: files and folders of a finished one.
    reads: stages whose outputs it reads. announced: whether the user is told that it runs; of one that takes no time
    there is nothing to tell.
    """

    name: str
    inputs: Callable[[Study, str], str]
    outputs: Callable[[Study], Iterable[Path]]
    reads: Callable[[Study], Sequence[Stage]] = _nothing
    announced: bool = True

    def inputs_hash(self, study: Study) -> str:
        """Hash of its present inputs.

        Raises:
            ValueError: a stage that it reads has not finished with its own present inputs.
        """
        read = self.reads(study)
        for stage in read:
            stage.require(study)
        return self.inputs(study, study.outputs_hash(*(stage.name for stage in read)))

    def is_finished(self, study: Study) -> bool:
        """Whether it has finished with its present inputs, and its outputs are as it left them."""
        return study.is_finished(self.name, self.inputs_hash(study))

    def require(self, study: Study) -> None:
        """Insist that it has finished with its present inputs.

        Raises:
            ValueError: it has not run, its outputs were changed, or it ran with other settings.
        """
        if not self.is_finished(study):
            raise ValueError(
                f"stage {self.name!r} is missing in {study.revision.folder}, or was made with other settings: "
                f"run `mars {self.name.partition('-')[0]}` first"
            )

    def run(self, study: Study, work: Callable[[], Mapping[str, Any] | None]) -> bool:
        """Do its work unless it has finished with its present inputs; returns whether it was done now.

        work: may give details that are kept with the stage, such as cost, beside the seconds that it took.
        """
        inputs = self.inputs_hash(study)
        if study.is_finished(self.name, inputs):
            self._announce("already done")
            study.publish(self.name)  # where it was killed before its results were all up
            return False
        self._announce("running")
        started = time.perf_counter()
        details = work() or {}
        study.finish(self.name, inputs, self.outputs(study), {"seconds": time.perf_counter() - started, **details})
        return True

    def _announce(self, what: str) -> None:
        if self.announced:
            show_message(f"{self.name}: {what}")
