"""Do `mars plan data` and `mars plan score` hold? Their intervals beside what runs reached.

Each seed of the stored demo calibration (`demo_final_runs.py`: 16 pairs, 2,048 samples) foretells alone, as a study of
one seed does. What is compared with it was trained apart from it:

    final runs      `demo_final_runs/finals*.json`: scores on the validation and the test split
    other seeds     `demo_rank_spread.json`: runs of 2,048 samples, other seeds and another order, validation score
    planned sizes   `data_plan.json`: a run at the very size that `mars plan data` named for a target (--train)

    python benchmarks/data_plan.py            # writes benchmarks/results/data_plan.json and the table in the docs
    python benchmarks/data_plan.py --train 3  # first train at most three planned sizes that are missing (minutes each)
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from doc_table import DOCS, with_table

from mars_core import __version__
from mars_core.planning.scores import ScoreLaw, fit_score_law, forecast_data, forecast_score
from mars_core.ranks import RankPair
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

Asked = tuple[Calibration, ScoreLaw]


def asked(seed: int) -> Asked:
    """The calibration of one seed and its loss-to-score law."""
    metrics = pd.read_parquet(RUNS / "calibration.parquet")
    metrics = metrics[metrics["seed"] == seed]
    question = Question(WHOLE, lambda pair: sum(pair), (4, 4))
    calibration = calibrate(read_points(metrics, PERPLEXITY_OBJECTIVE), question)
    return calibration, fit_score_law(metrics, n_answers=VALIDATION_ANSWERS)


def truths() -> list[dict[str, Any]]:
    """Stored runs: kind, pair, size (samples), score (points), answers asked (None for the validation answers)."""
    found = []
    for file in ("finals.json", "finals_0.5_epochs.json"):
        for run in json.loads((RUNS / file).read_text(encoding="utf-8"))["runs"]:
            own = {"pair": (run["r_me"], run["r_llm"]), "size": run["unique_samples"]}
            found.append(own | {"kind": "final run, validation", "score": 100 * run["val_accuracy"], "asked": None})
            found.append(own | {"kind": "final run, test", "score": 100 * run["test_accuracy"], "asked": TEST_ANSWERS})
    for run in json.loads((RESULTS / "demo_rank_spread.json").read_text(encoding="utf-8"))["runs"]:
        own = {"pair": (run["r_me"], run["r_llm"]), "size": 2048}
        found.append(own | {"kind": "other seed, validation", "score": 100 * run["accuracy"], "asked": None})
    return found


def score_rows(each: dict[int, Asked]) -> list[dict[str, Any]]:
    """Every stored run foretold by every calibration seed."""
    rows = []
    for seed, (calibration, law) in each.items():
        for one in truths():
            found = forecast_score(calibration, law, one["pair"], one["size"], one["asked"])
            low, high = found.observed_interval
            rows.append(_row(one["kind"], seed, one, found.score, low, high, one["score"]))
    return rows


def size_rows(each: dict[int, Asked]) -> list[dict[str, Any]]:
    """Each final run's own validation score as a target: is its size in the interval that the plan gives?"""
    finals = [one for one in truths() if one["kind"] == "final run, validation"]
    rows = []
    for seed, (calibration, law) in each.items():
        for one in finals:
            found = forecast_data(calibration, law, one["pair"], one["score"])
            low, high = found.interval
            ends = (0.0 if low is None or low <= found.smallest else low, np.inf if high is None else high)
            size = found.furthest if found.size is None else found.size
            rows.append(_row("size for a final run's score", seed, one, size, *ends, one["size"]))
    return rows


def planned(each: dict[int, Asked]) -> list[dict[str, Any]]:
    """The sizes that the plans name: seed, target, size in samples, whole batches, at most the training set."""
    cells = []
    for seed, (calibration, law) in each.items():
        for target in TARGETS:
            size = forecast_data(calibration, law, PLANNED_PAIR, target).size
            if size is not None and size <= WHOLE:
                cells.append({"seed": seed, "target": target, "size": BATCH * round(size / BATCH)})
    return cells


def planned_rows(each: dict[int, Asked], trained: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs at the planned sizes: does the score lie in the interval that the plan gave with the size?"""
    rows = []
    for run in trained:
        calibration, law = each[run["seed"]]
        found = forecast_score(calibration, law, PLANNED_PAIR, run["size"])
        low, high = found.observed_interval
        one = {"pair": PLANNED_PAIR, "size": run["size"]}
        rows.append(_row("planned size, validation", run["seed"], one, found.score, low, high, run["score"]))
    return rows


def _row(
    kind: str, seed: int, one: dict[str, Any], foretold: float, low: float, high: float, reached: float
) -> dict[str, Any]:
    ends = [None if np.isinf(end) else round(end, 2) for end in (low, high)]
    return {
        "kind": kind,
        "seed": seed,
        "pair": list(one["pair"]),
        "size": one["size"],
        "foretold": round(foretold, 2),
        "interval": ends,
        "reached": round(reached, 2),
        "inside": bool(low <= reached <= high),
    }


def train(cells: Sequence[dict[str, Any]], most: int, trained: list[dict[str, Any]]) -> None:
    """Train planned sizes that are missing, and add them to `trained`."""
    from demo_rank_spread import Settings, load_bench, measure

    from mars_core.demo import build_demo_data
    from mars_core.training.recipe import Recipe

    done = {(run["seed"], run["target"], run["size"]) for run in trained}
    missing = [cell for cell in cells if (cell["seed"], cell["target"], cell["size"]) not in done][:most]
    if not missing:
        return
    folder, recipe = Path(tempfile.gettempdir()) / "mars-data-plan", Recipe(learning_rate=RATE, max_tokens=512)
    data = build_demo_data(folder, n_train=WHOLE, n_validation=256, n_test=512)
    bench = load_bench(data, Settings(recipe, 1, WHOLE, 256))
    for cell in missing:
        settings = Settings(recipe, cell["size"] // BATCH, len(bench.train), len(bench.validation))
        found = measure(bench, settings, RankPair(*PLANNED_PAIR), OTHER_SEED + cell["seed"])
        score = {"loss": float(np.log(found["perplexity"])), "score": 100 * found["accuracy"]}
        trained.append(cell | score)
        stored = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
        RECORD.write_text(json.dumps(stored | {"trained": trained}, indent=1) + "\n", encoding="utf-8")


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Coverage by kind: predictions, runs behind them, how many inside, error and width."""
    table = pd.DataFrame(rows)
    found = []
    for kind, own in table.groupby("kind", sort=False):
        widths = [np.inf if None in ends else ends[1] - ends[0] for ends in own["interval"]]
        runs = own[["pair", "size", "reached"]].astype(str).drop_duplicates()
        entry = {
            "kind": kind,
            "predictions": len(own),
            "runs": len(runs),
            "inside": int(own["inside"].sum()),
            "median_width": None if np.isinf(np.median(widths)) else float(round(np.median(widths), 2)),
            "mean_error": float(round((own["reached"] - own["foretold"]).mean(), 2)),
        }
        found.append(entry)
    return found


def table(record: dict[str, Any]) -> str:
    """What the page says of a record."""
    lines = [
        "| what was foretold | predictions | separate runs | inside the 95% interval | median width |",
        "|---|---|---|---|---|",
    ]
    for one in record["summary"]:
        width = "open" if one["median_width"] is None else f"{one['median_width']:,.1f}"
        unit = "samples" if one["kind"].startswith("size") else "points"
        share = one["inside"] / one["predictions"]
        lines.append(
            f"| {one['kind']} | {one['predictions']} | {one['runs']} | {one['inside']} ({share:.0%}) | {width} {unit} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train what was asked for, compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=0, help="planned sizes to train at most")
    options = parser.parse_args()
    stored = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    trained: list[dict[str, Any]] = stored.get("trained", [])
    each = {seed: asked(seed) for seed in SEEDS}
    if options.train:
        train(planned(each), options.train, trained)
    rows = [*score_rows(each), *size_rows(each), *planned_rows(each, trained)]
    record = {
        "command": "python benchmarks/data_plan.py",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"mars": __version__, "Python": platform.python_version(), "NumPy": np.__version__},
        "trained": trained,
        "summary": summary(rows),
        "rows": rows,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if PAGE.is_file():
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), MARK, table(record)), encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
