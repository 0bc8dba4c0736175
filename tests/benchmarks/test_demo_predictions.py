"""The demo's stored calibration against its stored final runs: real curves, real schedule, no model of ours."""

import importlib.util
from pathlib import Path

import pandas as pd

FILE = Path(__file__).parents[2] / "benchmarks" / "demo_predictions.py"


def load():
    spec = importlib.util.spec_from_file_location("demo_predictions", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_final_losses_lie_in_their_intervals_and_the_choice_is_among_the_best():
    """From one seed, to twice its size: at least 5 of 6 inside, and the chosen pair within one seed's spread (2%)."""
    module = load()
    metrics = pd.read_parquet(module.RUNS / "calibration.parquet")
    found = module.compare(metrics[metrics["seed"] == 0], module.finals())
    assert found["inside"] >= 5 / 6 * len(found["pairs"])
    assert found["regret_among_trained"] < 0.02
