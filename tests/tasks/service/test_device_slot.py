"""A slot that the server has lost, on a real server: freed where its holder has ended, left alone where it has not."""

from __future__ import annotations

import threading
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.service import device_slot as module
from tasks.service.device_slot import device_slot, register_slot

pytestmark = pytest.mark.stack

SHORT = 2.0  # seconds of patience; a waiting caller asks the server about every second


@pytest.fixture
def server(prefect_server, monkeypatch):
    monkeypatch.setattr(module.socket, "gethostname", lambda: f"host-{uuid4().hex[:8]}".lower())
    name = module.slot_name("cpu")
    monkeypatch.setattr(module, "slot_name", lambda device: name)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        register_slot("cpu")
        yield name


def taken(name: str) -> int:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(name).active_slots


def lose(name: str) -> None:
    """Take the slot as a lost release leaves it: without a lease that could run out."""
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=1))


@flow
def trains() -> str:
    with device_slot("cpu", SHORT):
        assert taken(module.slot_name("cpu")) == 1
    return str(flow_run.get_id())


def test_a_slot_of_a_run_that_has_ended_is_freed(server, capsys):
    first = trains()
    assert taken(server) == 0
    lose(server)
    trains()
    assert f"taken by flow run {first}, which has ended" in " ".join(capsys.readouterr().err.split())
    assert taken(server) == 0


def test_a_slot_of_a_run_that_goes_on_is_waited_for(server):
    got = threading.Event()

    def wait() -> None:
        with temporary_settings({PREFECT_API_URL: server_address}), device_slot("cpu", SHORT):
            got.set()

    with get_client(sync_client=True) as client:
        server_address = str(client.api_url)

    @flow
    def holds() -> bool:
        with device_slot("cpu", SHORT):
            waiter = threading.Thread(target=wait, daemon=True)
            waiter.start()
            early = got.wait(5 * SHORT)
        waiter.join(60)
        return early

    assert holds() is False
    assert got.is_set()
