"""From a decision to the record that people read: reason, candidates, rivals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mars_core.ranks import Pair
from mars_core.search.balance import BalancePoint
from mars_core.search.choice import Candidate, CostUnit, Interval, Rival, Source
from mars_core.search.constraints import CountParameters
from mars_core.search.decide import Decision
from mars_core.search.objective import Objective
from mars_core.search.observed import Measured, best_observed, uniform_pair
from mars_core.search.outlook import INTERVAL, Outlook
from mars_core.search.paper import PaperPick
from mars_core.search.points import Points

BOUND = 95.0  # percent


@dataclass(frozen=True)
class Answer:
    """What one of the rules takes, as fields of `Choice`."""

    pair: Pair
    verdict: str
    reason: str
    decided_by: str
    candidates: tuple[Candidate, ...]
    fallback_cause: str | None = None
    preferred_over: Pair | None = None
    seeds_needed: int | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    """What every sentence and every row is about."""

    outlook: Outlook
    points: Points
    measured: Measured
    count: CountParameters
    objective: Objective
    curve: Sequence[BalancePoint]
    balanced: Collection[Pair]
    cost_unit: CostUnit = "parameters"


def our_answer(scene: Scene, decision: Decision, margin: float) -> Answer:
    """The posterior's decision with every pair's outlook."""
    preferred = None if decision.pair == decision.best else decision.best
    return Answer(
        decision.pair,
        decision.verdict,
        _reason(scene, decision, margin),
        "posterior",
        tuple(_candidate(scene, pair, decision.pair, _source(scene, pair)) for pair in scene.outlook.pairs),
        preferred_over=preferred,
        seeds_needed=decision.seeds_needed,
    )


def paper_reason(pick: PaperPick, form: str, objections: Mapping[Pair, str]) -> str:
    """Why Algorithm 1 takes its pair, and which pairs on the balance curve were no candidates.

    objections: what speaks against pairs that may not be trained.
    """
    if pick.cause is not None:
        how = f"the default pair, since {pick.cause}"
    elif len(pick.candidates) == 1:
        how = "the only pair on the balance curve that may be chosen"
    else:
        how = f"the smallest loss that Eq. 1 predicts for {len(pick.candidates)} pairs on the balance curve"
    left_out = "; ".join(f"{pair} has {objections[pair]}" for pair in pick.dropped)
    dropped = f" Dropped from the balance curve: {left_out}." if left_out else ""
    return f"{_show(pick.pair)} is {how} ({form}, Algorithm 1 of the paper).{dropped}"


def paper_answer(scene: Scene, pick: PaperPick, reason: str) -> Answer:
    """Algorithm 1's pick; losses are law P's."""
    candidates = {
        pair: Candidate(
            pair, loss, None, None if loss is None else scene.objective.perplexity(loss), None, scene.count(pair),
            Source(
                name, *_of_point(point),
                extrapolated=scene.measured.is_extrapolated(pair), measured=pair in scene.measured.pairs, balanced=True,
            ),
        )
        for pair, name, point, loss in pick.candidates
    }  # fmt: skip
    return Answer(
        pick.pair,
        "paper",
        reason,
        "Algorithm 1" if pick.cause is None else "default pair",
        tuple(candidates.values()),
        fallback_cause=pick.cause,
    )


def regret_of(outlook: Outlook, pair: Pair) -> tuple[float | None, float | None]:
    """Expected regret of a pair over all pairs, and its 95% upper bound; None for a pair that may not be chosen."""
    if pair not in outlook.pairs:
        return None, None
    own = outlook.regret[:, outlook.pairs.index(pair)]
    mean = float(own.mean())
    return mean, max(mean, float(np.percentile(own, BOUND)))  # a rare large regret may lie beyond the percentile


def rivals_of(scene: Scene, chosen: Pair) -> tuple[Rival, ...]:
    """What a user would take without MARS: the pair measured best, the largest, the uniform one."""
    pairs = scene.outlook.pairs
    found = {
        "best observed": best_observed(scene.points.runs, pairs),
        "largest": max(pairs, key=scene.count),
        "uniform": uniform_pair(pairs),
    }
    return tuple(_rival(scene, name, pair, chosen) for name, pair in found.items() if pair is not None)


def _rival(scene: Scene, name: str, pair: Pair, chosen: Pair) -> Rival:
    excess, interval = _excess(scene.outlook, pair, chosen)
    return Rival(name, pair, scene.count(pair), excess, interval)


def _candidate(scene: Scene, pair: Pair, chosen: Pair, source: Source) -> Candidate:
    outlook, at = scene.outlook, scene.outlook.pairs.index(pair)
    loss = float(np.median(outlook.quantity[:, at]))
    excess, interval = _excess(outlook, pair, chosen)
    return Candidate(
        pair=pair,
        loss=loss,
        loss_interval=_interval(outlook.quantity[:, at]),
        perplexity=scene.objective.perplexity(loss),
        expected_regret=float(outlook.expected_regret[at]),
        trainable_parameters=scene.count(pair),
        source=source,
        excess=excess,
        excess_interval=interval,
        probability_best=float((outlook.regret[:, at] == 0.0).mean()),
    )


def _excess(outlook: Outlook, pair: Pair, chosen: Pair) -> tuple[float | None, Interval | None]:
    if pair not in outlook.pairs or chosen not in outlook.pairs:
        return None, None
    draws = outlook.excess_over(chosen)[:, outlook.pairs.index(pair)]
    return float(draws.mean()), _interval(draws)


def _interval(draws: np.ndarray) -> Interval:
    low, high = np.percentile(draws, INTERVAL)
    return float(low), float(high)


def _source(scene: Scene, pair: Pair) -> Source:
    point = next((point for point in scene.curve if point.r_llm == pair[1]), None)
    return Source(
        "all pairs",
        *_of_point(point),
        extrapolated=scene.measured.is_extrapolated(pair),
        measured=pair in scene.measured.pairs,
        balanced=pair in scene.balanced,
    )


def _of_point(point: BalancePoint | None) -> tuple[float | None, Interval | None, float | None]:
    return (None, None, None) if point is None else (point.r_me, point.interval, point.share_undefined)


def _reason(scene: Scene, decision: Decision, margin: float) -> str:
    pair, best = _show(decision.pair), decision.best
    if len(scene.outlook.pairs) == 1:
        return f"{pair} is the only pair that may be chosen."
    stated = _stated(scene, decision.pair)
    if decision.verdict == "as good and cheaper":
        saving = 1.0 - scene.count(decision.pair) / scene.count(decision.best)
        less = "trains {:.0%} fewer parameters" if scene.cost_unit == "parameters" else "has {:.0%} less rank in all"
        return (
            f"{pair} {less.format(saving)} than {best}, the best by prediction, and its "
            f"{scene.objective.name} is within {margin:.2%} of it with {decision.sure:.0%} probability; {stated}."
        )
    doubt = "" if decision.verdict == "best" else f"These runs cannot tell the best pairs apart ({_tell(decision)}). "
    if decision.pair != decision.best:
        return (
            f"{doubt}{pair} is cheaper than {best}, the best guess, and is expected within half the margin "
            f"of it; nothing is promised: {stated}."
        )
    return f"{doubt}{pair} is {'the best guess' if doubt else 'predicted best'}: {stated}."


def _stated(scene: Scene, pair: Pair) -> str:
    regret, bound = regret_of(scene.outlook, pair)
    over = f"its expected regret over all {len(scene.outlook.pairs)} pairs"
    return f"{over} is {regret:.2%} of {scene.objective.name}, at most {bound:.2%} (95%)"


def _tell(decision: Decision) -> str:
    if decision.seeds_needed is None:
        return "even a dozen seeds per pair would not"
    return f"calibrating each pair with about {decision.seeds_needed} seeds would"


def _show(pair: Pair) -> str:
    return f"(r_me, r_llm) = ({pair[0]}, {pair[1]})"
