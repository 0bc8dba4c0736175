"""A small base model for what is measured of it."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def shared_base(small_base):
    """In place of the demo's: two ways to measure agree on any model."""
    return small_base
