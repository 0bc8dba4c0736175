"""One training at a time per GPU, however many workers share it.

The slot is a global concurrency limit of the Prefect server, held by a lease that the training process renews. A
process that is killed renews nothing, so its slot comes back by itself; a limit on flow run states would wait for
somebody to notice that the run is gone.
"""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from uuid import UUID

import torch
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.concurrency.asyncio import AcquireConcurrencySlotTimeoutError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import flow_run
from prefect.variables import Variable

from tasks.inputs.base_model import resolve_device
from tasks.running.progress import show_message

# Prefect's shortest. The server looks for expired leases every 15 s, so a killed training's slot is free after 75 s.
LEASE_SECONDS = 60
PATIENCE_SECONDS = 150.0  # twice the time that the server takes to free a killed training's slot


@contextmanager
def device_slot(device: str, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Hold this machine's slot of a device (auto, cpu or cuda) while the block runs; waits until it is free.

    patience_seconds: after how long a wait the slot's holder is looked up: one that has ended will not give it back.
    """
    name = register_slot(device)
    show_message(f"waiting for {name}")
    with ExitStack() as held:
        # Two that wait for one device must not find the same lost slot at the same moment.
        while not _taken(held, name, patience_seconds * random.uniform(1, 1.5)):
            _free_if_lost(name)
        _sign(name)
        show_message(f"holding {name}")
        yield


def _taken(held: ExitStack, name: str, timeout_seconds: float) -> bool:
    # An outage of the server must not end hours of training, even though the slot may be given away meanwhile.
    slot = concurrency(
        name,
        timeout_seconds=timeout_seconds,
        lease_duration=LEASE_SECONDS,
        strict=True,
        raise_on_lease_renewal_failure=False,
    )
    try:
        held.enter_context(slot)
    except AcquireConcurrencySlotTimeoutError:
        return False
    return True


def _sign(name: str) -> None:
    """Write down which flow run holds a slot; Prefect keeps that to itself."""
    if run := flow_run.get_id():
        Variable.set(_variable(name), str(run), overwrite=True)


def _free_if_lost(name: str) -> None:
    """Free a slot whose holder has ended long ago.

    The server frees the slots of ended runs itself, but an SQLite server under load was seen to lose one for ever: it
    drops the lease before the slot's release is committed.
    """
    holder = Variable.get(_variable(name))
    if holder is None or not _has_ended(UUID(str(holder))):
        return
    show_message(f"{name} was still taken by flow run {holder}, which has ended: it is free again")
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=0))


def _has_ended(run: UUID) -> bool:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run).state
        except ObjectNotFound:
            return True
    return state is not None and state.is_final()


def _variable(name: str) -> str:
    """Prefect's variables are named in small letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]", "_", f"{name}-holder".lower())


def slot_name(device: str) -> str:
    """Name of the limit: a GPU's hardware id, whatever number or container it is seen from; the host for a CPU."""
    resolved = resolve_device(device)
    if resolved.type == "cpu":
        return f"mars-{socket.gethostname()}-cpu"
    return f"mars-gpu-{torch.cuda.get_device_properties(resolved).uuid}"


def register_slot(device: str) -> str:
    """Create this machine's limit for a device where the server has none; returns its name."""
    name = slot_name(device)
    # Two processes that make it at the same moment: the slower one finds it there.
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.upsert_global_concurrency_limit_by_name(name, 1)
    return name
