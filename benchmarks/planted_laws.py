"""How often a law's stated intervals cover and its flags are right, on surfaces whose truth is known.

This judges fits alone, mostly where the law is exactly true; `planted_studies.py` judges the choice of ranks.

Every surface draws its law's coefficients, ranks, sizes, seeds per pair, noise level, noise shape (Gaussian
or Student t with 4 degrees of freedom) and the share of noise that a whole run has in common. On sound
surfaces nothing is wrong, so each flag counts as a false alarm; on faulty ones exactly one thing is wrong
and the flag for it counts as a detection. A second section does the same for law C's flag
`no_better_than_trivial` on convergence-time tables with their steps S_D (`planted_times.py`), a third for law P's
`differences_not_predicted` (`planted_ranks.py`).

    python benchmarks/planted_laws.py            # writes benchmarks/results/planted_laws.json
    python benchmarks/planted_laws.py --only times
    python benchmarks/planted_laws.py --only ranks
    python benchmarks/planted_laws.py --only no_better_than_trivial --law convergence

With `--only` the rest of the record stays as it is, and the part measured anew carries its own command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from planted_ranks import SHAPES as RANK_SHAPES
from planted_ranks import ranks_case, summarise_ranks
from planted_times import FAULTY, SOUND, summarise_times, times_case

from mars_core.fitting import LawFit, fit_law
from mars_core.fitting.solve import solve
from mars_core.fitting.table import read_table
from mars_core.laws import get_law

RESULT = Path(__file__).parent / "results" / "planted_laws.json"
RANK_GRIDS = ((2, 4, 8, 16), (8, 16, 32, 64), (4, 8, 16, 32, 64))
FLAGS = (
    "at_bound",
    "floor_collapsed",
    "wrong_sign",
    "no_measurable_effect",
    "too_few_points",
    "censored_share",
    "starts_disagree",
    "ill_conditioned",
    "no_better_than_trivial",
)


@dataclass(frozen=True)
class Surface:
    """One planted table with its truth.

    Attributes:
        law: law that generated it.
        theta: its coefficients, natural.
        table: points, without the target.
        noise: standard deviation of the log target's noise.
        common: share of the noise's variance that all points of a run have in common.
        heavy: Student t noise with 4 degrees of freedom instead of Gaussian.
        limit: steps beyond which a target is censored, as a multiple of its size's median; None for no limit.
        fixed: target drawn beforehand, None to draw it when observed.
    """

    law: str
    theta: tuple[float, ...]
    table: pd.DataFrame
    noise: float
    common: float
    heavy: bool
    limit: float | None = None
    fixed: tuple[float, ...] | None = None

    def clean(self) -> np.ndarray:
        """Noise-free target."""
        return get_law(self.law).predict(self.theta, self.table)

    def observed(self, rng: np.random.Generator) -> pd.DataFrame:
        """The table with its noisy, possibly censored target."""
        if self.fixed is not None:
            return self.table.assign(**{get_law(self.law).target: self.fixed})
        runs = np.unique(self.table.run_id, return_inverse=True)[1]
        own = rng.standard_t(4, len(runs)) / np.sqrt(2) if self.heavy else rng.standard_normal(len(runs))
        shared = rng.standard_normal(runs.max() + 1)[runs]
        noise = self.noise * (np.sqrt(self.common) * shared + np.sqrt(1 - self.common) * own)
        target = self.clean() * np.exp(noise)
        table = self.table.assign(**{get_law(self.law).target: target})
        return table if self.limit is None else _censor(table, self.limit)


def _censor(table: pd.DataFrame, limit: float) -> pd.DataFrame:
    """Cut the steps at `limit` times the median of their size."""
    cut = limit * table.groupby("D").steps.transform("median")
    return table.assign(steps=np.minimum(table.steps, cut), censored=table.steps > cut)


def performance_surface(rng: np.random.Generator) -> Surface:
    """Law P over a rank grid: 5 to 8 sizes, 1 to 3 seeds, noise 0.2% to 2%."""
    ranks, sizes, seeds = _design(rng)
    rows = [(a, b, D, s) for a in ranks for b in ranks for D in sizes for s in range(seeds)]
    table = pd.DataFrame(rows, columns=["r_me", "r_llm", "D", "seed"])
    alphas, beta = rng.uniform(0.01, 0.2, 2), rng.uniform(0.15, 0.6)
    middle, floor = rng.uniform(0.3, 2.0), rng.uniform(0.3, 2.0)  # nats: reducible at the centre, irreducible
    A = middle * np.prod(np.median(ranks) ** alphas) * np.median(sizes) ** beta
    theta = (float(A), *alphas.tolist(), float(beta), float(floor))
    return Surface("performance", theta, _with_runs(table, ["r_me", "r_llm", "seed"]), *_noise(rng, 1.0))


def convergence_surface(rng: np.random.Generator) -> Surface:
    """Law C over ranks: 5 to 8 sizes, 2 to 4 seeds, noise 0.8% to 8%; in a third of them some steps are censored."""
    ranks, sizes, seeds = _design(rng)
    rows = [(r, D, s) for r in ranks for D in sizes for s in range(seeds + 1)]
    table = pd.DataFrame(rows, columns=["r", "D", "seed"])
    gamma, delta = -rng.uniform(0.05, 0.5), rng.uniform(0.4, 1.1)
    middle = rng.uniform(50.0, 500.0)  # steps at the centre
    k = middle / (np.median(ranks) ** gamma * np.median(sizes) ** delta)
    theta = (float(k), float(gamma), float(delta), float(middle * rng.uniform(0.02, 0.3)))
    surface = Surface("convergence", theta, _with_runs(table, ["r", "seed"]), *_noise(rng, 4.0))
    return replace(surface, limit=1.05) if rng.random() < 1 / 3 else surface


def _design(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    ranks = np.array(RANK_GRIDS[rng.integers(3)], dtype=float)
    sizes = 2.0 ** (rng.integers(6, 9) + np.arange(rng.integers(5, 9)))
    return ranks, sizes, int(rng.integers(1, 4))


def _noise(rng: np.random.Generator, factor: float) -> tuple[float, float, bool]:
    noise = factor * np.exp(rng.uniform(np.log(0.002), np.log(0.02)))
    return float(noise), float(rng.uniform(0.0, 0.7)), bool(rng.random() < 0.3)


def _with_runs(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    return table.assign(run_id=table[keys].astype(int).astype(str).agg("-".join, axis=1))


def _with(surface: Surface, **coefficients: float) -> Surface:
    """The surface with some coefficients replaced, its size at the centre of the data kept."""
    law = get_law(surface.law)
    named = {**dict(zip(law.symbols, surface.theta, strict=True)), **coefficients}
    scale = law.symbols[0]
    before = np.median(law.predict(surface.theta, surface.table))
    changed = replace(surface, theta=tuple(named.values()))
    floor = named["E"]
    named[scale] *= (before - min(floor, 0.5 * before)) / (np.median(changed.clean()) - floor)
    return replace(surface, theta=tuple(named.values()))


def floorless(rng: np.random.Generator, base: Surface) -> Surface:
    """No floor at all."""
    return _with(base, E=0.0)


def wrong_way(rng: np.random.Generator, base: Surface) -> Surface:
    """A rank exponent of the other sign, of a size the sound surfaces have too."""
    if base.law == "performance":
        return _with(base, alpha_l=-float(rng.uniform(0.05, 0.2)))
    return _with(base, gamma=float(rng.uniform(0.1, 0.5)))


def without_rank_effect(rng: np.random.Generator, base: Surface) -> Surface:
    """A rank exponent of exactly zero."""
    return _with(base, alpha_l=0.0) if base.law == "performance" else _with(base, gamma=0.0)


def out_of_bounds(rng: np.random.Generator, base: Surface) -> Surface:
    """An exponent beyond the law's bounds."""
    if base.law == "performance":
        return _with(base, alpha_l=float(rng.uniform(2.5, 4.0)))
    return _with(base, gamma=-float(rng.uniform(3.5, 5.0)))


def sparse(rng: np.random.Generator, base: Surface) -> Surface:
    """As many points as coefficients, or one or two more."""
    keep = len(base.theta) + int(rng.integers(0, 3))
    rows = rng.choice(len(base.table), keep, replace=False)
    table = base.table.iloc[rows].reset_index(drop=True)
    varies = all(table[column].nunique() > 1 for column in get_law(base.law).inputs)
    return replace(base, table=table, limit=None) if varies else sparse(rng, base)


def censored(rng: np.random.Generator, base: Surface) -> Surface:
    """Some steps are only known to be larger; law C only."""
    return replace(base, limit=float(rng.uniform(0.9, 1.1)))


def confounded(rng: np.random.Generator, base: Surface) -> Surface:
    """The inputs never vary apart: r_llm is always r_me; law C's rank grows with the size."""
    if base.law == "performance":
        return replace(base, table=base.table[base.table.r_me == base.table.r_llm].reset_index(drop=True))
    sizes = np.unique(base.table.D)
    along = base.table.assign(r=2.0 ** (1 + np.searchsorted(sizes, base.table.D))).drop_duplicates(["r", "D", "seed"])
    return replace(base, table=_with_runs(along, ["r", "seed"]).reset_index(drop=True), limit=None)


def tangled(rng: np.random.Generator, base: Surface) -> Surface:
    """Few points of pure noise whose objective has several basins.

    Drawn again until fewer than half of 256 starts (not the ones the fit will use) reach the best objective.
    """
    law = get_law(base.law)
    while True:
        rows = np.sort(rng.choice(len(base.table), min(6 * law.n_params, len(base.table)), replace=False))
        some = replace(base, table=base.table.iloc[rows].reset_index(drop=True), noise=1.0, common=0.0, limit=None)
        target = some.observed(rng)[law.target].to_numpy()
        found = replace(some, fixed=tuple(target))
        points = read_table(law, found.observed(rng), None)
        if solve(law, points, delta=1e-3, n_starts=256, seed=12345).start_agreement < 0.5:
            return found


def trivial(rng: np.random.Generator, base: Surface) -> Surface:
    """The trivial rival is the truth: ranks do nothing and, for law C, steps are proportional to size."""
    if base.law == "performance":
        return _with(base, alpha_m=0.0, alpha_l=0.0)
    return _with(base, gamma=0.0, delta=1.0, E=0.0)


FAULTS: dict[str, tuple[Callable[[np.random.Generator, Surface], Surface], tuple[str, ...]]] = {
    "at_bound": (out_of_bounds, ("performance", "convergence")),
    "floor_collapsed": (floorless, ("performance", "convergence")),
    "wrong_sign": (wrong_way, ("performance", "convergence")),
    "no_measurable_effect": (without_rank_effect, ("performance", "convergence")),
    "too_few_points": (sparse, ("performance", "convergence")),
    "censored_share": (censored, ("convergence",)),
    "starts_disagree": (tangled, ("performance", "convergence")),
    "ill_conditioned": (confounded, ("performance", "convergence")),
    "no_better_than_trivial": (trivial, ("performance", "convergence")),
}
MAKERS = {"performance": performance_surface, "convergence": convergence_surface}


def sound_case(task: tuple[str, int]) -> dict[str, Any]:
    """Fit one sound surface: does each interval cover, how wide is it, which flags are up."""
    law, number = task
    rng = np.random.default_rng([number, 0, law == "performance"])
    surface = MAKERS[law](rng)
    fit = _fit(surface, rng)
    return {
        "law": law,
        "coefficients": {
            symbol: {
                "covered": bool(fit.intervals[symbol][0] <= true <= fit.intervals[symbol][1]),
                "width": (fit.intervals[symbol][1] - fit.intervals[symbol][0]) / max(abs(true), 1e-12),
            }
            for symbol, true in zip(get_law(law).symbols, surface.theta, strict=True)
        },
        "extrapolation": _extrapolation(surface, fit),
        "flags": sorted({status.code for status in fit.statuses}),
        "censored": surface.limit is not None,
        "noise": surface.noise,
        "n_groups": fit.n_groups,
        "n_points": fit.n_points,
        "start_agreement": fit.start_agreement,
        "condition_number": fit.condition_number,
        "held_out": None if fit.held_out is None else [fit.held_out.mape, min(fit.held_out.rivals.values())],
    }


def faulty_case(task: tuple[str, str, int]) -> dict[str, Any]:
    """Fit one faulty surface: which flags are up."""
    flag, law, number = task
    rng = np.random.default_rng([number, 1 + FLAGS.index(flag), law == "performance"])
    surface = FAULTS[flag][0](rng, MAKERS[law](rng))
    fit = _fit(surface, rng)
    return {
        "flag": flag,
        "law": law,
        "flags": sorted({status.code for status in fit.statuses}),
        "start_agreement": fit.start_agreement,
        "condition_number": fit.condition_number,
        "theta": fit.theta.tolist(),
        "held_out": None if fit.held_out is None else [fit.held_out.mape, min(fit.held_out.rivals.values())],
    }


def _extrapolation(surface: Surface, fit: LawFit) -> dict[str, Any]:
    """Whether the predicted target at four times the largest size is covered, at the lowest and highest ranks."""
    law = get_law(surface.law)
    ends = surface.table[list(law.inputs)].agg(["min", "max"]).assign(D=4 * surface.table.D.max())
    low, high = fit.predict_interval(ends)
    true = law.predict(surface.theta, ends)
    return {"covered": ((low <= true) & (true <= high)).tolist(), "width": ((high - low) / true).tolist()}


def _fit(surface: Surface, rng: np.random.Generator) -> LawFit:
    return fit_law(surface.law, surface.observed(rng), n_bootstrap=400)


def coverage(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of intervals that cover and their median width relative to the true value, per coefficient."""
    symbols = list(cases[0]["coefficients"])
    entries = {s: [case["coefficients"][s] for case in cases] for s in symbols}
    return {
        "surfaces": len(cases),
        "overall": float(np.mean([e["covered"] for found in entries.values() for e in found])),
        "per_coefficient": {s: float(np.mean([e["covered"] for e in found])) for s, found in entries.items()},
        "median_relative_width": {s: float(np.median([e["width"] for e in found])) for s, found in entries.items()},
        "prediction_at_4_times_the_largest_size": {
            "covered": float(np.mean([case["extrapolation"]["covered"] for case in cases])),
            "median_relative_width": float(np.median([case["extrapolation"]["width"] for case in cases])),
        },
    }


def summarise(sound: list[dict[str, Any]], faulty: list[dict[str, Any]]) -> dict[str, Any]:
    """Coverage per law, false alarms on sound surfaces, detections on faulty ones."""
    laws = list(MAKERS)
    return {
        "coverage": {law: coverage([case for case in sound if case["law"] == law]) for law in laws},
        "false_alarms": {flag: _false_alarms(flag, sound) for flag in FLAGS},
        "detections": {
            flag: {
                law: _share([flag in case["flags"] for case in faulty if (case["flag"], case["law"]) == (flag, law)])
                for law in FAULTS[flag][1]
            }
            for flag in FLAGS
        },
    }


def _false_alarms(flag: str, sound: list[dict[str, Any]]) -> dict[str, float]:
    """Share of sound surfaces with the flag; surfaces that are censored on purpose do not count for that flag."""
    apt = [case for case in sound if flag != "censored_share" or not case["censored"]]
    return {law: _share([flag in case["flags"] for case in apt if case["law"] == law]) for law in MAKERS}


def _share(hits: list[bool]) -> float:
    return float(np.mean(hits)) if hits else 0.0


def measure_surfaces(pool: ProcessPoolExecutor, settings: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """All sound and all faulty cases of the settings' laws and flags."""
    laws = [law for law in MAKERS if settings.law in (None, law)]
    flags = [flag for flag in FLAGS if settings.only in (None, flag)]
    sound = list(pool.map(sound_case, [(law, i) for law in laws for i in range(settings.surfaces)], chunksize=4))
    tasks = [(f, law, i) for f in flags for law in FAULTS[f][1] if law in laws for i in range(settings.faulty)]
    return [sound, list(pool.map(faulty_case, tasks, chunksize=4))]


def measure_times(pool: ProcessPoolExecutor, settings: argparse.Namespace) -> dict[str, Any]:
    """Rates on convergence-time tables with S_D."""
    shapes = [*[(shape, settings.surfaces // 2) for shape in SOUND], *[(shape, settings.faulty) for shape in FAULTY]]
    return summarise_times(pool.map(times_case, [(s, i) for s, count in shapes for i in range(count)], chunksize=4))


def measure_ranks(pool: ProcessPoolExecutor, settings: argparse.Namespace) -> dict[str, Any]:
    """Rates on tables where ranks do or do not matter at the held-out size."""
    tasks = [(shape, i) for shape in RANK_SHAPES for i in range(settings.surfaces // 2)]
    return summarise_ranks(pool.map(ranks_case, tasks, chunksize=4))


def with_flag(record: dict[str, Any], flag: str, cases: list[list[dict[str, Any]]], origin: dict[str, Any]) -> None:
    """Replace one flag's rates in a record, for the laws that were measured."""
    sound, faulty = cases
    for law in {case["law"] for case in sound}:
        record["false_alarms"][flag][law] = _false_alarms(flag, sound)[law]
        record["detections"][flag][law] = _share([flag in case["flags"] for case in faulty if case["law"] == law])
        record.setdefault("measured_anew", {})[f"{flag}, {law}"] = origin


def main() -> None:
    """Run all surfaces, or those of one section, and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surfaces", type=int, default=200, help="sound surfaces per law")
    parser.add_argument("--faulty", type=int, default=60, help="faulty surfaces per flag and law")
    parser.add_argument("--only", choices=("times", "ranks", *FLAGS), help="one section, or one flag on the surfaces")
    parser.add_argument("--law", choices=tuple(MAKERS), help="one law only; needs --only FLAG")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--raw", type=Path, help="also write every case of the surfaces, one JSON line each")
    settings = parser.parse_args()
    if settings.law and settings.only not in FLAGS:
        parser.error("--law needs --only FLAG")
    began = time.perf_counter()

    def origin() -> dict[str, Any]:
        options = "".join(f" --{key} {value}" for key in ("only", "law") if (value := getattr(settings, key)))
        return {
            "command": f"python benchmarks/planted_laws.py --surfaces {settings.surfaces} "
            f"--faulty {settings.faulty}{options}",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"NumPy {np.__version__}",
            "seconds": round(time.perf_counter() - began, 1),
        }

    with ProcessPoolExecutor(settings.processes) as pool:
        cases = None if settings.only in ("times", "ranks") else measure_surfaces(pool, settings)
        times = measure_times(pool, settings) if settings.only in (None, "times") else None
        ranks = measure_ranks(pool, settings) if settings.only in (None, "ranks") else None
    if settings.raw and cases:
        settings.raw.write_text("\n".join(json.dumps(case) for part in cases for case in part) + "\n")
    result = {} if settings.only is None else json.loads(settings.out.read_text())
    if cases and settings.only is None:
        result = {**origin(), **summarise(*cases)}
    elif cases:
        with_flag(result, settings.only, cases, origin())
    if times:
        result["times_with_S_D"] = {**({} if settings.only is None else origin()), **times}
    if ranks:
        result["ranks_that_matter"] = {**({} if settings.only is None else origin()), **ranks}
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
