"""The arrows between the packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_import_contracts_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "module",
    [
        "mars_core.laws",
        "mars_core.fitting",
        "mars_core.convergence",
        "mars_core.search",
        "mars_core.drift",
        "flows.cli.laws",
    ],
)
def test_laws_fit_and_search_load_no_torch(module):
    # In a process of its own, because another test may have imported torch already.
    code = f"import {module}, sys; print(sorted({{'torch', 'transformers', 'prefect', 'mlflow'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
