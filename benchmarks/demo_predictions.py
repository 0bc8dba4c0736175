"""Do the demo's predictions come true? What its calibration says of final runs, beside what they reached.

Reads the stored runs of `demo_final_runs.py`: calibrations of 2,048 samples and final runs of 4,096, by the product's
own code. Each calibration seed predicts alone, as a study of one seed does; then all seeds together.

    python benchmarks/demo_predictions.py     # writes benchmarks/results/demo_predictions.json
"""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mars_core import __version__
from mars_core.search import Choice, choose_ranks

RUNS = Path(__file__).parent / "results" / "demo_final_runs"
RESULT = Path(__file__).parent / "results" / "demo_predictions.json"
Pair = tuple[int, int]


def finals() -> dict[Pair, dict[str, Any]]:
    """The stored final runs by pair."""
    runs = json.loads((RUNS / "finals.json").read_text(encoding="utf-8"))["runs"]
    return {(run["r_me"], run["r_llm"]): run for run in runs}


def choice_of(metrics: pd.DataFrame, samples: int, counts: dict[Pair, int]) -> Choice:
    """The product's choice for final runs of `samples`, among the pairs that were trained to the end."""
    per_rank, *_ = np.linalg.lstsq(np.array(list(counts)), np.array(list(counts.values())), rcond=None)
    return choose_ranks(
        metrics,
        target_samples=samples,
        trainable_parameters=lambda pair: round(float(np.dot(per_rank, pair))),
        reference=(4, 4),
    )


def compare(metrics: pd.DataFrame, reached: dict[Pair, dict[str, Any]]) -> dict[str, Any]:
    """Predicted against reached, pair by pair, and what the choice is worth among the trained pairs."""
    (samples,) = {run["samples"] for run in reached.values()}
    choice = choice_of(metrics, samples, {pair: run["trainable_parameters"] for pair, run in reached.items()})
    rows = [_row(choice, pair, run["val_loss"]) for pair, run in sorted(reached.items())]
    best = min(row["reached"] for row in rows)
    own = reached.get(choice.pair)
    return {
        "seeds": sorted({int(seed) for seed in metrics["seed"]}),
        "chosen": list(choice.pair),
        "verdict": choice.verdict,
        "expected_regret": choice.regret,
        "regret_among_trained": None if own is None else float(np.expm1(own["val_loss"] - best)),
        "inside": sum(row["inside"] for row in rows),
        "pairs": rows,
    }


def _row(choice: Choice, pair: Pair, reached: float) -> dict[str, Any]:
    candidate = choice.candidate(pair)
    assert candidate.loss_interval is not None
    low, high = candidate.loss_interval
    return {
        "pair": list(pair),
        "predicted": candidate.loss,
        "interval": [low, high],
        "reached": reached,
        "inside": bool(low <= reached <= high),
    }


def main() -> None:
    """Compare, print and record."""
    metrics, reached = pd.read_parquet(RUNS / "calibration.parquet"), finals()
    parts = [metrics[metrics["seed"] == seed] for seed in sorted(metrics["seed"].unique())]
    results = [compare(part, reached) for part in [*parts, metrics]]
    record = {
        "command": "python benchmarks/demo_predictions.py",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"mars": __version__, "Python": platform.python_version(), "NumPy": np.__version__},
        "results": results,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for result in results:
        print(_line(result))


def _line(result: dict[str, Any]) -> str:
    regret = result["regret_among_trained"]
    worth = "has no final run" if regret is None else f"{regret:.2%} above the best final run"
    return (
        f"seeds {result['seeds']}: {result['inside']} of {len(result['pairs'])} inside; chosen {result['chosen']} "
        f"({result['verdict']}), expected regret {result['expected_regret']:.2%}, {worth}"
    )


if __name__ == "__main__":
    main()
