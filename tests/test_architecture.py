"""The arrows between the packages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_import_contracts_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


LIGHT = (
    "mars_core.laws",
    "mars_core.fitting",
    "mars_core.fitting.plots",
    "mars_core.convergence",
    "mars_core.search",
    "mars_core.drift",
    "flows.cli.laws",
)
HEAVY = ("torch", "transformers", "prefect", "mlflow")
SAY_WHAT_EACH_LOADS = f"""
import importlib, json, sys
loads, known = {{}}, set()
for name in {LIGHT}:
    importlib.import_module(name)
    loads[name] = sorted((set({HEAVY}) & set(sys.modules)) - known)
    known |= set(loads[name])
print(json.dumps(loads))
"""


def test_laws_fit_and_search_load_no_torch():
    # In a process of its own, because another test may have imported torch already.
    command = [sys.executable, "-c", SAY_WHAT_EACH_LOADS]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == {module: [] for module in LIGHT}
