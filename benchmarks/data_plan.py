"""Do `mars plan data` and `mars plan score` hold? Their intervals beside what runs reached.

Each seed of the stored demo calibration (`demo_final_runs.py`: 16 pairs, 2,048 samples) predicts alone, as a study of
one seed does. What is compared with it are runs of other seeds (initial adapters, order of samples):

    final runs      `demo_final_runs/finals*.json`: scores on the validation and the test split
    other seeds     `demo_rank_spread.json`: runs of 2,048 samples, validation score
    planned sizes   `data_plan.json`: a run at the very size that `mars plan data` named for a target (--train)

Beside each predicted score stands that of the trivial predictor: what the same pair scored, in the same calibration, at
the checkpoint of the nearest size. Validation scores are on the answers that the law was fitted to.

    python benchmarks/data_plan.py            # writes benchmarks/results/data_plan.json and the table in the docs
    python benchmarks/data_plan.py --train 3  # first train at most three planned sizes that are missing (minutes each)
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from doc_table import DOCS, with_table

from mars_core import __version__
from mars_core.planning.scores import DataForecast, ScoreLaw, fit_score_law, forecast_data, forecast_score
from mars_core.ranks import Pair, RankPair
from mars_core.search import Question, read_points
from mars_core.search.choose import calibrate
from mars_core.search.objective import PERPLEXITY_OBJECTIVE
from mars_core.search.outlook import Calibration

RESULTS = Path(__file__).parent / "results"
RUNS, RECORD = RESULTS / "demo_final_runs", RESULTS / "data_plan.json"
PAGE, MARK = DOCS / "how-much-data.md", "data-plan"
SEEDS = (0, 1, 2)
VALIDATION_ANSWERS, TEST_ANSWERS = 679, 1338
BATCH, WHOLE = 8, 4096
TARGETS = (45.0, 47.0, 49.0)
PLANNED_PAIR = (8, 16)
RATE = 2e-3  # of the stored calibration and final runs
OTHER_SEED = 10  # of the planned runs: neither of the calibrations'


@dataclass(frozen=True)
class Asked:
    """What one seed's calibration knows: its posterior, its loss-to-score law, its checkpoints."""

    calibration: Calibration
    law: ScoreLaw
    checkpoints: pd.DataFrame

    def nearest(self, pair: Pair, size: float) -> pd.Series:
        """The checkpoint of this pair whose size is nearest."""
        own = self.checkpoints[(self.checkpoints["r_me"] == pair[0]) & (self.checkpoints["r_llm"] == pair[1])]
        return own.loc[np.log(own["unique_samples"] / size).abs().idxmin()]


def asked(seed: int) -> Asked:
    """The calibration of one seed and its loss-to-score law."""
    metrics = pd.read_parquet(RUNS / "calibration.parquet")
    metrics = metrics[metrics["seed"] == seed]
    question = Question(WHOLE, lambda pair: sum(pair), (4, 4))
    calibration = calibrate(read_points(metrics, PERPLEXITY_OBJECTIVE), question)
    return Asked(calibration, fit_score_law(metrics, n_answers=VALIDATION_ANSWERS), metrics)


def truths() -> list[dict[str, Any]]:
    """Stored runs: kind, seed, pair, size (samples), score (points), answers asked (None: the validation answers)."""
    found = []
    for file in ("finals.json", "finals_0.5_epochs.json"):
        for run in json.loads((RUNS / file).read_text(encoding="utf-8"))["runs"]:
            own = {"seed": run["seed"], "pair": (run["r_me"], run["r_llm"]), "size": run["unique_samples"]}
            found.append(own | {"kind": "final run, validation", "score": 100 * run["val_accuracy"], "asked": None})
            found.append(own | {"kind": "final run, test", "score": 100 * run["test_accuracy"], "asked": TEST_ANSWERS})
    for run in json.loads((RESULTS / "demo_rank_spread.json").read_text(encoding="utf-8"))["runs"]:
        own = {"seed": run["seed"], "pair": (run["r_me"], run["r_llm"]), "size": 2048}
        found.append(own | {"kind": "other seed, validation", "score": 100 * run["accuracy"], "asked": None})
    return found


def score_rows(each: dict[int, Asked]) -> list[dict[str, Any]]:
    """The score of every stored run, predicted by the calibrations of other seeds."""
    return [
        _score_row(one["kind"], seed, own, one) for seed, own in each.items() for one in truths() if one["seed"] != seed
    ]


def _score_row(kind: str, seed: int, own: Asked, run: dict[str, Any]) -> dict[str, Any]:
    found = forecast_score(own.calibration, own.law, run["pair"], run["size"], run["asked"])
    nearest = own.nearest(run["pair"], run["size"])
    row = _row(kind, seed, run, found.score, found.observed_interval, run["score"])
    return row | {"nearest_checkpoint": round(100 * float(nearest["val_accuracy"]), 2)}


def size_rows(each: dict[int, Asked]) -> list[dict[str, Any]]:
    """Each final run's own score as a target: is its size in the interval that the plan gives?"""
    rows = []
    for seed, own in each.items():
        for one in truths():
            if one["seed"] != seed and one["kind"].startswith("final run"):
                found = forecast_data(own.calibration, own.law, one["pair"], one["score"], one["asked"])
                kind = "size for a final run's score, " + one["kind"].split(", ")[1]
                row = _row(kind, seed, one, found.size, _ends(found), one["size"])
                rows.append(row | {"target": round(one["score"], 2), "furthest": found.furthest})
    return rows


def _ends(found: DataForecast) -> tuple[float, float]:
    """Interval of a size: infinite at an end that no size reaches, 0 at one where the smallest size does."""
    low, high = (np.inf if end is None else end for end in found.interval)
    return (0.0 if low <= found.smallest else low), high


def planned(each: dict[int, Asked]) -> list[dict[str, Any]]:
    """The sizes that the plans name: seed, target, size in samples, whole batches, at most the training set."""
    cells = []
    for seed, own in each.items():
        for target in TARGETS:
            size = forecast_data(own.calibration, own.law, PLANNED_PAIR, target).size
            if size is not None and size <= WHOLE:
                cells.append({"seed": seed, "target": target, "size": BATCH * round(size / BATCH)})
    return cells


def planned_rows(each: dict[int, Asked], trained: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs at the planned sizes: does the score lie in the interval that the plan gave with the size?"""
    rows = []
    for run in trained:
        one = run | {"pair": PLANNED_PAIR, "asked": None}
        row = _score_row("planned size, validation", run["seed"], each[run["seed"]], one)
        rows.append(row | {"target": run["target"]})
    return rows


def _row(
    kind: str, seed: int, one: dict[str, Any], predicted: float | None, ends: tuple[float, float], reached: float
) -> dict[str, Any]:
    low, high = ends
    return {
        "kind": kind,
        "seed": seed,
        "pair": list(one["pair"]),
        "size": one["size"],
        "predicted": None if predicted is None else round(predicted, 2),
        "interval": [None if np.isinf(end) else round(end, 2) for end in ends],
        "reached": round(reached, 2),
        "inside": bool(low <= reached <= high),
    }


def train(each: dict[int, Asked], most: int, trained: list[dict[str, Any]]) -> None:
    """Train planned sizes that are missing, and add them to `trained`.

    Raises:
        RuntimeError: a run learned no more than the calibration's first checkpoint of that pair.
    """
    from demo_rank_spread import Settings, load_bench, measure

    from mars_core.demo import build_demo_data
    from mars_core.training.recipe import Recipe

    done = {(run["seed"], run["target"], run["size"]) for run in trained}
    missing = [cell for cell in planned(each) if (cell["seed"], cell["target"], cell["size"]) not in done][:most]
    if not missing:
        return
    folder, recipe = Path(tempfile.gettempdir()) / "mars-data-plan", Recipe(learning_rate=RATE, max_tokens=512)
    data = build_demo_data(folder, n_train=WHOLE, n_validation=256, n_test=512)
    bench = load_bench(data, Settings(recipe, 1, WHOLE, 256))
    for cell in missing:
        settings = Settings(recipe, cell["size"] // BATCH, len(bench.train), len(bench.validation))
        found = measure(bench, settings, RankPair(*PLANNED_PAIR), OTHER_SEED + cell["seed"])
        first = each[cell["seed"]].nearest(PLANNED_PAIR, 1)
        if not np.log(found["perplexity"]) < first["val_loss"]:
            raise RuntimeError(f"{cell} has a loss of {np.log(found['perplexity']):.3f}: it was not trained")
        score = {"loss": float(np.log(found["perplexity"])), "score": 100 * found["accuracy"]}
        trained.append(cell | score)
        stored = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
        RECORD.write_text(json.dumps(stored | {"trained": trained}, indent=1) + "\n", encoding="utf-8")


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predicted scores by kind: how many inside, width, and the errors of the law and of the trivial predictor."""
    found = []
    for kind, own in pd.DataFrame(rows).groupby("kind", sort=False):
        widths = [ends[1] - ends[0] for ends in own["interval"]]
        entry = _counts(str(kind), own, "reached") | {
            "median_width": float(round(np.median(widths), 2)),
            "mean_error": float(round((own["reached"] - own["predicted"]).mean(), 2)),
            "mean_absolute_error": float(round((own["reached"] - own["predicted"]).abs().mean(), 2)),
            "trivial_absolute_error": float(round((own["reached"] - own["nearest_checkpoint"]).abs().mean(), 2)),
        }
        found.append(entry)
    return found


def size_summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predicted sizes by kind: how many inside, how many intervals say little, and the single number's error."""
    found = []
    for kind, own in pd.DataFrame(rows).groupby("kind", sort=False):
        ratios = (own["predicted"] / own["size"]).dropna()
        entry = _counts(str(kind), own, "target") | {
            "no_upper_end": sum(ends[1] is None for ends in own["interval"]),
            "said_out_of_reach": int(own["predicted"].isna().sum()),
            "ratio": [float(round(value, 2)) for value in (ratios.min(), ratios.median(), ratios.max())],
            "targets": [float(own["target"].min()), float(own["target"].max())],
        }
        found.append(entry)
    return found


def _counts(kind: str, own: pd.DataFrame, score: str) -> dict[str, Any]:
    runs = own[["pair", "size", score]].astype(str).drop_duplicates()
    return {"kind": kind, "predictions": len(own), "runs": len(runs), "inside": int(own["inside"].sum())}


def table(record: dict[str, Any]) -> str:
    """What the page says of a record: scores, then sizes."""
    lines = [
        "| predicted score | predictions | separate runs | inside the 95% interval | median width | mean error "
        "| mean absolute error | the same, nearest checkpoint |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in record["summary"]:
        lines.append(
            f"| {_covered(one)} | {one['median_width']:.1f} | {one['mean_error']:+.2f} | "
            f"{one['mean_absolute_error']:.2f} | {one['trivial_absolute_error']:.2f} |"
        )
    lines += [
        "",
        "| predicted size | predictions | separate runs | inside the 95% interval | no upper end "
        "| said out of reach | predicted / true size: least, median, most |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in record["sizes"]:
        ratios = ", ".join(f"{value:.2f}" for value in one["ratio"])
        lines.append(f"| {_covered(one)} | {one['no_upper_end']} | {one['said_out_of_reach']} | {ratios} |")
    return "\n".join(lines)


def _covered(one: dict[str, Any]) -> str:
    share = one["inside"] / one["predictions"]
    return f"{one['kind']} | {one['predictions']} | {one['runs']} | {one['inside']} ({share:.0%})"


def main() -> None:
    """Train what was asked for, compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=0, help="planned sizes to train at most")
    options = parser.parse_args()
    stored = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    trained: list[dict[str, Any]] = stored.get("trained", [])
    each = {seed: asked(seed) for seed in SEEDS}
    if options.train:
        train(each, options.train, trained)
    scores, sizes = [*score_rows(each), *planned_rows(each, trained)], size_rows(each)
    record = {
        "command": "python benchmarks/data_plan.py",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"mars": __version__, "Python": platform.python_version(), "NumPy": np.__version__},
        "trained": trained,
        "summary": summary(scores),
        "sizes": size_summary(sizes),
        "rows": [*scores, *sizes],
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if PAGE.is_file():
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), MARK, table(record)), encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
