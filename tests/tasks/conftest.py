from __future__ import annotations

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture(scope="session", autouse=True)
def services(quick_services: None) -> None:
    """Prefect tasks want a server outside of flows too, and trackers a store."""


@pytest.fixture
def store() -> MemoryFileSystem:
    """A store in memory, with an empty bucket."""
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists("/bucket"):
        filesystem.rm("/bucket", recursive=True)
    return filesystem
