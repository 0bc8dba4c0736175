"""A training that takes too long, on a real server: shown as TimedOut, told to people, its device free again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.automations import AutomationSettings, register_automations
from deployments.catalogue import DEPLOYMENTS, GPU_POOL, POOLS
from deployments.register import register_deployment, register_pool
from tasks.inputs.opened import Inputs
from tasks.service.device_slot import slot_name
from tasks.service.trigger import Request, run_all
from tasks.settings.final import FinalConfig, TimeoutConfig
from tasks.settings.study import StudyConfig
from tasks.study.revision import open_revision
from tests.conftest import wait_until
from tests.deployments.receiver import receiving
from tests.deployments.worker_process import kill_with_children, start_worker
from tests.flows.conftest import write_small_study

pytestmark = pytest.mark.stack


@dataclass(frozen=True)
class Server:
    """A server that tells a receiver when a run fails."""

    client: SyncPrefectClient
    received: list[dict[str, Any]]


@pytest.fixture
def server(prefect_server: str) -> Iterator[Server]:
    with (
        temporary_settings({PREFECT_API_URL: prefect_server}),
        get_client(sync_client=True) as client,
        receiving() as (address, received),
    ):
        Webhook(url=address, allow_private_urls=True).save("mars-timeouts", overwrite=True)
        register_automations(client, AutomationSettings(notify="webhook/mars-timeouts"))
        yield Server(client, received)
        for automation in client.read_automations():
            client.delete_automation(automation.id)


@pytest.fixture
def long_study(tmp_path: Path, demo_data: Path) -> StudyConfig:
    """A final run of thousands of steps, with seconds to make them in."""
    config = write_small_study(tmp_path, demo_data)
    config = config.model_copy(
        update={"final": FinalConfig(epochs=500), "timeouts": TimeoutConfig(final_run_hours=10 / 3600)}
    )
    open_revision(Inputs(config), new=False)
    return config


@pytest.fixture
def worker(server: Server, prefect_server: str, tmp_path: Path) -> Iterator[None]:
    """A worker for the registered pool and deployment of final runs."""
    (pool,) = [one for one in POOLS if one.name == GPU_POOL]
    register_pool(server.client, pool)
    register_deployment(server.client, next(one for one in DEPLOYMENTS if one.name == "final-finetune"))
    process = start_worker(GPU_POOL, prefect_server, tmp_path)
    yield
    kill_with_children(process)


@pytest.mark.usefixtures("worker")
def test_a_final_run_that_takes_too_long_is_told_and_gives_its_device_back(server, long_study):
    parameters = {"config": long_study.model_dump(mode="json"), "r_me": 2, "r_llm": 2}
    request = Request("mars-final/final-finetune", "too long", "final of a long study", parameters)
    with pytest.raises(RuntimeError, match=r"ended TimedOut: .*timeouts\.final_run_hours = 0\.00277"):
        run_all([request])
    wait_until(lambda: server.received, seconds=60)
    (told,) = server.received
    assert (told["subject"], told["state"]) == ("mars: run failed", "TimedOut")
    slot = server.client.read_global_concurrency_limit_by_name(slot_name("cpu"))
    assert slot.active_slots == 0
