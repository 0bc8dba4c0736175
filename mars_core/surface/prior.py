"""Prior of the pairs' coefficients: smooth in the log ranks, with the size of every effect left to the data.

| symbol | meaning | shape |
|---|---|---|
| rho | log rank of a module | (n_pairs,) |
| amplitude | standard deviation of an effect of the module's rank | (n,) per draw |
| k | half a straight line, half a smooth curve (squared exponential) in rho, variance about 1 | (n_pairs, n_pairs) |

An effect is a main effect of each module and what they do only together. `drift` is how far differences move over the
last third of a run beside the law, `early` how far they moved before. Amplitudes are log-uniform over four orders of
magnitude: most of that range is no effect at all, so an effect has to show in the data before it is believed.

A module of rank 0 has no adapter. How far it is from ranks of 1 and more no power of the rank says: it has an effect of
its own, so wide (`APART`) that the measurements alone decide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mars_core.ranks import Pair
from mars_core.surface.curves import Floats

JITTER = 1e-6
APART = (0.5, 0.2)  # standard deviations of the effect of no adapter: what stays, and what goes with data
OWN = 0.02  # largest offset of a single pair that its ranks do not explain
SMALLEST = 5e-4  # amplitude that is as good as none; its distance from 0.1% is the prior weight of no effect

NAMES = (
    "me", "llm", "shrinking_me", "shrinking_llm", "together", "drift", "early", "own", "heat", "length", "tau",
)  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """Range of each hyperparameter; uniform between them, in logs but for the shares `shrinking_*`."""

    low: Floats
    high: Floats


def bounds(sigma: float, spread: float = 0.0) -> Bounds:
    """Ranges.

    Args:
        sigma: scatter of one checkpoint, to which that of whole runs is tied within a factor of ten.
        spread: how far apart runs of one pair end, which may be much more than their checkpoints scatter.
    """
    nothing, large = np.log(SMALLEST), np.log(0.3)
    ranges = {
        "me": (nothing, large), "llm": (nothing, large), "shrinking_me": (0.0, 1.0), "shrinking_llm": (0.0, 1.0),
        "together": (np.log(0.02), 0.0), "drift": (nothing, np.log(0.05)), "early": (nothing, np.log(0.5)),
        "own": (nothing, np.log(OWN)), "heat": (nothing, np.log(0.1)), "length": (np.log(0.6), np.log(4.0)),
        "tau": (np.log(0.15 * sigma), np.log(max(8.0 * sigma, 3.0 * spread))),
    }  # fmt: skip
    low, high = zip(*(ranges[name] for name in NAMES), strict=True)
    return Bounds(np.array(low), np.array(high))


@dataclass(frozen=True, eq=False)
class Distances:
    """What the kernels are made of, per module: `lines`, products of standardised log ranks, and `squares`, squared
    differences of log ranks; (2, n_pairs, n_pairs) each, vision encoder first. Rank 0 lies on no line and infinitely
    far from all others. apart: how many modules have rank 0 in both pairs, (n_pairs, n_pairs)."""

    lines: Floats
    squares: Floats
    apart: Floats


def distances(pairs: Sequence[Pair], measured: Sequence[Pair]) -> Distances:
    """Distances between pairs; the measured ones set what a rank is compared with."""
    ranks = np.array(pairs, dtype=np.float64).T
    zero, rho = ranks == 0, np.log(np.maximum(ranks, 1.0))
    levels = [np.log(np.unique(own[own > 0])) for own in np.array(measured, dtype=np.float64).T]
    line = np.stack([_standardised(own, at) for own, at in zip(rho, levels, strict=True)])
    line = np.where(zero, 0.0, line)
    squares = (rho[:, :, None] - rho[:, None, :]) ** 2
    squares = np.where(zero[:, :, None] != zero[:, None, :], np.inf, squares)
    return Distances(line[:, :, None] * line[:, None, :], squares, (zero[:, :, None] & zero[:, None, :]).sum(axis=0))


def _standardised(log_ranks: Floats, levels: Floats) -> Floats:
    return (log_ranks - levels.mean()) / (levels.std() or 1.0) if len(levels) else np.zeros_like(log_ranks)


def factors(between: Distances, hyper: Floats, n_features: int) -> list[Floats]:
    """Cholesky factors of the prior covariance of each block of coefficients, (n, n_pairs, n_pairs) each.

    Args:
        between: distances of the pairs.
        hyper: (n, len(NAMES)).
        n_features: 5, or 6 where annealing is seen.
    """
    value = dict(zip(NAMES, np.exp(hyper).T[:, :, None, None], strict=True))
    share_me, share_llm = (hyper[:, NAMES.index(name), None, None] for name in ("shrinking_me", "shrinking_llm"))
    me, llm = (
        0.5 * line + 0.5 * np.exp(-0.5 * square / value["length"] ** 2)
        for line, square in zip(between.lines, between.squares, strict=True)
    )

    def effect(of_me: Floats, of_llm: Floats) -> Floats:
        joint = value["together"] ** 2 * of_me * of_llm * me * llm
        return np.asarray(of_me**2 * me + of_llm**2 * llm + joint)

    identity = np.eye(me.shape[1])
    own = value["own"] ** 2 * identity
    stays, goes = (sd**2 * between.apart for sd in APART)
    blocks = [
        effect(value["me"] * np.sqrt(1.0 - share_me), value["llm"] * np.sqrt(1.0 - share_llm)) + own + stays,
        effect(value["me"] * np.sqrt(share_me), value["llm"] * np.sqrt(share_llm)) + goes,
        value["drift"] ** 2 * (me + llm),
        value["early"] ** 2 * (me + llm),
        4.0 * value["early"] ** 2 * (me + llm),
        value["heat"] ** 2 * (me + llm),
    ]
    return [np.linalg.cholesky(block + (JITTER * _scale(block) + 1e-16) * identity) for block in blocks[:n_features]]


def _scale(block: Floats) -> Floats:
    return np.asarray(np.trace(block, axis1=1, axis2=2)[:, None, None] / block.shape[1])
