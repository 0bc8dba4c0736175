"""A small study on the bundled data and backbone, shared by the tests of tasks and flows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# One temporary Prefect server and one MLflow store per test session, away from the user's own.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Models this small gain nothing from a second thread, and lose much where other processes run beside the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@pytest.fixture(scope="session", autouse=True)
def image_looks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is remembered of images stays away from the user's own cache."""
    os.environ["MARS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a few demo scenes: train.json (64), validation.json (12), test.json (12), images/."""
    from mars_core.demo import build_demo_data

    return build_demo_data(tmp_path_factory.mktemp("demo") / "data", n_train=64, n_validation=12, n_test=12).folder
