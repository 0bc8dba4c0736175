"""The nightly schedule on a real Prefect server: it fires, sees changed data, and the next night is quiet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.settings.study import read_study, write_study
from tests.conftest import wait_until

pytestmark = pytest.mark.stack

NIGHT_SECONDS = 1800  # every night is a process that imports torch, on a machine that may be busy

SCRIPT = """
import json
from datetime import timedelta
from flows.nightly import nightly_flow

if __name__ == "__main__":
    nightly_flow.serve(
        name="nightly-recalibration", parameters=json.loads({parameters!r}), interval=timedelta(seconds=10), limit=1
    )
"""


@pytest.fixture
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as client:
        yield client


def reports(client: SyncPrefectClient) -> list[str]:
    """What the nights showed in Prefect; no night may have failed."""
    ours = DeploymentFilter(name=DeploymentFilterName(any_=["nightly-recalibration"]))
    ended = [run.state for run in client.read_flow_runs(deployment_filter=ours) if run.state.is_final()]
    assert all(state.is_completed() for state in ended), ended
    return [str(artifact.data) for artifact in client.read_artifacts() if artifact.key == "mars-nightly"]


def test_the_schedule_opens_a_revision_for_changed_data_and_then_keeps_quiet(study, serving, client):
    config = read_study(study)
    config = config.model_copy(update={"calibration": config.calibration.model_copy(update={"parallel": 1})})
    write_study(config, study)
    parameters = json.dumps({"study": str(study), "trigger": "run"})
    serving(SCRIPT.format(parameters=parameters))
    folder, train = Path(config.study), Path(config.data.train)
    wait_until(lambda: any("revision 001" in text for text in reports(client)), seconds=NIGHT_SECONDS)
    assert (
        json.loads((folder / "standing.json").read_text())["revision"] == 1
    )  # the first night made the first final run

    train.write_text(json.dumps(json.loads(train.read_text())[8:]))
    wait_until(
        lambda: any("revision 002" in text and "data_hash was" in text for text in reports(client)),
        seconds=NIGHT_SECONDS,
    )
    assert "| train | 64 | 56 | 0 | 8 | 0 |" in (folder / "revisions/002/drift.md").read_text()
    assert len(list((folder / "revisions/002/calibration").glob("*.parquet"))) == 4
    wait_until(
        lambda: any("revision 002" in text and "as they were" in text for text in reports(client)),
        seconds=NIGHT_SECONDS,
    )
    assert not (folder / "revisions/003").exists()
