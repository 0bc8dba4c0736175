"""Machines that are killed between any two operations on the store, in any order of events."""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tasks.storage import mirror as mirror_module
from tasks.storage.files import read_json
from tasks.storage.location import CACHE_VARIABLE
from tasks.storage.transfer import StudyChangedError
from tests.tasks.storage.conftest import Killed, Machine

ROOT = "/bucket/deep/study/revisions/001"
MACHINES = ("one", "two", "three")
INPUTS = ("i", "j", "k")


class Countdown:
    """Kills before the n-th writing step: an operation on the store, or the note of it in the ledger."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        store = type(fsspec.filesystem("memory"))
        for owner, verb in ((store, "put_file"), (store, "rm_file"), (mirror_module, "write_ledger")):
            patch.setattr(owner, verb, self._wrapped(getattr(owner, verb)))

    def _wrapped(self, operation):
        def counted(*args, **kwargs):
            if self.left is not None:
                if self.left == 0:
                    raise Killed
                self.left -= 1
            return operation(*args, **kwargs)

        return counted


def outputs_for(inputs: str, who: str) -> dict[str, str]:
    """Outputs that differ by inputs and, as wall times do, by machine; `k` makes one file less."""
    names = ("adapter/a.json", "adapter/b.json", "laws.json")
    return {name: f"{name} for {inputs} by {who}" for name in names[: 2 if inputs == "k" else 3]}


def check_store() -> None:
    """A manifest in the store names outputs that are there, with the content that it says."""
    store = fsspec.filesystem("memory")
    if not store.exists(f"{ROOT}/manifests/fit.json"):
        return
    manifest = json.loads(store.cat_file(f"{ROOT}/manifests/fit.json"))
    for name, digest in manifest["outputs"].items():
        assert hashlib.sha256(store.cat_file(f"{ROOT}/{name}")).hexdigest() == digest


class SeveralMachines(RuleBasedStateMachine):
    """Machines run a stage with changing inputs, some are killed on the way, some publish without looking."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.countdown = Countdown(self.patch)
        self.folder = tempfile.TemporaryDirectory()
        be = lambda cache: self.patch.setenv(CACHE_VARIABLE, str(cache))  # noqa: E731
        self.machines = {name: Machine(Path(self.folder.name) / name, be) for name in MACHINES}
        store = fsspec.filesystem("memory")
        if store.exists("/bucket"):
            store.rm("/bucket", recursive=True)

    def teardown(self) -> None:
        self.patch.undo()
        self.folder.cleanup()

    @rule(name=st.sampled_from(MACHINES), inputs=st.sampled_from(INPUTS))
    def run(self, name: str, inputs: str) -> None:
        machine = self.machines[name]
        machine.run(inputs, outputs_for(inputs, name))
        # A machine that knows nothing yet finds the stage done with these inputs, as one machine made it.
        with tempfile.TemporaryDirectory() as cache:
            newcomer = Machine(Path(cache), machine.be)
            newcomer.pull()
            assert newcomer.is_done(inputs)
            made = {read_json(newcomer.revision.path(output)) for output in outputs_for(inputs, name)}
            assert any(made == set(outputs_for(inputs, who).values()) for who in MACHINES)

    @rule(name=st.sampled_from(MACHINES), inputs=st.sampled_from(INPUTS), steps=st.integers(0, 14))
    def run_and_be_killed(self, name: str, inputs: str, steps: int) -> None:
        self.countdown.left = steps
        with suppress(Killed):
            self.machines[name].run(inputs, outputs_for(inputs, name))
        self.countdown.left = None

    @rule(name=st.sampled_from(MACHINES), inputs=st.sampled_from(INPUTS))
    def work_offline(self, name: str, inputs: str) -> None:
        self.machines[name].make(inputs, outputs_for(inputs, name))

    @rule(name=st.sampled_from(MACHINES))
    def publish_without_looking(self, name: str) -> None:
        machine = self.machines[name]
        manifest = machine.revision.manifest("fit")
        if manifest.is_file() and machine.is_done(read_json(manifest)["inputs"]):
            with suppress(StudyChangedError):
                machine.publish()

    @invariant()
    def store_is_sound(self) -> None:
        check_store()


TestSeveralMachines = SeveralMachines.TestCase
TestSeveralMachines.settings = settings(max_examples=25, stateful_step_count=10, deadline=None)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.integers(0, 14))
def test_stale_copy_cannot_undo_what_another_machine_published(steps):
    """Killed anywhere in publishing old work, then back after another machine has gone on."""
    events = SeveralMachines()
    try:
        events.run("one", "i")
        events.countdown.left = None
        events.work_offline("one", "j")
        events.run_and_be_killed("one", "j", steps)
        events.run("two", "k")
        before = fsspec.filesystem("memory").cat_file(f"{ROOT}/manifests/fit.json")
        events.publish_without_looking("one")
        assert fsspec.filesystem("memory").cat_file(f"{ROOT}/manifests/fit.json") == before
        check_store()
    finally:
        events.teardown()
