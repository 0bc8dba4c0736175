"""The verdicts: how each stage of the search decides, and the sentence that says why."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mars_core.fitting import LawFit
from mars_core.search.as_good import AsGood
from mars_core.search.balance import BalancePoint
from mars_core.search.candidates import Pool
from mars_core.search.choice import Candidate, DecidedBy, Pair, Source, Verdict
from mars_core.search.constraints import CountParameters
from mars_core.search.objective import PERPLEXITY_OBJECTIVE, Objective
from mars_core.search.observed import best_observed
from mars_core.search.score import Scores, candidates_of, cheaper_within_margin, score

SPANNING_SHARE = 0.5  # of the balance points: at this share of points that exclude no rank, the curve says nothing


@dataclass(frozen=True)
class Decision:
    """What a stage decided; the fields are those of `Choice`."""

    pair: Pair
    verdict: Verdict
    reason: str
    decided_by: DecidedBy
    candidates: tuple[Candidate, ...]
    fallback_cause: str | None = None
    preferred_over: Pair | None = None


def uninformative(curve: Sequence[BalancePoint], pool: Pool, ranks_me: Sequence[int]) -> str | None:
    """Why the balance curve does not narrow the search; None if it does.

    It does not if it leaves fewer than two distinct candidates (the two neighbours of one balance rank are one: with
    slices the curve passes through the reference pair by construction, so that point alone is no finding), or if at
    half or more of its points the 95% interval of the balance rank contains every available vision rank (or most
    draws have no balance rank).
    """
    balanced = {r_llm for _, r_llm in pool.pairs}
    if len(pool.pairs) < 2 or len(balanced) < min(2, len(curve)):
        return f"the balance curve leaves {len(balanced)} of {len(curve)} LLM ranks with an available vision rank"
    defined = [point for point in curve if point.r_me is not None]
    spanning = [point for point in defined if _spans(point, min(ranks_me), max(ranks_me))]
    if len(spanning) >= SPANNING_SHARE * len(defined):
        return (
            f"the 95% interval of the balance rank covers all vision ranks from {min(ranks_me)} to {max(ranks_me)} "
            f"at {len(spanning)} of {len(defined)} LLM ranks"
        )
    return None


def _spans(point: BalancePoint, smallest: int, largest: int) -> bool:
    if point.share_undefined > 0.5:
        return True
    if point.interval is None or smallest == largest:
        return False
    return point.interval[0] <= smallest and point.interval[1] >= largest


def decide_by_balance(
    law_p: LawFit,
    pool: Pool,
    D: float,
    count: CountParameters,
    margin: float,
    objective: Objective = PERPLEXITY_OBJECTIVE,
) -> Decision:
    """Smallest expected regret among the balanced candidates, or a cheaper one that is as good."""
    picked = _pick(law_p, pool, D, count, margin, objective)
    taken = picked.taken
    if picked.preferred_over is None:
        return Decision(
            taken.pair, "chosen", _chosen_reason(taken, pool, objective), "balanced candidates", picked.candidates
        )
    return Decision(
        taken.pair,
        "indistinguishable",
        f"{_show(taken.pair)} trains {_saving(picked)} fewer parameters than {_show(picked.preferred_over)}, and its "
        f"{objective.name} is predicted to be at most {_upper(taken):.2%} higher, within the margin of {margin:.2%}.",
        "balanced candidates",
        picked.candidates,
        preferred_over=picked.preferred_over,
    )


def decide_by_paper(
    law_p: LawFit, pool: Pool, D: float, count: CountParameters, objective: Objective = PERPLEXITY_OBJECTIVE
) -> Decision:
    """The paper's rule: the smallest predicted loss among the candidates (Eq. 4)."""
    scores = score(law_p, pool.pairs, D, objective)
    candidates = candidates_of(scores, pool.pairs, pool.sources, count, objective)
    taken = candidates[int(np.argmin(scores.loss))]
    reason = (
        f"{_show(taken.pair)} has the smallest predicted {objective.quantity} ({taken.loss:.4g}) of {len(candidates)} "
        "candidates on the balance curve, by the paper's rule."
    )
    return Decision(taken.pair, "chosen", reason, "balanced candidates", candidates)


def decide_by_law_p(
    law_p: LawFit,
    pool: Pool,
    D: float,
    count: CountParameters,
    margin: float,
    cause: str | None,
    no_information: str | None = None,
    objective: Objective = PERPLEXITY_OBJECTIVE,
) -> Decision:
    """Law P over all pairs: verdict `fallback` with its cause, or `balance uninformative`."""
    picked = _pick(law_p, pool, D, count, margin, objective)
    verdict: Verdict = "balance uninformative" if cause is None else "fallback"
    why = f"{cause or no_information}, so law P decided over all {len(pool.pairs)} pairs"
    return Decision(
        picked.taken.pair,
        verdict,
        f"{_capital(why)}: {_how_picked(picked, margin, objective)}.",
        "law P over all pairs",
        picked.candidates,
        fallback_cause=cause,
        preferred_over=picked.preferred_over,
    )


def decide_by_observation(
    observed: pd.DataFrame,
    allowed: Collection[Pair],
    reference: Pair,
    count: CountParameters,
    cause: str,
    objective: Objective = PERPLEXITY_OBJECTIVE,
) -> Decision:
    """No law may decide: the best observed pair at the largest size, else the reference pair."""
    best = best_observed(observed, allowed)
    if best is not None:
        pair, loss = best
        reason = (
            f"{_capital(cause)}, so {_show(pair)} was taken: it has the lowest measured {objective.quantity} "
            f"({loss:.4g}) at the largest size."
        )
        candidate = _unscored(pair, loss, "best observed", count, objective)
        return Decision(pair, "fallback", reason, "best observed pair", (candidate,), fallback_cause=cause)
    pair = closest(reference, allowed)
    what = "the reference pair" if pair == reference else f"the allowed pair closest to the reference {reference}"
    reason = f"{_capital(cause)}, and no allowed pair was measured, so {what}, {_show(pair)}, was taken."
    candidate = _unscored(pair, None, "reference", count, objective)
    return Decision(pair, "fallback", reason, "reference pair", (candidate,), fallback_cause=cause)


def decide_by_measurement(
    found: AsGood, count: CountParameters, margin: float, cause: str, objective: Objective = PERPLEXITY_OBJECTIVE
) -> Decision:
    """Law P cannot tell the pairs apart: the cheapest measured pair that is as good as the best.

    The best of many equal measurements is the luckiest one, and picking it would buy rank for luck.
    """
    taken = min(found.pairs, key=lambda pair: (count(pair), found.losses[pair]))
    n, scatter = len(found.losses), f"a run scatters by {found.noise:.2%} of {objective.name}, p = {found.p_value:.2g}"
    if found.differ:
        what = ""
        why = (
            f"At the largest size the {n} measured pairs do differ ({scatter}), only not as law P says: "
            f"{len(found.pairs)} of them lie within the margin of {margin:.2%} of the best, {_show(found.best)}"
        )
    else:
        what = "rank has no measurable effect here: "
        why = f"At the largest size the {n} measured pairs differ no more than chance would make them ({scatter})"
    reason = f"{_capital(what + cause)}. {why}, so the cheapest of them, {_show(taken)}, was taken."
    candidates = tuple(
        _unscored(pair, loss, "best observed" if pair == found.best else "observed", count, objective)
        for pair, loss in found.losses.items()
    )
    return Decision(
        taken,
        "fallback",
        reason,
        "best observed pair",
        candidates,
        fallback_cause=what + cause,
        preferred_over=None if taken == found.best else found.best,
    )


def closest(reference: Pair, allowed: Collection[Pair]) -> Pair:
    """The allowed pair closest to the reference in log ranks (the smaller one on a tie)."""

    def distance(pair: Pair) -> tuple[float, Pair]:
        return float(np.sum(np.abs(np.log(pair) - np.log(reference)))), pair

    return min(allowed, key=distance)


@dataclass(frozen=True)
class _Picked:
    candidates: tuple[Candidate, ...]
    taken: Candidate
    best: Candidate

    @property
    def preferred_over(self) -> Pair | None:
        return None if self.taken.pair == self.best.pair else self.best.pair


def _pick(law_p: LawFit, pool: Pool, D: float, count: CountParameters, margin: float, objective: Objective) -> _Picked:
    scores: Scores = score(law_p, pool.pairs, D, objective)
    candidates = candidates_of(scores, pool.pairs, pool.sources, count, objective)
    taken = cheaper_within_margin(scores, [c.trainable_parameters for c in candidates], margin)
    return _Picked(candidates, candidates[taken], candidates[scores.best])


def _unscored(pair: Pair, loss: float | None, how: str, count: CountParameters, objective: Objective) -> Candidate:
    perplexity = None if loss is None else objective.perplexity(loss)
    source = Source(how, measured=how != "reference")
    return Candidate(pair, loss, None, perplexity, None, None, count(pair), source)


def _chosen_reason(taken: Candidate, pool: Pool, objective: Objective) -> str:
    rank = taken.source.balance_rank
    balance = (
        ""
        if rank is None
        else f"; at r_llm = {taken.pair[1]} both modules are predicted to converge together at r_me = {rank:.3g}"
    )
    return (
        f"{_show(taken.pair)} has the smallest expected regret ({taken.expected_regret:.2%} of {objective.name}) of "
        f"{len(pool.pairs)} candidates whose modules converge together{balance}."
    )


def _how_picked(picked: _Picked, margin: float, objective: Objective) -> str:
    taken = picked.taken
    if picked.preferred_over is None:
        return f"{_show(taken.pair)} has the smallest expected regret ({taken.expected_regret:.2%} of {objective.name})"
    return (
        f"{_show(taken.pair)} was taken because it trains {_saving(picked)} fewer parameters than "
        f"{_show(picked.preferred_over)} at an excess {objective.name} of at most {_upper(taken):.2%} "
        f"(margin {margin:.2%})"
    )


def _saving(picked: _Picked) -> str:
    return f"{1 - picked.taken.trainable_parameters / picked.best.trainable_parameters:.0%}"


def _upper(candidate: Candidate) -> float:
    return max(0.0, candidate.excess_upper_bound or 0.0)


def _show(pair: Pair) -> str:
    return f"(r_me, r_llm) = ({pair[0]}, {pair[1]})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
