"""One night of a study at a time, whoever starts it: a schedule that is too short, a person, another host.

The slot is a global concurrency limit of the Prefect server, one per study: a limit on the deployment would hold up the
nights of other studies, too. It is held by a lease, as a device's: the slot of a night that was killed comes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency

from mars_core.metrics.identity import content_hash
from tasks.device_slot import LEASE_SECONDS, make_limit
from tasks.storage.location import study_key


@contextmanager
def night_slot(study: Path) -> Iterator[bool]:
    """Hold a study's only slot for nights while the block runs; yields False, at once, where another night holds it."""
    name = night_slot_name(study)
    make_limit(name)
    with ExitStack() as held:
        yield _taken(held, name)


def night_slot_name(study: Path) -> str:
    """Name of a study's limit: its folder's name for people, and a hash of the path, since folders are called alike."""
    return f"mars-night-{study.name}-{content_hash(study_key(study))[:8]}"


def _taken(held: ExitStack, name: str) -> bool:
    # No waiting: what this night would do, the other one does. An outage of the server must not end a night.
    slot = concurrency(
        name, max_retries=0, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
    )
    try:
        held.enter_context(slot)
    except ConcurrencySlotAcquisitionError as error:
        if not _is_full(error):
            raise
        return False
    return True


def _is_full(error: ConcurrencySlotAcquisitionError) -> bool:
    answer = error.__cause__
    return isinstance(answer, httpx.HTTPStatusError) and answer.response.status_code == httpx.codes.LOCKED
