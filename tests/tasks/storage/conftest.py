"""Machines with a working copy each of a study in the memory store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tasks.storage.files import write_json
from tasks.storage.folder import Revision, finish, is_finished
from tasks.storage.location import CACHE_VARIABLE, working_folder
from tasks.storage.transfer import publish_stage, pull

STUDY = "memory://bucket/deep/study"


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test catches it."""


@dataclass
class Machine:
    """A machine with a cache of its own; `with_cache` makes this process be it."""

    cache: Path
    be: Callable[[Path], None]

    @property
    def revision(self) -> Revision:
        self.be(self.cache)
        return Revision(working_folder(STUDY), 1)

    def pull(self) -> None:
        self.be(self.cache)
        pull(STUDY)

    def make(self, inputs: str, outputs: dict[str, str], stage: str = "fit") -> None:
        """The stage itself: write outputs and finish, here only."""
        paths = []
        for name, content in outputs.items():
            paths.append(self.revision.path(name))
            write_json(paths[-1], content)
        finish(self.revision, stage, inputs, paths, {"by": self.cache.name})

    def publish(self, stage: str = "fit") -> None:
        self.be(self.cache)
        publish_stage(STUDY, self.revision, stage)

    def is_done(self, inputs: str, stage: str = "fit") -> bool:
        return is_finished(self.revision, stage, inputs)

    def run(self, inputs: str, outputs: dict[str, str], stage: str = "fit") -> bool:
        """What a flow does: pull, do the work if it is missing, publish; returns whether there was work."""
        self.pull()
        missing = not self.is_done(inputs, stage)
        if missing:
            self.make(inputs, outputs, stage)
        self.publish(stage)
        return missing


@pytest.fixture
def machine(tmp_path: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Machine]:
    def be(cache: Path) -> None:
        monkeypatch.setenv(CACHE_VARIABLE, str(cache))

    return lambda name: Machine(tmp_path / name, be)
