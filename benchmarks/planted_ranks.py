"""Planted validation losses on which ranks do or do not matter at the size that law P is tested on.

The flag `differences_not_predicted` takes the choice away from law P; on these tables it can be wrong both ways.
Sound: law P's ranks matter there, also where the curve over the size is not law P's (an annealed last checkpoint, a
second term that all pairs share). Faulty: ranks do nothing, or only say how fast a loss falls that all pairs then
reach, or every pair has a level of its own without any order. `planted_laws.py` runs this as one of its sections.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from mars_core.fitting import fit_law

RANK_GRIDS = ((8, 16, 32), (2, 4, 8, 16), (8, 16, 32, 64), (4, 8, 16, 32, 64))
MARGIN = 0.0025
Losses = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # of r_me, r_llm, D


def law_p(rng: np.random.Generator) -> Losses:
    """Eq. 1 with rank exponents of 0.02 to 0.2."""
    return _law_p(rng, *rng.uniform(0.02, 0.2, 2))


def one_module(rng: np.random.Generator) -> Losses:
    """Eq. 1; the vision rank does nothing."""
    return _law_p(rng, 0.0, rng.uniform(0.02, 0.2))


def annealed(rng: np.random.Generator) -> Losses:
    """Eq. 1, the largest size lower by 2% to 15% in all pairs: only there the learning rate has decayed."""
    return _annealed(law_p(rng), rng)


def other_curve(rng: np.random.Generator) -> Losses:
    """Eq. 1 with a second, steeper term in the size that all pairs share."""
    loss, common, steep = law_p(rng), rng.uniform(0.1, 0.6), rng.uniform(0.6, 1.2)
    return lambda m, n, D: loss(m, n, D) + common * (D / 256) ** -steep


def no_effect(rng: np.random.Generator) -> Losses:
    """Eq. 1 with rank exponents of zero."""
    return _law_p(rng, 0.0, 0.0)


def no_effect_annealed(rng: np.random.Generator) -> Losses:
    """The same with an annealed largest size."""
    return _annealed(no_effect(rng), rng)


def speed_only(rng: np.random.Generator) -> Losses:
    """Ranks say how soon a part of the loss is learnt; at the largest size every pair has learnt it."""
    fast_m, fast_n = rng.uniform(0.05, 0.3, 2)
    base, part, time = no_effect(rng), rng.uniform(0.2, 0.6), rng.uniform(100, 250)
    return lambda m, n, D: base(m, n, D) + part * np.exp(-D * (m / 16) ** fast_m * (n / 16) ** fast_n / time)


def without_order(rng: np.random.Generator) -> Losses:
    """Every pair has a level of its own, 3% apart in the standard deviation."""
    base, level = no_effect(rng), np.exp(0.03 * rng.standard_normal((7, 7)))
    at = lambda r: np.log2(r).astype(int)  # noqa: E731 - rank 1 to 64
    return lambda m, n, D: base(m, n, D) * level[at(m), at(n)]


SOUND = {"law P": law_p, "one module": one_module, "annealed": annealed, "other curve": other_curve}
FAULTY = {"no effect": no_effect, "no effect, annealed": no_effect_annealed, "speed only": speed_only}
UNORDERED = {"without order": without_order}
SHAPES: dict[str, Callable[[np.random.Generator], Losses]] = {**SOUND, **FAULTY, **UNORDERED}


def _law_p(rng: np.random.Generator, alpha_m: float, alpha_n: float) -> Losses:
    middle, floor, beta = rng.uniform(0.3, 2.0), rng.uniform(0.3, 2.0), rng.uniform(0.15, 0.6)
    return lambda m, n, D: floor + middle * (m / 16) ** -alpha_m * (n / 16) ** -alpha_n * (D / 512) ** -beta


def _annealed(loss: Losses, rng: np.random.Generator) -> Losses:
    drop = rng.uniform(0.02, 0.15)
    return lambda m, n, D: loss(m, n, D) * np.where(D >= 2048, 1.0 - drop, 1.0)


def measured(loss: Losses, rng: np.random.Generator) -> pd.DataFrame:
    """A calibration: sizes up to 2048, one run per pair (three in a quarter of the tables), noise of 0.1% to 1%.

    Up to 70% of the noise's variance is common to a run.
    """
    ranks = np.array(RANK_GRIDS[rng.integers(len(RANK_GRIDS))])
    sizes = (2048 / 2.0 ** (np.arange(int(rng.integers(7, 12))) / 2)).round()
    seeds = 3 if rng.random() < 0.25 else 1
    rows = [(m, n, D, s, f"{m}-{n}-{s}") for m in ranks for n in ranks for s in range(seeds) for D in sizes]
    table = pd.DataFrame(rows, columns=["r_me", "r_llm", "D", "seed", "run_id"])
    noise, common = np.exp(rng.uniform(np.log(0.001), np.log(0.01))), rng.uniform(0.0, 0.7)
    run = np.unique(table.run_id, return_inverse=True)[1]
    shared, own = rng.standard_normal(run.max() + 1)[run], rng.standard_normal(len(table))
    error = noise * (np.sqrt(common) * shared + np.sqrt(1 - common) * own)
    clean = loss(*(table[column].to_numpy(dtype=float) for column in ("r_me", "r_llm", "D")))
    return table.assign(loss=clean * np.exp(error))


def ranks_case(task: tuple[str, int]) -> dict[str, Any]:
    """Fit law P to one table: is it flagged?"""
    warnings.simplefilter("ignore", RuntimeWarning)
    shape, number = task
    rng = np.random.default_rng([number, 200 + list(SHAPES).index(shape)])
    loss = SHAPES[shape](rng)
    table = measured(loss, rng)
    fit = fit_law("performance", table, n_bootstrap=2, n_starts=16)
    pairs = set(zip(table.r_me, table.r_llm, strict=True))
    held_out = fit.held_out
    return {
        "shape": shape,
        "pairs": len(pairs),
        "seeds": int(table.seed.nunique()),
        "flagged": fit.has("differences_not_predicted"),
        "rival_ahead_in_absolute_error": held_out is not None
        and held_out.mape >= 0.9 * held_out.rivals["performance_no_rank"],
    }


def summarise_ranks(cases: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Rates per shape, and the false-alarm rate over all sound tables."""
    found = list(cases)
    sound = [case for case in found if case["shape"] in SOUND]
    sizes = sorted({case["pairs"] for case in sound})
    return {
        "false_alarms": {**_rates(sound), **{f"{n} pairs": _rates(_of(sound, n)) for n in sizes}},
        "shapes": {shape: _rates([case for case in found if case["shape"] == shape]) for shape in SHAPES},
    }


def _of(cases: list[dict[str, Any]], pairs: int) -> list[dict[str, Any]]:
    return [case for case in cases if case["pairs"] == pairs]


def _rates(cases: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "tables": len(cases),
        "flagged": float(np.mean([case["flagged"] for case in cases])),
        "rival_ahead_in_absolute_error": float(np.mean([case["rival_ahead_in_absolute_error"] for case in cases])),
    }
