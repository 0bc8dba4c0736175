"""Choose the rank pair: the search of MARS (2.3) with verdicts, margin and fallbacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from mars_core.fitting import LawFit
from mars_core.search.as_good import as_good_as_the_best
from mars_core.search.balance import BalancePoint, balance_curve
from mars_core.search.candidates import Pool, all_pairs, balanced_pairs
from mars_core.search.choice import Choice, Dropped, Pair
from mars_core.search.constraints import Constraint, CountParameters, allowed_pairs, counter, objection_of
from mars_core.search.diagnose import diagnostics_of
from mars_core.search.objective import PERPLEXITY_OBJECTIVE, Objective
from mars_core.search.observed import measured, require_observed
from mars_core.search.ranks import both_neighbours, nearest_or_clamped
from mars_core.search.soundness import cannot_rank, objection_to_law_c, objection_to_law_p, unvalidated
from mars_core.search.verdicts import (
    Decision,
    decide_by_balance,
    decide_by_law_p,
    decide_by_measurement,
    decide_by_observation,
    decide_by_paper,
    uninformative,
)

Rule = Literal["mars", "paper"]
NO_FITS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Search:
    """Everything a decision may look at.

    `allowed`: the available pairs that no constraint objects to. `excluded`: the others, each with the objection.
    """

    law_p: LawFit | None
    law_c_me: LawFit | None
    law_c_llm: LawFit | None
    missing: Mapping[str, str]
    ranks_me: tuple[int, ...]
    ranks_llm: tuple[int, ...]
    allowed: tuple[Pair, ...]
    excluded: tuple[Dropped, ...]
    constraints: tuple[Constraint, ...]
    count: CountParameters
    observed: pd.DataFrame
    reference: Pair
    D_target: float
    margin: float
    objective: Objective

    @property
    def objection_to_law_c(self) -> str | None:
        """Why the balance condition cannot be used."""
        return objection_to_law_c(self.law_c_me, "vision encoder", self.missing.get("law_c_me")) or objection_to_law_c(
            self.law_c_llm, "LLM", self.missing.get("law_c_llm")
        )

    @property
    def objection_to_law_p(self) -> str | None:
        """Why law P cannot rank pairs."""
        return objection_to_law_p(self.law_p, self.missing.get("law_p"))


def choose_pair(
    law_p: LawFit | None,
    law_c_me: LawFit | None,
    law_c_llm: LawFit | None,
    *,
    ranks_me: Sequence[int],
    ranks_llm: Sequence[int],
    D_target: float,
    trainable_parameters: Mapping[Pair, int] | CountParameters,
    observed: pd.DataFrame,
    reference: Pair,
    margin: float = 0.0025,
    rule: Rule = "mars",
    objective: Objective = PERPLEXITY_OBJECTIVE,
    constraints: Sequence[Constraint] = (),
    missing: Mapping[str, str] = NO_FITS,
    evidence: Mapping[str, Any] | None = None,
) -> Choice:
    """Choose (r_me, r_llm) for a target size.

    Args:
        law_p: fitted law P of any form (columns r_me, r_llm, D -> loss), None if it could not be fitted.
        law_c_me: fitted law C of the vision encoder, None if it could not be fitted.
        law_c_llm: fitted law C of the LLM, None if it could not be fitted.
        ranks_me: available vision ranks, positive.
        ranks_llm: available LLM ranks, positive.
        D_target: unique samples of the full fine-tune.
        trainable_parameters: per pair (r_me, r_llm), as a table or as a function of the pair.
        observed: measured values of what law P is of: columns r_me, r_llm, D, loss (nats per answer token), one row per
            run and size; optional: seed.
        reference: the default pair, where nothing else decides.
        margin: relative excess of the objective (perplexity) below which a cheaper pair is as good; 0.0025 is 0.25%.
        rule: `mars` (both neighbours, expected regret, margin) or `paper` (nearest or clamped rank, argmin).
        objective: what is minimised; law P and `observed` are of its quantity.
        constraints: what the pair must satisfy, such as that none of its calibration runs diverged.
        missing: why a fit is None, under `law_p`, `law_c_me`, `law_c_llm`.
        evidence: further findings (such as law C's separability) to be stored with the choice's diagnostics.

    Returns:
        The choice with its verdict and reason. A fallback is a result.

    Raises:
        ValueError: an argument cannot be used.
        NoPairLeft: the constraints leave no pair.
    """
    _require_settings(ranks_me, ranks_llm, D_target, margin, rule)
    require_observed(observed)
    count = counter(trainable_parameters)
    allowed = tuple(allowed_pairs(ranks_me, ranks_llm, constraints, count))
    search = Search(
        law_p, law_c_me, law_c_llm, missing, _ranks_of(allowed, 0), _ranks_of(allowed, 1), allowed,
        _excluded(ranks_me, ranks_llm, constraints, count), tuple(constraints), count, observed, reference,
        float(D_target), float(margin), objective,
    )  # fmt: skip
    curve = _curve(search)
    pool = _balanced(search, curve, rule)
    decision = _decide(search, curve, pool, rule)
    return _assemble(search, curve, pool, decision, rule, dict(evidence or {}))


def _ranks_of(pairs: Sequence[Pair], module: int) -> tuple[int, ...]:
    """The ranks that occur in allowed pairs: a rank that is never allowed is no neighbour of a balance rank."""
    return tuple(sorted({pair[module] for pair in pairs}))


def _excluded(
    ranks_me: Sequence[int], ranks_llm: Sequence[int], constraints: Sequence[Constraint], count: CountParameters
) -> tuple[Dropped, ...]:
    pairs = [(r_me, r_llm) for r_me in sorted(set(ranks_me)) for r_llm in sorted(set(ranks_llm))]
    objections = [(pair, objection_of(pair, constraints, count)) for pair in pairs]
    return tuple(Dropped(*pair, objection) for pair, objection in objections if objection is not None)


def _curve(search: Search) -> tuple[BalancePoint, ...]:
    if search.law_c_me is None or search.law_c_llm is None:
        return ()
    return balance_curve(search.law_c_me, search.law_c_llm, search.ranks_llm, search.D_target)


def _balanced(search: Search, curve: tuple[BalancePoint, ...], rule: Rule) -> Pool:
    to_ranks = nearest_or_clamped if rule == "paper" else both_neighbours
    return balanced_pairs(curve, search.ranks_me, to_ranks, search.constraints, search.count, measured(search.observed))


def _decide(search: Search, curve: tuple[BalancePoint, ...], pool: Pool, rule: Rule) -> Decision:
    """The order of DESIGN: balanced candidates, law P over all pairs, best observed pair, reference pair."""
    objective = search.objective
    cause = search.objection_to_law_c or _all_undefined(curve)
    no_law_p = search.objection_to_law_p
    if no_law_p is not None or search.law_p is None:
        both = str(no_law_p if cause is None else f"{cause}; {no_law_p}")
        return _without_laws(search, both)
    everything = all_pairs(search.allowed, measured(search.observed))
    if cause is not None:
        return decide_by_law_p(
            search.law_p, everything, search.D_target, search.count, search.margin, cause, objective=objective
        )
    if rule == "paper" and pool.pairs:
        return decide_by_paper(search.law_p, pool, search.D_target, search.count, objective)
    no_information = uninformative(curve, pool, search.ranks_me)
    if no_information is not None:
        return decide_by_law_p(
            search.law_p, everything, search.D_target, search.count, search.margin, None, no_information, objective
        )
    return decide_by_balance(search.law_p, pool, search.D_target, search.count, search.margin, objective)


def _without_laws(search: Search, cause: str) -> Decision:
    """What was measured: the best pair, or the cheapest that is as good where law P cannot tell the pairs apart."""
    found = None
    if cannot_rank(search.law_p):
        found = as_good_as_the_best(search.observed, search.allowed, search.margin, search.objective)
    if found is not None:
        return decide_by_measurement(found, search.count, search.margin, cause, search.objective)
    return decide_by_observation(
        search.observed, search.allowed, search.reference, search.count, cause, search.objective
    )


def _all_undefined(curve: tuple[BalancePoint, ...]) -> str | None:
    if any(point.problem is None for point in curve):
        return None
    return f"no LLM rank has a real, finite balance rank ({curve[0].problem})"


def _assemble(
    search: Search,
    curve: tuple[BalancePoint, ...],
    pool: Pool,
    decision: Decision,
    rule: Rule,
    evidence: dict[str, Any],
) -> Choice:
    return Choice(
        pair=decision.pair,
        verdict=decision.verdict,
        reason=decision.reason + _not_measured(decision) + _not_validated(search, decision),
        decided_by=decision.decided_by,
        fallback_cause=decision.fallback_cause,
        preferred_over=decision.preferred_over,
        rule=rule,
        D_target=search.D_target,
        margin=search.margin,
        objective=search.objective.name,
        candidates=decision.candidates,
        dropped=tuple(dict.fromkeys([*search.excluded, *pool.dropped])),
        balance_curve=curve,
        n_undefined=sum(point.problem is not None for point in curve),
        diagnostics=diagnostics_of(
            search.law_p, search.law_c_me, search.law_c_llm, curve, search.observed, search.D_target, evidence
        ),
    )


def _not_measured(decision: Decision) -> str:
    """A sentence where the laws alone speak for the pair."""
    taken = [candidate for candidate in decision.candidates if candidate.pair == decision.pair]
    if all(candidate.source.measured for candidate in taken) or decision.decided_by == "reference pair":
        return ""
    return " No calibration run has this pair."


def _not_validated(search: Search, decision: Decision) -> str:
    """A sentence on the laws behind a decision that no held-out points could test."""
    laws = {"law P": search.law_p}
    if decision.decided_by == "balanced candidates":
        laws |= {"law C of the vision encoder": search.law_c_me, "law C of the LLM": search.law_c_llm}
    elif decision.decided_by != "law P over all pairs":
        return ""
    untested = [name for name, fit in laws.items() if unvalidated(fit)]
    return f" Not validated on held-out points: {', '.join(untested)}." if untested else ""


def _require_settings(
    ranks_me: Sequence[int], ranks_llm: Sequence[int], D_target: float, margin: float, rule: str
) -> None:
    for name, ranks in (("ranks_me", ranks_me), ("ranks_llm", ranks_llm)):
        if not ranks or min(ranks) < 1:
            raise ValueError(f"{name} must be at least one positive rank, got {tuple(ranks)}: rank 0 has no power law.")
    if not D_target > 0:
        raise ValueError(f"D_target must be positive, got {D_target}: give the unique samples of the full fine-tune.")
    if not 0 <= margin < 1:
        raise ValueError(f"margin must lie in [0, 1), got {margin}: 0.0025 is 0.25% of perplexity.")
    if rule not in ("mars", "paper"):
        raise ValueError(f"unknown rule {rule!r}, expected 'mars' or 'paper'.")
