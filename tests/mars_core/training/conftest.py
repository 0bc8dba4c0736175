"""A small base model for the final runs."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def shared_base(small_base):
    """In place of the demo's: what is tested of training holds for any model."""
    return small_base
