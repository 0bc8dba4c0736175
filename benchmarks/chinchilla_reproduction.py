"""Published fits next to ours, on the points they were made from.

Points: Epoch AI's digitisation of Chinchilla's Fig. 4 (240 of 245 rows) and the test losses of 30 models
fine-tuned on 200 to 1,638,400 samples of FLAN, WMT19 and Gigaword (Lin et al., Fine-tuning-Scaling-Law).
The tables are not part of the repository; `--data` names their folder.

    python benchmarks/chinchilla_reproduction.py     # prints the tables, writes results/chinchilla_reproduction.json
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mars_core.fitting import fit_law
from mars_core.fitting.solve import Solution, solve
from mars_core.fitting.table import read_table
from mars_core.laws import get_law

ROOT = Path(__file__).parent
RESULT = ROOT / "results" / "chinchilla_reproduction.json"
SYMBOLS = ("A", "B", "E", "alpha", "beta")
PUBLISHED: dict[str, dict[str, float]] = {
    "log-Huber delta 1e-3, sum, converged": {
        "A": 477.826, "B": 2143.417, "E": 1.817218, "alpha": 0.347310, "beta": 0.367172, "objective": 0.001018274018,
    },
    "the same at delta 1e-7": {"A": 481.999, "B": 2085.39, "E": 1.816862, "alpha": 0.347812, "beta": 0.365853},
    "headline of Besiroglu et al. 2404.10102": {
        "A": 482.01, "B": 2085.43, "E": 1.81686, "alpha": 0.34781, "beta": 0.36585,
    },
    "all 245 points": {"A": 495.7, "B": 12845.6, "E": 1.8913, "alpha": 0.3493, "beta": 0.4531},
}  # fmt: skip
PUBLISHED_ERRORS = {"A": 124.52, "B": 1293.28, "E": 0.02566, "alpha": 0.01540, "beta": 0.02060}
PUBLISHED_EXTRAPOLATION = {"train_mape": 0.0040, "mape": 0.0100, "largest_error": 0.041}
PUBLISHED_COLLAPSED = {"flan": 29, "wmt19": 28, "gigaword": 22}
SETTINGS = {
    "log-Huber delta 1e-3, sum, converged": (5, 1e-3),
    "the same at delta 1e-7": (5, 1e-7),
    "headline of Besiroglu et al. 2404.10102": (5, 1e-7),
    "all 245 points": (0, 1e-3),
}  # highest losses dropped, Huber threshold
COMPUTE_SPLIT = 3e20  # FLOP
CALIBRATION_SIZE = 102_400  # samples


def chinchilla_points(folder: Path, drop: int) -> pd.DataFrame:
    """Digitised points with N, D, C and loss, without the `drop` highest losses."""
    table = pd.read_csv(folder / "chinchilla_points_epoch.csv")
    table = table.assign(N=table["Model Size"], C=table["Training FLOP"])
    table["D"] = table.C / (6 * table.N)
    return table.sort_values("loss").iloc[: len(table) - drop].reset_index(drop=True)


def optimum(points: pd.DataFrame, delta: float) -> Solution:
    """Best of 64 starts."""
    law = get_law("chinchilla")
    return solve(law, read_table(law, points, None), delta, n_starts=64, seed=0)


def coefficient_rows(folder: Path) -> list[dict[str, Any]]:
    """Published and own coefficients per setting."""
    rows = []
    for name, published in PUBLISHED.items():
        drop, delta = SETTINGS[name]
        solution = optimum(chinchilla_points(folder, drop), delta)
        own = dict(zip(SYMBOLS, solution.theta.tolist(), strict=True)) | {"objective": solution.objective}
        rows.append({"fit": name, "published": published, "own": own, "start_agreement": solution.start_agreement})
    return rows


def uncertainty_and_extrapolation(folder: Path) -> dict[str, Any]:
    """Bootstrap standard errors and the held-out error beyond 3e20 FLOP."""
    points = chinchilla_points(folder, 5)
    beyond = (points.C >= COMPUTE_SPLIT).to_numpy()
    fit = fit_law("chinchilla", points, n_bootstrap=4000, hold_out=beyond)
    held_out = fit.held_out
    assert held_out is not None
    return {
        "standard_errors": dict(zip(SYMBOLS, fit.draws.std(axis=0).tolist(), strict=True)),
        "published_standard_errors": PUBLISHED_ERRORS,
        "extrapolation": {key: getattr(held_out, key) for key in PUBLISHED_EXTRAPOLATION},
        "published_extrapolation": PUBLISHED_EXTRAPOLATION,
        "condition_number": fit.condition_number,
    }


def fine_tuning_rows(folder: Path) -> list[dict[str, Any]]:
    """Per task: collapsed floors up to 102,400 samples, and errors at the largest size of law and straight line."""
    return [_task_row(task, pd.read_csv(folder / f"finetuning_{task}.csv")) for task in PUBLISHED_COLLAPSED]


def _task_row(task: str, table: pd.DataFrame) -> dict[str, Any]:
    sizes = np.array([float(column) for column in table.columns if column.isdigit() and int(column) > 0])
    losses = table[[str(int(size)) for size in sizes]].to_numpy(dtype=float)
    far = [_series(sizes, loss, sizes <= CALIBRATION_SIZE) for loss in losses]
    near = [_series(sizes, loss, sizes < sizes.max()) for loss in losses]
    return {
        "task": task,
        "series": len(losses),
        "floor_below_1e-3": sum(entry["floor"] < 1e-3 for entry in far),
        "published_floor_below_1e-3": PUBLISHED_COLLAPSED[task],
        "flagged_floor_collapsed": sum(entry["flagged"] for entry in far),
        "unflagged_below_1e-3": sum(entry["floor"] < 1e-3 and not entry["flagged"] for entry in far),
        "from_102400_to_1638400": _medians(far),
        "from_819200_to_1638400": _medians(near),
    }


def _series(sizes: np.ndarray, loss: np.ndarray, train: np.ndarray) -> dict[str, Any]:
    """Fit A / D^beta + E on some sizes of one curve and predict its largest size."""
    points = {"D": sizes[train], "loss": loss[train]}
    fit = fit_law("performance_no_rank", points, n_bootstrap=200, hold_out=False)
    line = fit_law("log_linear", points, n_bootstrap=2, hold_out=False)
    largest = {"D": sizes[-1:]}
    return {
        "floor": fit.coefficients["E"],
        "flagged": fit.has("floor_collapsed"),
        "law": float(abs(fit.predict(largest)[0] / loss[-1] - 1.0)),
        "line": float(abs(line.predict(largest)[0] / loss[-1] - 1.0)),
    }


def _medians(entries: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "median_error_law": float(np.median([entry["law"] for entry in entries])),
        "median_error_line": float(np.median([entry["line"] for entry in entries])),
        # Ties to a tenth of a percent are not wins: with a collapsed floor the law is the line.
        "law_better": sum(entry["law"] < entry["line"] - 1e-3 for entry in entries),
        "line_better": sum(entry["line"] < entry["law"] - 1e-3 for entry in entries),
    }


def print_tables(result: dict[str, Any]) -> None:
    """Published next to own, as text."""
    print(f"{'L = E + A/N^alpha + B/D^beta':44}" + "".join(f"{symbol:>12}" for symbol in (*SYMBOLS, "objective")))
    for row in result["coefficients"]:
        for source in ("published", "own"):
            label = row["fit"] if source == "published" else "  ours"
            cells = [f"{row[source][s]:12.6g}" if s in row[source] else f"{'':12}" for s in (*SYMBOLS, "objective")]
            print(
                f"{label:44}"
                + "".join(cells)
                + ("" if source == "published" else f"  ({row['start_agreement']:.0%} of starts)")
            )
    for label, key in (
        ("standard errors, published", "published_standard_errors"),
        ("  ours (bootstrap)", "standard_errors"),
    ):
        print(f"{label:44}" + "".join(f"{result[key][symbol]:12.5g}" for symbol in SYMBOLS))
    own, published = result["extrapolation"], result["published_extrapolation"]
    print("\ntrain C < 3e20 FLOP, test above          " + "".join(f"{key:>16}" for key in own))
    print(f"{'published':41}" + "".join(f"{value:16.2%}" for value in published.values()))
    print(f"{'ours':41}" + "".join(f"{value:16.2%}" for value in own.values()))
    print("\nfine-tuning curves, A/D^b + E against the straight log-log line, 30 series per task")
    for row in result["fine_tuning"]:
        print(
            f"{row['task']:9} E < 1e-3 on D <= 102,400: {row['floor_below_1e-3']} of {row['series']} "
            f"(published {row['published_floor_below_1e-3']}), flagged {row['flagged_floor_collapsed']}, "
            f"of those below 1e-3 not flagged {row['unflagged_below_1e-3']}"
        )
        for key in ("from_102400_to_1638400", "from_819200_to_1638400"):
            found = row[key]
            print(
                f"          {key.replace('_', ' ')}: median error law {found['median_error_law']:.2%}, line "
                f"{found['median_error_line']:.2%}; law better in {found['law_better']}, line in {found['line_better']}"
            )


def main() -> None:
    """Fit, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=RESULT)
    settings = parser.parse_args()
    if not (settings.data / "chinchilla_points_epoch.csv").is_file():
        raise SystemExit(f"no chinchilla_points_epoch.csv in {settings.data}: name the tables' folder with --data")
    result = {
        "command": "python benchmarks/chinchilla_reproduction.py",
        "machine": f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}",
        "coefficients": coefficient_rows(settings.data),
        **uncertainty_and_extrapolation(settings.data),
        "fine_tuning": fine_tuning_rows(settings.data),
    }
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(result, indent=2) + "\n")
    print_tables(result)


if __name__ == "__main__":
    main()
