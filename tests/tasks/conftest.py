from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def services(quick_services: None) -> None:
    """Prefect tasks want a server outside of flows too, and trackers a store."""
