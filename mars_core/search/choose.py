"""Choose the rank pair: `choose_ranks` from a table of runs, `choose_from` where the laws are fitted already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from mars_core.fitting import LawFit
from mars_core.ranks import Pair
from mars_core.search.advice import warnings_of
from mars_core.search.assemble import Scene, our_answer, paper_answer, regret_of, rivals_of
from mars_core.search.balance import BalancePoint, balance_curve
from mars_core.search.both_laws import LawSettings, laws_from, times_from_curves
from mars_core.search.choice import Choice, Dropped
from mars_core.search.constraints import (
    Constraint,
    CountParameters,
    Diverged,
    MeasuredOnly,
    allowed_pairs,
    counter,
    objection_of,
)
from mars_core.search.decide import decide
from mars_core.search.diagnose import diagnostics_of
from mars_core.search.fitted_laws import FittedLaws
from mars_core.search.objective import PERPLEXITY_OBJECTIVE, Objective, objective_named
from mars_core.search.observed import Measured, measured
from mars_core.search.outlook import Calibration, read_calibration
from mars_core.search.paper import algorithm_1
from mars_core.search.points import Points, read_points
from mars_core.search.ranks import neighbours
from mars_core.search.soundness import objection_to_law_c

Rule = Literal["mars", "paper"]


@dataclass(frozen=True)
class Question:
    """What to choose for.

    target_samples: unique samples that the final run is worth. trainable_parameters: of a pair. reference: the default
    pair, where law C's slices cross. ranks_me, ranks_llm: available ranks, None for those of the runs. margin:
    relative excess of the objective below which a cheaper pair is as good. rule: ours, or Algorithm 1 of the paper.
    constraints: what the pair must satisfy. objective: what is minimised.
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
    bootstrap: int = 200,
) -> Choice:
    """Choose (r_me, r_llm) from the checkpoint metrics of calibration runs.

    Args:
        metrics: columns r_me, r_llm, step, unique_samples, val_loss (nats per answer token); optional: seed, run_id, lr
            (learning rate at the step). One row per run and step.
        target_samples: unique samples of the full fine-tune.
        trainable_parameters: per pair (r_me, r_llm), as a table or as a function of the pair.
        reference: the default pair of `rule="paper"`, and where the slices of law C cross.
        rule: `mars`, or `paper` for Algorithm 1 as printed.
        margin: relative excess perplexity that a cheaper pair may have; 0.0025 is 0.25%.
        ranks_me: available vision ranks, default those of the runs.
        ranks_llm: available LLM ranks, default those of the runs.
        constraints: what the pair must satisfy.
        objective: `perplexity`, or the name of the metric in column val_objective.
        bootstrap: draws of the laws' intervals.

    Returns:
        The choice with its verdict, reason and every pair's outlook.

    Raises:
        ValueError: a table or a setting cannot be used.
        NoPairLeft: the constraints leave no pair.
    """
    wanted = objective_named(objective)
    question = Question(
        target_samples, counter(trainable_parameters), reference,
        None if ranks_me is None else tuple(ranks_me), None if ranks_llm is None else tuple(ranks_llm),
        margin, rule, tuple(constraints), wanted,
    )  # fmt: skip
    points = read_points(metrics, wanted)
    return choose_from(laws_of(points, LawSettings(reference, bootstrap=bootstrap), wanted), points, question)


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
    *_, allowed = _pairs(points, question)
    return read_calibration(points.table, allowed, question.objective)


def choose_with(calibration: Calibration, laws: FittedLaws, points: Points, question: Question) -> Choice:
    """As `choose_from`, where the posterior is at hand: other target sizes and margins take no time."""
    table, count = points.table, question.trainable_parameters
    known = measured(table)
    ranks_me, ranks_llm, constraints, allowed = _pairs(points, question)
    law_p, law_c_me, law_c_llm = laws.by_name.values()
    curve = _curve(law_c_me, law_c_llm, ranks_llm, question.target_samples)
    balanced = _balanced(curve, ranks_me, law_c_me, law_c_llm)
    outlook = calibration.at(question.target_samples, allowed)
    scene = Scene(outlook, points, known, count, question.objective, curve, balanced)
    n_seeds = table["run_id"].nunique() / len(known.pairs)
    decision = decide(outlook, [count(pair) for pair in allowed], question.margin, balanced, n_seeds)
    ours = our_answer(scene, decision, question.margin)
    missing = "; ".join(laws.missing) or None
    pick = algorithm_1(law_p, curve, ranks_me, question.target_samples, question.reference, allowed, missing)
    printed = paper_answer(scene, pick, law_p.law if law_p else "no law P")
    chosen, other = (printed, ours) if question.rule == "paper" else (ours, printed)
    regret, bound = regret_of(outlook, chosen.pair)
    return Choice(
        **vars(chosen),
        rule=question.rule,
        D_target=float(question.target_samples),
        margin=question.margin,
        dropped=_dropped(ranks_me, ranks_llm, constraints, count),
        balance_curve=curve,
        n_undefined=sum(point.problem is not None for point in curve),
        diagnostics=diagnostics_of(law_p, law_c_me, law_c_llm, curve, table, question.target_samples, points.notes),
        objective=question.objective.name,
        regret=regret,
        regret_bound=bound,
        rivals=rivals_of(scene, chosen.pair),
        other_rule={"pair": other.pair, "verdict": other.verdict, "reason": other.reason},
        warnings=warnings_of(calibration, outlook, chosen.pair, known),
    )


def _pairs(
    points: Points, question: Question
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Constraint, ...], list[Pair]]:
    """Available ranks of both modules, what speaks against pairs, and the pairs that may be chosen."""
    ranks_me = _available(question.ranks_me, points.table["r_me"], "ranks_me")
    ranks_llm = _available(question.ranks_llm, points.table["r_llm"], "ranks_llm")
    constraints = _constraints(question, points, measured(points.table))
    return (
        ranks_me,
        ranks_llm,
        constraints,
        allowed_pairs(ranks_me, ranks_llm, constraints, question.trainable_parameters),
    )


def _constraints(question: Question, points: Points, known: Measured) -> tuple[Constraint, ...]:
    """The user's, and what the runs demand: no pair that diverged, and only measured ones unless ranks were named."""
    own: list[Constraint] = [*question.constraints]
    if points.diverged:
        own.append(Diverged(points.diverged))
    if question.ranks_me is None and question.ranks_llm is None:
        own.append(MeasuredOnly(known.pairs))
    return tuple(own)


def _available(asked: Sequence[int] | None, measured: pd.Series, name: str) -> tuple[int, ...]:
    ranks = tuple(sorted({int(rank) for rank in (measured if asked is None else asked)}))
    if not ranks or min(ranks) < 1:
        raise ValueError(f"{name} must be at least one positive rank, got {ranks}: rank 0 has no power law.")
    return ranks


def _require_settings(question: Question) -> None:
    if not question.target_samples > 0:
        raise ValueError(
            f"target_samples must be positive, got {question.target_samples}: give the unique samples of the final run."
        )
    if not 0 <= question.margin < 1:
        raise ValueError(f"margin must lie in [0, 1), got {question.margin}: 0.0025 is 0.25% of perplexity.")
    if question.rule not in ("mars", "paper"):
        raise ValueError(f"unknown rule {question.rule!r}, expected 'mars' or 'paper'.")


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


def _dropped(
    ranks_me: Sequence[int], ranks_llm: Sequence[int], constraints: Sequence[Constraint], count: CountParameters
) -> tuple[Dropped, ...]:
    pairs = [(r_me, r_llm) for r_me in ranks_me for r_llm in ranks_llm]
    objections = [(pair, objection_of(pair, constraints, count)) for pair in pairs]
    return tuple(Dropped(*pair, objection) for pair, objection in objections if objection is not None)
