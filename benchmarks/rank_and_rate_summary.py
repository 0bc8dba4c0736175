"""What the runs of `rank_and_rate.py` say: tables, the learning-rate law of each alpha rule, and law C's gamma."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mars_core.convergence import NoConvergenceTimes, convergence_times
from mars_core.fitting import fit_law
from mars_core.fitting.learning_rate import DOUBT, RateFit, fit_learning_rates
from mars_core.ranks import Pair

BATCH = 8
REFERENCE = (4, 4)


def summarise(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """One record for each alpha rule and horizon.

    Args:
        runs: rows of all cells.
    """
    groups = runs.groupby(["rule", "horizon"], sort=False)
    return [_summary(str(rule), int(horizon), rows) for (rule, horizon), rows in groups]


def _summary(rule: str, horizon: int, rows: pd.DataFrame) -> dict[str, Any]:
    ends = _ends(rows, horizon)
    level = float(np.median(ends["value"]))
    positive = ends[(ends["r_me"] > 0) & (ends["r_llm"] > 0)]
    fit = fit_learning_rates(positive, level)
    assert fit is not None
    means = positive.groupby(["r_me", "r_llm", "rate"])["value"].mean()
    return {
        "rule": rule,
        "horizon": horizon,
        "seeds": sorted(int(seed) for seed in ends["seed"].unique()),
        "pairs": len(positive[["r_me", "r_llm"]].drop_duplicates()),
        "perplexity": [
            {"pair": [int(a), int(b)], "rate": float(rate), "perplexity": float(np.exp(value))}
            for (a, b, rate), value in means.items()
        ],
        "by_rate": [_at_rate(float(rate), own) for rate, own in means.groupby("rate")],
        "law": {name: _with_interval(fit, name) for name in fit.law.symbols},
        "scatter": fit.scatter,
        "tuned": _tuned(fit, positive),
        "gamma": [_gamma(rows, float(rate)) for rate in sorted(ends["rate"].unique())],
    }


def _ends(rows: pd.DataFrame, horizon: int) -> pd.DataFrame:
    """The last checkpoint of each run that did not diverge, as the law is fitted to it."""
    ends = rows[(rows["step"] == horizon) & rows["val_loss"].notna()]
    log_rate = np.log(ends["peak_lr"])
    logs = {"log_me": log_rate, "log_llm": log_rate}
    return ends.assign(D=horizon * BATCH, value=ends["val_loss"], rate=ends["peak_lr"], **logs)


def _with_interval(fit: RateFit, name: str) -> list[float]:
    return [float(fit.phi[fit.law.symbols.index(name)]), *fit.interval(name)]


def _at_rate(rate: float, means: pd.Series) -> dict[str, Any]:
    """The best pair at one rate, and how far the worst is from it."""
    best = means.idxmin()
    return {"rate": rate, "best": [int(best[0]), int(best[1])], "worst_over_best": _ratio(means)}


def _tuned(fit: RateFit, ends: pd.DataFrame) -> dict[str, Any]:
    """Every pair at its own best rate by the law: mean over its runs near that rate, with the standard error of it.

    A minimum over noisy rates would flatter; the law takes off what each run pays and averages over several.
    """
    rows = []
    for (a, b), own in ends.groupby(["r_me", "r_llm"]):
        pair: Pair = (int(a), int(b))
        size = own["D"].to_numpy(dtype=np.float64)
        paid = fit.law.penalty(fit.phi, fit.log_rates(own), [pair] * len(own), size)
        variance = fit.scatter**2 + (DOUBT * paid) ** 2
        weight = 1.0 / variance
        mean = float(np.sum(weight * (own["value"] - paid)) / weight.sum())
        rows.append(
            {
                "pair": list(pair),
                "best_rate": float(np.exp(fit.best(pair, float(size[0]))[0])),
                "perplexity": float(np.exp(mean)),
                "standard_error": float(np.exp(mean) * weight.sum() ** -0.5),
            }
        )
    values = pd.Series([np.log(row["perplexity"]) for row in rows])
    return {"pairs": rows, "worst_over_best": _ratio(values)}


def _ratio(losses: pd.Series) -> float:
    return float(np.exp(losses.max() - losses.min()))


def _gamma(rows: pd.DataFrame, rate: float) -> dict[str, Any]:
    """Law C's gamma of both modules from the runs at one rate, with 95% intervals; None where it cannot be fitted."""
    own = rows[(rows["peak_lr"] == rate) & rows["val_loss"].notna() & (rows["r_me"] > 0) & (rows["r_llm"] > 0)]
    names = own["r_me"].astype(str) + "-" + own["r_llm"].astype(str) + "-" + own["seed"].astype(str)
    table = own.assign(run_id=names, unique_samples=own["step"] * BATCH)
    found: dict[str, Any] = {"rate": rate, "me": None, "llm": None}
    try:
        times = convergence_times(table, signal="slice", level="common", eps=0.05, reference=REFERENCE, levels=None)
    except NoConvergenceTimes:
        return found
    for module in ("me", "llm"):
        found[module] = _fitted(times[times["module"] == module])
    return found


def _fitted(times: pd.DataFrame) -> list[float] | None:
    try:
        fit = fit_law("convergence", times, n_bootstrap=100)
    except ValueError:
        return None
    return [float(fit.coefficients["gamma"]), *map(float, fit.intervals["gamma"])]


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """The records as tables for people."""
    return "\n\n".join(part for record in records for part in (_perplexities(record), _laws(record)))


def _perplexities(record: dict[str, Any]) -> str:
    table = pd.DataFrame(record["perplexity"]).assign(pair=lambda rows: rows["pair"].map(tuple))
    wide = table.pivot_table(index="rate", columns="pair", values="perplexity")
    by_rate = {row["rate"]: row for row in record["by_rate"]}
    head = ["learning rate", *map(str, wide.columns), "best pair", "worst / best"]
    lines = []
    for rate, row in zip(wide.index, wide.to_numpy(), strict=True):
        own = by_rate[rate]
        spread = [str(tuple(own["best"])), f"{own['worst_over_best']:.2f}"]
        lines.append([f"{rate:g}", *(f"{value:.3f}" for value in row), *spread])
    tuned = {tuple(row["pair"]): row for row in record["tuned"]["pairs"]}
    best = min(tuned, key=lambda pair: tuned[pair]["perplexity"])
    own = [f"{tuned[pair]['perplexity']:.3f} at {tuned[pair]['best_rate']:.1e}" for pair in wide.columns]
    lines.append(["each at its best", *own, str(best), f"{record['tuned']['worst_over_best']:.2f}"])
    title = f"alpha rule `{record['rule']}`, {record['horizon']} steps, seeds {', '.join(map(str, record['seeds']))}"
    rows = [head, ["---"] * len(head), *lines]
    return f"{title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _laws(record: dict[str, Any]) -> str:
    shown = [
        f"{name} {value:.2f} [{low:.2f}, {high:.2f}]"
        for name, (value, low, high) in record["law"].items()
        if name in ("s_me", "s_llm", "l_me", "l_llm")
    ]
    gammas = [
        f"{row['rate']:g}: " + ", ".join(f"{module} {_interval(row[module])}" for module in ("me", "llm"))
        for row in record["gamma"]
    ]
    return f"law: {'; '.join(shown)}; scatter of a run {record['scatter']:.4f}\n\ngamma of law C: {'; '.join(gammas)}"


def _interval(found: Sequence[float] | None) -> str:
    return "–" if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"
