"""Time of a law P fit with its bootstrap, next to the usual loop over SciPy fits with finite differences.

16 rank pairs x 8 sizes x 3 seeds; 64 starts for the fit, at most 4 per bootstrap draw, 1,000 draws over runs.
The loop gets the same starts, the same resampled counts, the same bounds and the same objective, and calls
`scipy.optimize.minimize(method="L-BFGS-B")` once per start, with SciPy's default tolerances for speed.

    python benchmarks/law_fit_speed.py     # writes benchmarks/results/law_fit_speed.json; the loop takes minutes
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from scipy.optimize import minimize

from mars_core.fitting import fit_law
from mars_core.fitting.bootstrap import bootstrap, resampled_counts, warm_starts
from mars_core.fitting.solve import Solution, solve
from mars_core.fitting.starts import projected_starts
from mars_core.fitting.table import Table, read_table
from mars_core.laws import get_law

RESULT = Path(__file__).parent / "results" / "law_fit_speed.json"
LAW = get_law("performance")
THETA = (8.0, 0.05, 0.15, 0.3, 1.0)
NOISE = 0.01  # standard deviation of the log loss
DELTA, N_STARTS, N_DRAWS = 1e-3, 64, 1000


def planted_table() -> pd.DataFrame:
    """384 noisy points of law P."""
    ranks, sizes = (8, 16, 32, 64), 2.0 ** np.arange(7, 15)
    rows = [(a, b, D, s) for a in ranks for b in ranks for D in sizes for s in range(3)]
    table = pd.DataFrame(rows, columns=["r_me", "r_llm", "D", "seed"])
    table["run_id"] = table[["r_me", "r_llm", "seed"]].astype(str).agg("-".join, axis=1)
    noise = np.random.default_rng(0).standard_normal(len(table))
    return table.assign(loss=LAW.predict(THETA, table) * np.exp(NOISE * noise))


class Loop:
    """The usual way: one objective in plain NumPy, one SciPy call per start."""

    def __init__(self, table: Table, solution: Solution) -> None:
        logs = {column: np.log(values) for column, values in table.inputs.items()}
        self.x = np.stack([values - values.mean() for values in logs.values()])
        self.log_y = np.log(table.y)
        self.bounds = list(zip(solution.problem.lower, solution.problem.upper, strict=True))

    def objective(self, phi: np.ndarray, weights: np.ndarray) -> float:
        """Weighted sum of Huber losses on log residuals; phi = (ln A at the centre, exponents, ln E)."""
        reducible = np.exp(phi[0] - phi[1:4] @ self.x)
        residual = np.abs(np.log(reducible + np.exp(phi[4])) - self.log_y)
        huber = np.where(residual <= DELTA, 0.5 * residual**2, DELTA * (residual - 0.5 * DELTA))
        return float(weights @ huber)

    def best(self, starts: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
        """Best end of all starts."""
        ends = [minimize(self.objective, x0, (weights,), method="L-BFGS-B", bounds=self.bounds) for x0 in starts]
        found = min(ends, key=lambda end: float(end.fun))
        return found.x, float(found.fun)


def ours(points: pd.DataFrame, repeats: int) -> dict[str, Any]:
    """Seconds of the whole `fit_law` and of its fit and bootstrap alone, best and median of some repeats."""
    table = read_table(LAW, points, "run_id")
    whole, core = [], []
    for _ in range(repeats + 1):  # the first call also imports and allocates; it is not counted
        began = time.perf_counter()
        fit_law(LAW, points, delta=DELTA, n_starts=N_STARTS, n_bootstrap=N_DRAWS)
        middle = time.perf_counter()
        solution = solve(LAW, table, DELTA, N_STARTS, 0)
        bootstrap(solution, table, N_DRAWS, 0)
        whole.append(middle - began)
        core.append(time.perf_counter() - middle)
    return {
        "fit_law_seconds": {"median": float(np.median(whole[1:])), "best": min(whole[1:])},
        "fit_and_bootstrap_seconds": {"median": float(np.median(core[1:])), "best": min(core[1:])},
    }


def compare(points: pd.DataFrame, n_loop_draws: int) -> dict[str, Any]:
    """Run the loop on the fit and on some draws; compare seconds and objectives."""
    table = read_table(LAW, points, "run_id")
    solution = solve(LAW, table, DELTA, N_STARTS, 0)
    loop = Loop(table, solution)
    starts = solution.problem.centring.centred(projected_starts(LAW, table.inputs, table.y, N_STARTS, 0))
    began = time.perf_counter()
    _, fit_objective = loop.best(starts, np.ones(table.n_points))
    fit_seconds = time.perf_counter() - began
    weights = resampled_counts(table, N_DRAWS, 0)
    own_draws = bootstrap(solution, table, N_DRAWS, 0)
    warm = warm_starts(solution)
    began = time.perf_counter()
    theirs = np.array([loop.best(warm, weights[draw])[1] for draw in range(n_loop_draws)])
    draw_seconds = time.perf_counter() - began
    own = np.array([loop.objective(own_draws[draw], weights[draw]) for draw in range(n_loop_draws)])
    return {
        "loop_fit_seconds": fit_seconds,
        "loop_bootstrap_seconds": draw_seconds * N_DRAWS / n_loop_draws,
        "loop_draws_run": n_loop_draws,
        "objective_ours": solution.objective,
        "objective_loop": fit_objective,
        "draws_at_least_as_low": float(np.mean(own <= theirs * (1 + 1e-6))),
        "mean_draw_objective_ours": float(own.mean()),
        "mean_draw_objective_loop": float(theirs.mean()),
    }


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--loop-draws", type=int, default=N_DRAWS, help="draws the loop runs; the rest is scaled")
    parser.add_argument("--out", type=Path, default=RESULT)
    settings = parser.parse_args()
    points = planted_table()
    own, against = ours(points, settings.repeats), compare(points, settings.loop_draws)
    loop_seconds = against["loop_fit_seconds"] + against["loop_bootstrap_seconds"]
    result = {
        "command": f"python benchmarks/law_fit_speed.py --loop-draws {settings.loop_draws}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, SciPy {scipy.__version__}",
        "load_average": os.getloadavg()[0],
        **own,
        **against,
        "times_faster": loop_seconds / own["fit_and_bootstrap_seconds"]["median"],
        "times_faster_with_diagnostics": loop_seconds / own["fit_law_seconds"]["median"],
    }
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
