"""Planted convergence times with the step S_D at which each size is reached, one run per rank.

Law C's trivial rival t = c(r) * S_D is the truth up to c(r) wherever one loss level per size defines the time, so
these tables are where the flag `no_better_than_trivial` can be wrong both ways: on sound tables c(r) is a power
law of the rank, on faulty ones it is not, or the rank does nothing. Half of the tables are times drawn directly,
half are read off planted validation curves. `planted_laws.py` runs this as one of its sections.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from mars_core.convergence import convergence_times
from mars_core.fitting import fit_law
from mars_core.search.soundness import objection_to_law_c

Levels = dict[int, float]  # ln c(r) per rank, up to a constant

RANK_GRIDS = ((8, 16, 32), (2, 4, 8, 16), (8, 16, 32, 64), (4, 8, 16, 32, 64))
SIZES = np.array([256, 362, 512, 724, 1024, 1448, 2048])
STEPS = np.array([round(8 * 2 ** (i / 2)) for i in range(11)])
BATCH = 8
STEEPNESS = 0.35  # of the planted validation curves


def power_law(rng: np.random.Generator, ranks: tuple[int, ...]) -> Levels:
    """Law C is exactly true, gamma -0.6 to -0.2."""
    gamma = rng.uniform(-0.6, -0.2)
    return {r: gamma * np.log(r) for r in ranks}


def weak_power_law(rng: np.random.Generator, ranks: tuple[int, ...]) -> Levels:
    """Law C is exactly true, gamma -0.2 to -0.05: noise of 2% is a sixth to a half of the effect of a doubling."""
    gamma = rng.uniform(-0.2, -0.05)
    return {r: gamma * np.log(r) for r in ranks}


def no_effect(rng: np.random.Generator, ranks: tuple[int, ...]) -> Levels:
    """Times are proportional to size and nothing else."""
    return dict.fromkeys(ranks, 0.0)


def u_shaped(rng: np.random.Generator, ranks: tuple[int, ...]) -> Levels:
    """The lowest and the highest rank converge later than the middle, by 15% to 60%."""
    depth, middle = np.log(rng.uniform(1.15, 1.6)), np.mean(np.log2(ranks))
    return {r: depth * ((np.log2(r) - middle) / (np.log2(ranks[-1]) - middle)) ** 2 for r in ranks}


def levelling_off(rng: np.random.Generator, ranks: tuple[int, ...]) -> Levels:
    """The second rank is faster than the lowest, by 15% to 40%; more rank changes nothing."""
    gain = rng.uniform(0.15, 0.4)
    return {r: 0.0 if r == ranks[0] else -gain for r in ranks}


def irregular(rng: np.random.Generator, ranks: tuple[int, ...]) -> Levels:
    """Every rank has its own level, 15% apart in the standard deviation; some come out close to a power law."""
    return dict(zip(ranks, rng.normal(0.0, 0.15, len(ranks)), strict=True))


SOUND = {"power law": power_law, "weak power law": weak_power_law}
FAULTY = {"no effect": no_effect, "u-shaped": u_shaped, "levelling off": levelling_off, "irregular": irregular}
SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Levels]] = {**SOUND, **FAULTY}


def drawn(levels: Levels, rng: np.random.Generator) -> pd.DataFrame:
    """Times drawn directly: noise of 1% to 3% that a run has in common and as much again at each size."""
    noise, rows = rng.uniform(0.01, 0.03), []
    for r, level in levels.items():
        error = noise * (rng.standard_normal(len(SIZES)) + rng.standard_normal())
        S_D = SIZES / BATCH
        steps = 0.64 * S_D * np.exp(level - max(levels.values()) + error)
        rows.append(pd.DataFrame({"run_id": str(r), "r": r, "D": SIZES, "S_D": S_D, "steps": steps}))
    return pd.concat(rows, ignore_index=True)


def from_curves(levels: Levels, rng: np.random.Generator) -> pd.DataFrame:
    """The LLM's times off loss = 1 + 2 (1 + s / tau)^-0.35, tau proportional to c(r_me) c(r_llm).

    The loss errs by 0.1% to 0.3% in a whole run and as much again at each checkpoint, which is 1% to 3% of a time.
    """
    noise, ranks = rng.uniform(0.001, 0.003), list(levels)
    reference = ranks[(len(ranks) - 1) // 2]
    rows = []
    for m, n in dict.fromkeys([(reference, r) for r in ranks] + [(r, reference) for r in ranks]):
        tau = 20.0 * np.exp(levels[m] + levels[n] - 2.0 * levels[reference])
        error = noise * (rng.standard_normal(len(STEPS)) + rng.standard_normal())
        loss = (1.0 + 2.0 * (1.0 + STEPS / tau) ** -STEEPNESS) * np.exp(error)
        run = {"run_id": f"{m}-{n}", "step": STEPS, "unique_samples": BATCH * STEPS, "r_me": m, "r_llm": n, "seed": 0}
        rows.append(pd.DataFrame({**run, "val_loss": loss}))
    times = convergence_times(pd.concat(rows, ignore_index=True), reference=(reference, reference))
    return times[times.module == "llm"]


def times_case(task: tuple[str, int]) -> dict[str, Any]:
    """Fit law C to one table: is it flagged, is it disqualified from balancing."""
    warnings.simplefilter("ignore", RuntimeWarning)  # log of 0 for a censored residual far out
    shape, number = task
    rng = np.random.default_rng([number, 100 + list(SHAPES).index(shape)])
    levels = SHAPES[shape](rng, RANK_GRIDS[rng.integers(len(RANK_GRIDS))])
    source = (drawn, from_curves)[number % 2]
    fit = fit_law("convergence", source(levels, rng), n_bootstrap=100, n_starts=16)
    held_out = fit.held_out
    return {
        "shape": shape,
        "source": source.__name__,
        "ranks": len(levels),
        "flagged": fit.has("no_better_than_trivial"),
        "disqualified": objection_to_law_c(fit, "LLM", None) is not None,
        "other_errors": sorted(s.code for s in fit.statuses if s.severity == "error"),
        "rival_ahead_at_known_ranks": held_out is not None and held_out.mape >= 0.9 * min(held_out.rivals.values()),
        "compared": held_out is not None and held_out.unseen_rank_mape is not None,
    }


def summarise_times(cases: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Rates per shape of c(r), and the false-alarm rate over all sound tables."""
    found = list(cases)
    shapes = {shape: [case for case in found if case["shape"] == shape] for shape in SHAPES}
    sound = [case for case in found if case["shape"] in SOUND]
    return {
        "false_alarms": {**_rates(sound), **{f"{n} ranks": _rates(_of(sound, n)) for n in (3, 4, 5)}},
        "sound": {shape: _rates(shapes[shape]) for shape in SOUND},
        "faulty": {shape: _rates(shapes[shape]) for shape in FAULTY},
    }


def _of(cases: list[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
    return [case for case in cases if case["ranks"] == ranks]


def _rates(cases: list[dict[str, Any]]) -> dict[str, float]:
    keys = ("flagged", "disqualified", "rival_ahead_at_known_ranks", "compared")
    return {"tables": len(cases), **{key: float(np.mean([case[key] for case in cases])) for key in keys}}
