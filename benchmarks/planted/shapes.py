"""The shapes that a true loss surface can have. Each is one function; see `ground.py` for x, y, d and t."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from planted.ground import LARGEST, Field, Floats, Grid, Ground, Strengthened

Shape = Callable[[np.random.Generator, Ground, Grid], Strengthened]
OFFSETS = 0.003  # standard deviation of pair-specific offsets, nats, so 0.3% of perplexity


def eq1(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """Eq. 1 exactly: A / (r_me^a r_llm^b D^beta) + E."""
    a, b = rng.dirichlet((1.0, 1.0))
    return lambda t: lambda x, y, d: ground.reducible * np.exp(-t * (a * x + b * y) - ground.beta * d) + ground.floor


def inner_vision(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """The best vision rank lies inside the grid, on an uneven bowl; the LLM's rank helps throughout."""
    bowl, helps = _bowl(rng, rng.uniform(-0.6, 0.6)), _helps(rng)
    weight, fade_me, fade_llm = rng.uniform(0.2, 1.5), ground.fading(rng), ground.fading(rng)
    return ground.on_top(lambda x, y, d: bowl(x) * fade_me(d) + weight * helps(y) * fade_llm(d))


def ratio(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """A penalty on the ratio of the ranks that stays, and a small benefit of both ranks that shrinks."""
    best, weight, power = rng.uniform(-0.8, 0.8), rng.uniform(0.0, 0.6), rng.uniform(1.2, 2.2)
    a, b = rng.dirichlet((1.0, 1.0))

    def effect(x: Floats, y: Floats, d: Floats) -> Floats:
        return np.abs(x - y - best) ** power - weight * (a * x + b * y) * np.exp(-ground.beta * d)

    return ground.on_top(effect)


def additive(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """B_m r_me^-a + B_l r_llm^-b: capacity terms that no amount of data removes."""
    share, a, b = rng.uniform(0.1, 0.9), rng.uniform(0.3, 2.0), rng.uniform(0.3, 2.0)
    return ground.on_top(lambda x, y, d: share * np.exp(-a * x) + (1 - share) * np.exp(-b * y))


def moving(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """The paper's appendix C: small data prefer high vision ranks, large data moderate ones."""
    small, large = rng.uniform(0.5, 1.2), rng.uniform(-0.5, 0.3)
    middle, width = np.log(rng.uniform(400.0, 20_000.0) / LARGEST), rng.uniform(0.7, 2.0)
    weight, helps, fade = rng.uniform(0.1, 1.0), _helps(rng), ground.fading(rng)

    def effect(x: Floats, y: Floats, d: Floats) -> Floats:
        best = large + (small - large) / (1 + np.exp((d - middle) / width))
        return (x - best) ** 2 + weight * helps(y) * fade(d)

    return ground.on_top(effect)


def over_fitting(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """Ranks help, and a term that grows with both ranks and shrinks with data hurts."""
    a, b = rng.dirichlet((1.0, 1.0))
    growth, rate, weight = rng.uniform(0.5, 2.0), rng.uniform(0.2, 0.7), rng.uniform(0.2, 1.5)
    fade, tilt = ground.fading(rng), rng.uniform(0.2, 0.8)

    def effect(x: Floats, y: Floats, d: Floats) -> Floats:
        hurts = np.exp(growth * (tilt * x + (1 - tilt) * y) - rate * d) / np.sinh(growth)
        return weight * hurts - (a * x + b * y) * fade(d)

    return ground.on_top(effect)


def saturating(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """Each rank helps up to a knee and then does nothing."""
    knee_me, knee_llm = _knee(rng), _knee(rng)
    share, fade = rng.uniform(0.2, 0.8), ground.fading(rng)
    return ground.on_top(lambda x, y, d: fade(d) * (share * knee_me(x) + (1 - share) * knee_llm(y)))


def dominated(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """One module's rank helps strongly; the other's has a shallow bowl. Which is which is drawn."""
    helps, bowl, weight = _helps(rng), _bowl(rng, rng.uniform(-0.4, 0.4)), rng.uniform(0.1, 0.4)
    fade_strong, fade_weak, vision = ground.fading(rng), ground.fading(rng), rng.random() < 0.5

    def effect(x: Floats, y: Floats, d: Floats) -> Floats:
        strong, weak = (x, y) if vision else (y, x)
        return helps(strong) * fade_strong(d) + weight * bowl(weak) * fade_weak(d)

    return ground.on_top(effect)


def interacting(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """A high vision rank helps only if the LLM's rank is high; with a low one it may hurt a little."""
    start, width, hurt = rng.uniform(-0.5, 0.5), rng.uniform(0.1, 0.5), rng.uniform(0.0, 0.3)
    weight, helps, fade = rng.uniform(0.1, 0.8), _helps(rng), ground.fading(rng)

    def effect(x: Floats, y: Floats, d: Floats) -> Floats:
        gate = 1 / (1 + np.exp(-(y - start) / width))
        return fade(d) * ((hurt - gate) * (x + 1) / 2 + weight * helps(y))

    return ground.on_top(effect)


def rough(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """A smooth effect, and an offset of every pair that is true and stays: 0.3% of perplexity."""
    smooth = (additive, inner_vision, saturating)[rng.integers(3)](rng, ground, grid)
    xs, ys = (_places(ranks) for ranks in (grid.ranks_me, grid.ranks_llm))
    offsets = rng.normal(0.0, OFFSETS, (len(xs), len(ys)))

    def strengthened(t: float) -> Field:
        field = smooth(t)
        return lambda x, y, d: field(x, y, d) + offsets[_nearest(xs, x), _nearest(ys, y)] * ground.grown(d)

    return strengthened


def none(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """The ranks have no effect."""
    return lambda t: lambda x, y, d: ground.common(d) + 0.0 * (x + y)


def one_module(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """Only one module's rank has an effect: it helps, up to a knee or throughout."""
    helps, fade, vision = (_knee, _helps)[rng.integers(2)](rng), ground.fading(rng), rng.random() < 0.5
    return ground.on_top(lambda x, y, d: fade(d) * helps(x if vision else y) + 0.0 * (x + y))


def fast_but_worse(rng: np.random.Generator, ground: Ground, grid: Grid) -> Strengthened:
    """Higher ranks learn faster, as if they had more data, and end at a higher floor."""
    a, b = rng.dirichlet((1.0, 1.0))
    faster, tilt, growth = rng.uniform(0.2, 1.0), rng.uniform(0.1, 0.9), rng.uniform(0.3, 1.5)

    def effect(x: Floats, y: Floats, d: Floats) -> Floats:
        return np.exp(growth * (tilt * x + (1 - tilt) * y)) - 2 * np.exp(-ground.beta * d) * faster * (a * x + b * y)

    return ground.on_top(effect)


SHAPES: Mapping[str, Shape] = {
    "Eq. 1": eq1,
    "inner vision rank": inner_vision,
    "ratio": ratio,
    "additive": additive,
    "moving optimum": moving,
    "over-fitting": over_fitting,
    "saturating": saturating,
    "one dominates": dominated,
    "interaction": interacting,
    "rough": rough,
    "no effect": none,
    "one module": one_module,
    "fast but worse": fast_but_worse,
}


def _bowl(rng: np.random.Generator, best: float) -> Callable[[Floats], Floats]:
    left, right, power = rng.uniform(0.4, 1.6), rng.uniform(0.4, 1.6), rng.uniform(1.3, 2.5)
    return lambda z: np.where(z < best, left, right) * np.abs(z - best) ** power


def _helps(rng: np.random.Generator) -> Callable[[Floats], Floats]:
    """Falls from -1 to 1 by 1 in all, faster at the low ranks."""
    bend = rng.uniform(0.1, 2.0)
    return lambda z: np.asarray(np.exp(-bend * z) / (2 * np.sinh(bend)))


def _knee(rng: np.random.Generator) -> Callable[[Floats], Floats]:
    """Falls up to a knee inside the grid and is flat beyond; the corner is sharp or rounded."""
    knee, width = rng.uniform(-0.6, 0.9), rng.uniform(0.02, 0.3)
    return lambda z: np.asarray(width * np.logaddexp(0.0, (knee - z) / width) / (1 + knee))


def _places(ranks: tuple[int, ...]) -> Floats:
    logs = np.log(ranks)
    return np.asarray((2 * logs - logs[0] - logs[-1]) / (logs[-1] - logs[0]))


def _nearest(places: Floats, z: Floats) -> np.ndarray:
    return np.abs(np.asarray(z)[..., None] - places).argmin(axis=-1)
