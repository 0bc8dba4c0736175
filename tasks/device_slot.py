"""One training at a time per GPU, however many workers share it.

The slot is a global concurrency limit of the Prefect server, held by a lease that the training process renews. A
process that is killed renews nothing, so its slot comes back by itself; a limit on flow run states would wait for
somebody to notice that the run is gone.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists

from tasks.progress import say
from tasks.resources import resolve_device

# Prefect's shortest. The server looks for expired leases every 15 s, so a killed training's slot is free after 75 s.
LEASE_SECONDS = 60


@contextmanager
def device_slot(device: str) -> Iterator[None]:
    """Hold this machine's slot of a device (auto, cpu or cuda) while the block runs; waits until it is free."""
    name = register_slot(device)
    say(f"waiting for {name}")
    # An outage of the server must not end hours of training, even though the slot may be given away meanwhile.
    with concurrency(name, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False):
        say(f"holding {name}")
        yield


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
