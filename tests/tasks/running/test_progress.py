"""What the Prefect UI shows of long work, on a real server; and that work goes on without the server."""

from __future__ import annotations

from contextlib import contextmanager
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.context import SyncClientContext
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from rich.console import Console

from tasks.running import progress
from tasks.running.progress import noting, progress_artifact, progress_bar


def shown(key: str) -> list[tuple[float, str]]:
    """Percentage and description of each artifact with a key that the flow run around the caller has made."""
    ours = ArtifactFilter(
        key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run.get_id())])
    )
    with get_client(sync_client=True) as client:
        return [(artifact.data, artifact.description) for artifact in client.read_artifacts(artifact_filter=ours)]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Seconds pass when the test says so."""
    now = [0.0]
    monkeypatch.setattr(progress, "perf_counter", lambda: now[0])
    return now


def test_time_left_is_what_the_pace_so_far_promises(clock):
    seen = []

    @flow
    def work():
        with progress_artifact("mars-test-pace", "packs", 4) as show:
            seen.extend(shown("mars-test-pace"))
            for done in (1, 2, 3, 4):
                clock[0] += 30
                show(done)
                seen.extend(shown("mars-test-pace"))

    work()
    assert seen == [
        (0, "packs: 0 of 4"),
        (25, "packs: 1 of 4, about 1 min 30 s left"),
        (50, "packs: 2 of 4, about 1 min 0 s left"),
        (75, "packs: 3 of 4, about 30 s left"),
        (100, "packs: 4 of 4, done in 2 min 0 s"),
    ]


def test_steps_of_an_earlier_attempt_do_not_count_as_pace(clock):
    @flow
    def resumed():
        with progress_bar("final run", 1000) as advance:
            for step in range(901, 951):
                clock[0] += 2
                advance(step)
        return shown("mars-progress")

    ((percentage, description),) = resumed()
    assert percentage == pytest.approx(95, abs=0.5)  # updates come every ten seconds, five steps
    assert "1 min 4" in description  # 50 steps at 2 s, from an update up to five steps ago


def test_quick_work_leaves_no_artifact(clock):
    @flow
    def quick():
        with progress_bar("quick", 3) as advance:
            for done in (1, 2, 3):
                clock[0] += 1
                advance(done)

        return shown("mars-progress")

    assert quick() == []


@pytest.fixture
def no_server():
    """Inside a flow, cut its client off: nothing listens on port 9."""

    @contextmanager
    def cut():
        client = SyncClientContext.get().client._client
        address, client.base_url = client.base_url, "http://127.0.0.1:9/api"
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            yield
        client.base_url = address

    return cut


def test_training_goes_on_when_the_server_is_gone(clock, capsys, no_server):
    @flow
    def outage():
        steps = []
        with progress_artifact("mars-test-outage", "steps", 3) as show, no_server():
            for done in (1, 2, 3):
                clock[0] += 30
                show(done)
                steps.append(done)
        return steps

    assert outage() == [1, 2, 3]
    assert capsys.readouterr().err.count("no longer shown") == 1


def test_a_log_without_a_terminal_has_a_line_a_minute(clock, capsys, monkeypatch):
    """With steps, the newest loss and the time left; 37 minutes of silence were one line before."""
    monkeypatch.setattr(progress, "console", Console(stderr=True, force_terminal=False, width=200))
    with progress_bar("final run", 100) as advance:
        listen = noting(advance, lambda entry: None)
        for step in range(1, 101):
            clock[0] += 2.0
            if step % 20 == 0:
                listen({"loss": 9.0, "eval_loss": 3.0 - step / 100})
            advance(step)
    assert capsys.readouterr().err.splitlines() == [
        "final run: 30 of 100, validation loss 2.8000, about 2 min 20 s left",
        "final run: 60 of 100, validation loss 2.4000, about 1 min 20 s left",
        "final run: 90 of 100, validation loss 2.2000, about 20 s left",
        "final run: done in 200.0 s",
    ]
