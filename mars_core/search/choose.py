"""Choose the rank pair: `choose_ranks` from a table of runs, `choose_from` where the laws are fitted already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from mars_core.convergence.times import LevelName
from mars_core.fitting import LawFit
from mars_core.ranks import Pair
from mars_core.rates import LearningRates, one_rate
from mars_core.search.advice import warnings_of
from mars_core.search.assemble import Scene, our_answer, paper_answer, paper_reason, regret_of, rivals_of
from mars_core.search.balance import BalancePoint, balance_curve
from mars_core.search.both_laws import LawSettings, laws_from, times_from_curves
from mars_core.search.choice import Choice, CostUnit, Dropped
from mars_core.search.constraints import (
    Constraint,
    CountParameters,
    Diverged,
    MeasuredOnly,
    NoPairLeft,
    ZeroMeasured,
    allowed_pairs,
    counter,
    objection_of,
)
from mars_core.search.decide import decide
from mars_core.search.diagnose import diagnostics_of
from mars_core.search.fitted_laws import FittedLaws
from mars_core.search.objective import PERPLEXITY_OBJECTIVE, Objective, objective_named
from mars_core.search.observed import measured, seeds_per_pair
from mars_core.search.outlook import Calibration, read_calibration
from mars_core.search.paper import PaperPick, algorithm_1, require_one_rate
from mars_core.search.points import Points, read_points
from mars_core.search.ranks import neighbours, positive
from mars_core.search.rates import rate_answer
from mars_core.search.settings import (
    available_ranks,
    reference_ranks,
    require_eps,
    require_margin,
    require_rate,
    require_target,
)
from mars_core.search.soundness import objection_to_law_c

Rule = Literal["mars", "paper"]


@dataclass(frozen=True)
class Question:
    """What to choose for.

    target_samples: unique samples that the final run is worth. trainable_parameters: of a pair. reference: the default
    pair, where law C's slices cross. ranks_me, ranks_llm: available ranks, None for those of the runs. margin:
    relative excess of the objective below which a cheaper pair is as good. rule: ours, or Algorithm 1 of the paper.
    constraints: what the pair must satisfy. objective: what is minimised. learning_rates: what would be trained with if
    the rate were not searched for; None where it is not known. cost_unit: what `trainable_parameters` counts.
    """

    target_samples: float
    trainable_parameters: CountParameters
    reference: Pair
    ranks_me: tuple[int, ...] | None = None
    ranks_llm: tuple[int, ...] | None = None
    margin: float = 0.0025
    rule: Rule = "mars"
    constraints: tuple[Constraint, ...] = ()
    objective: Objective = PERPLEXITY_OBJECTIVE
    learning_rates: LearningRates | None = None
    cost_unit: CostUnit = "parameters"


def choose_ranks(
    metrics: pd.DataFrame,
    *,
    target_samples: float,
    trainable_parameters: Mapping[Pair, int] | CountParameters,
    reference: Pair,
    rule: Rule = "mars",
    margin: float = 0.0025,
    ranks_me: Sequence[int] | None = None,
    ranks_llm: Sequence[int] | None = None,
    constraints: Sequence[Constraint] = (),
    objective: str = PERPLEXITY_OBJECTIVE.name,
    level: LevelName = "common",
    eps: float = 0.05,
    bootstrap: int = 200,
    learning_rate: float | None = None,
) -> Choice:
    """Choose (r_me, r_llm) from the checkpoint metrics of calibration runs.

    Args:
        metrics: columns r_me, r_llm, step, unique_samples, val_loss (nats per answer token); optional: seed, run_id, lr
            (learning rate at the step), and the peak learning rate of the run as peak_lr, or as peak_lr_me and
            peak_lr_llm where the modules have rates of their own. One row per run and step. Where runs differ in their
            peak rate, each pair is judged at its own best rate (`Choice.rates`). Runs with a module at rank 0 are
            compared by what was measured.
        target_samples: unique samples of the full fine-tune.
        trainable_parameters: per pair (r_me, r_llm), as a table or as a function of the pair.
        reference: the default pair of `rule="paper"`, and where the slices of law C cross.
        rule: `mars`, or `paper` for Algorithm 1 as printed.
        margin: relative excess perplexity that a cheaper pair may have; 0.0025 is 0.25%.
        ranks_me: available vision ranks, default those of the runs.
        ranks_llm: available LLM ranks, default those of the runs.
        constraints: what the pair must satisfy.
        objective: `perplexity`, or the name of the metric in column val_objective.
        level: loss at which a run counts as converged, for law C: `common` to all runs of a size, or each run's `own`.
        eps: share of a run's drop that level `own` leaves; the paper's own calibration is `own` with 0.
        bootstrap: draws of the laws' intervals.
        learning_rate: the rate that you would train with otherwise; the choice then says what it would cost.

    Returns:
        The choice with its verdict, reason and every pair's outlook.

    Raises:
        ValueError: a table or a setting cannot be used.
        NoPairLeft: the constraints leave no pair.
    """
    wanted = objective_named(objective)
    question = Question(
        target_samples, counter(trainable_parameters), reference_ranks(reference),
        None if ranks_me is None else available_ranks(ranks_me, "ranks_me"),
        None if ranks_llm is None else available_ranks(ranks_llm, "ranks_llm"),
        margin, rule, tuple(constraints), wanted,
        None if learning_rate is None else one_rate(require_rate(learning_rate)),
    )  # fmt: skip
    _require_settings(question)
    require_eps(eps)
    points = read_points(metrics, wanted)
    settings = LawSettings(question.reference, bootstrap=bootstrap, level=level, eps=eps)
    return choose_from(laws_of(points, settings, wanted), points, question)


def laws_of(points: Points, settings: LawSettings, objective: Objective = PERPLEXITY_OBJECTIVE) -> FittedLaws:
    """Both laws, the times to convergence read off the same points."""
    curves = points.table.rename(columns={"D": "unique_samples"})
    return laws_from(points, times_from_curves(curves, settings, None), settings, objective)


def choose_from(laws: FittedLaws, points: Points, question: Question) -> Choice:
    """Choose from points, with fitted laws.

    laws: law P and law C of both modules; they carry `rule="paper"`, the balance curve, and what is reported of them.
    """
    return choose_with(calibrate(points, question), laws, points, question)


def calibrate(points: Points, question: Question) -> Calibration:
    """The posterior of all pairs that may be chosen; it depends on neither target size nor margin nor rule."""
    _require_settings(question)
    offer = _offer(points, question)
    return read_calibration(points, offer.pairs(question), question.objective)


def choose_with(calibration: Calibration, laws: FittedLaws, points: Points, question: Question) -> Choice:
    """As `choose_from`, where the posterior is at hand: other target sizes and margins take no time."""
    table, count = points.table, question.trainable_parameters
    known = measured(points.runs)
    offer = _offer(points, question)
    allowed = offer.pairs(question)
    law_p, law_c_me, law_c_llm = laws.by_name.values()
    curve = _curve(law_c_me, law_c_llm, positive(offer.ranks_llm), question.target_samples)
    balanced = _balanced(curve, positive(offer.ranks_me), law_c_me, law_c_llm)
    outlook = calibration.at(question.target_samples, allowed)
    scene = Scene(outlook, points, known, count, question.objective, curve, balanced, question.cost_unit)
    costs = [count(pair) for pair in allowed]
    decision = decide(outlook, costs, question.margin, balanced, seeds_per_pair(table))
    ours = our_answer(scene, decision, question.margin)
    pick = _paper_pick(laws, curve, offer, question)
    printed = paper_reason(pick, law_p.law if law_p else "no law P", offer.objections(offer.demands, count))
    if question.rule == "paper":
        require_one_rate(points)
        chosen, other = paper_answer(scene, pick, printed), (ours.pair, ours.verdict, ours.reason)
    else:
        chosen, other = ours, (pick.pair, "paper", printed)
    regret, bound = regret_of(outlook, chosen.pair)
    rates = None
    if calibration.rates is not None:
        rates = rate_answer(calibration.rates, outlook, chosen.pair, question.reference, question.learning_rates)
    return Choice(
        **vars(chosen),
        rule=question.rule,
        D_target=float(question.target_samples),
        margin=question.margin,
        dropped=_dropped(offer, question),
        balance_curve=curve,
        n_undefined=sum(point.problem is not None for point in curve),
        diagnostics=diagnostics_of(law_p, law_c_me, law_c_llm, curve, table, question.target_samples, points.notes),
        objective=question.objective.name,
        regret=regret,
        regret_bound=bound,
        rivals=rivals_of(scene, chosen.pair),
        other_rule=dict(zip(("pair", "verdict", "reason"), other, strict=True)),
        warnings=(*warnings_of(calibration, outlook, chosen.pair, known), *(rates.notes if rates else ())),
        rates=rates,
        cost_unit=question.cost_unit,
    )


@dataclass(frozen=True)
class _Offer:
    """Available ranks and what speaks against pairs.

    demands: the user's constraints, and no pair that diverged: all that Algorithm 1 heeds, since Eq. 4 needs no run of
    a pair. ours: these, and only measured pairs unless ranks were named.
    """

    ranks_me: tuple[int, ...]
    ranks_llm: tuple[int, ...]
    demands: tuple[Constraint, ...]
    ours: tuple[Constraint, ...]

    def pairs(self, question: Question) -> list[Pair]:
        """Pairs that our rule may choose."""
        return allowed_pairs(self.ranks_me, self.ranks_llm, self.ours, question.trainable_parameters)

    def objections(self, constraints: Sequence[Constraint], count: CountParameters) -> dict[Pair, str]:
        """Pairs of available ranks that may not be chosen, and why."""
        pairs = [(r_me, r_llm) for r_me in self.ranks_me for r_llm in self.ranks_llm if r_me or r_llm]
        said = {pair: objection_of(pair, constraints, count) for pair in pairs}
        return {pair: objection for pair, objection in said.items() if objection is not None}


def _offer(points: Points, question: Question) -> _Offer:
    runs = points.runs
    demands = (*question.constraints, *([Diverged(points.diverged)] if points.diverged else []))
    named = question.ranks_me is not None or question.ranks_llm is not None
    known = measured(runs).pairs
    return _Offer(
        available_ranks(runs["r_me"] if question.ranks_me is None else question.ranks_me, "ranks_me"),
        available_ranks(runs["r_llm"] if question.ranks_llm is None else question.ranks_llm, "ranks_llm"),
        demands,
        (*demands, ZeroMeasured(known) if named else MeasuredOnly(known)),
    )


def _require_settings(question: Question) -> None:
    require_target(question.target_samples)
    require_margin(question.margin)
    reference_ranks(question.reference)
    if question.rule not in ("mars", "paper"):
        raise ValueError(f"unknown rule {question.rule!r}, expected 'mars' or 'paper'.")


def _paper_pick(laws: FittedLaws, curve: Sequence[BalancePoint], offer: _Offer, question: Question) -> PaperPick:
    law_p, *_ = laws.by_name.values()
    ranks_me, ranks_llm = positive(offer.ranks_me), positive(offer.ranks_llm)
    try:
        allowed = allowed_pairs(ranks_me, ranks_llm, offer.demands, question.trainable_parameters)
    except NoPairLeft as error:
        if question.rule == "paper":
            raise
        return PaperPick(question.reference, (), f"no pair of two adapted modules may be chosen ({error})")
    missing = "; ".join(laws.missing) or None
    return algorithm_1(law_p, curve, ranks_me, question.target_samples, question.reference, allowed, missing)


def _curve(
    law_c_me: LawFit | None, law_c_llm: LawFit | None, ranks_llm: Sequence[int], D: float
) -> tuple[BalancePoint, ...]:
    if law_c_me is None or law_c_llm is None:
        return ()
    return balance_curve(law_c_me, law_c_llm, ranks_llm, D)


def _balanced(
    curve: Sequence[BalancePoint], ranks_me: Sequence[int], law_c_me: LawFit | None, law_c_llm: LawFit | None
) -> frozenset[Pair]:
    """Pairs next to the balance curve; none where a law C cannot be trusted."""
    if objection_to_law_c(law_c_me, "vision encoder", None) or objection_to_law_c(law_c_llm, "LLM", None):
        return frozenset()
    return frozenset(
        (r_me, point.r_llm) for point in curve if point.r_me is not None for r_me in neighbours(point.r_me, ranks_me)
    )


def _dropped(offer: _Offer, question: Question) -> tuple[Dropped, ...]:
    constraints = offer.demands if question.rule == "paper" else offer.ours
    objections = offer.objections(constraints, question.trainable_parameters)
    return tuple(Dropped(*pair, objection) for pair, objection in objections.items())
