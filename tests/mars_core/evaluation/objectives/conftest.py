"""The demo's backbone: metrics ask for a model that is right now and then."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def shared_base(demo_base):
    return demo_base
