"""Choose law P's form by error on held-out largest sizes and largest ranks, against trivial baselines.

Every form is fitted without the rows at the largest size, and again without the rows at the largest rank
of either module; its score is the mean absolute relative error over both. Where some form cannot be fitted
under one of these rules, no form is scored by it: errors under different rules do not compare. Eq. 1 of the
paper is the default: a form that bends replaces it only where it is better by more than `MARGIN_ERRORS` standard errors
of the paired difference over rank pairs, because a more flexible form wins half of all ties by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mars_core.fitting.holdout import Split, can_fit, fitted_predictor, largest_sizes, relative_errors
from mars_core.fitting.table import DEFAULT_GROUP, Table, read_table
from mars_core.laws import get_law
from mars_core.laws.law import Floats, Law
from mars_core.records import Record

DEFAULT_FORMS = ("performance", "performance_imbalance", "performance_overfit")
DEFAULT_BASELINES = ("performance_no_floor", "performance_no_rank", "log_linear")
MARGIN_ERRORS = 2.0


@dataclass(frozen=True)
class FormScore(Record):
    """Held-out errors of one form.

    Attributes:
        law: its name.
        trivial: whether it only serves as a baseline.
        errors: mean absolute relative error per rule ("largest size", "largest ranks"), for the rules under which
            every compared form could be fitted.
        score: their mean.
    """

    law: str
    trivial: bool
    errors: Mapping[str, float]
    score: float


@dataclass(frozen=True)
class FormChoice(Record):
    """Which form was chosen, what every form scored and why.

    Attributes:
        law: chosen form.
        scores: every form that could be fitted, best first.
        runner_up: the next best form or baseline, None where there is only one.
        lead: how much smaller the chosen form's score is than the runner-up's, relative; negative where a
            simpler form was kept although another scored better by less than chance explains.
        beats_trivial: whether the chosen form is better than every trivial baseline.
        skipped: forms that could not be fitted or compared, with the reason.
        reason: one sentence.
    """

    law: str
    scores: tuple[FormScore, ...]
    runner_up: str | None
    lead: float
    beats_trivial: bool
    skipped: Mapping[str, str]
    reason: str


def choose_form(
    points: Any,
    forms: Sequence[str] = DEFAULT_FORMS,
    *,
    baselines: Sequence[str] = DEFAULT_BASELINES,
    delta: float = 1e-3,
    seed: int = 0,
    group: str | None = DEFAULT_GROUP,
) -> FormChoice:
    """Compare law forms on held-out points and choose one.

    Args:
        points: table as for `fit_law`, with columns r_me, r_llm, D and loss.
        forms: names of forms to choose from; the first is the default that others must beat.
        baselines: names of trivial forms, compared but never chosen.
        delta: Huber threshold on log residuals.
        seed: of the starting points.
        group: see `fit_law`.

    Raises:
        ValueError: no form is named, the table is unusable, or no form can be fitted and tested on it.
    """
    if not forms:
        raise ValueError("choose_form needs at least one form, got none: name one of mars_core.laws.LAWS")
    default = get_law(forms[0])
    table = read_table(default, points, group)
    splits = _splits(default, table)
    errors = {name: _errors(get_law(name), table, splits, delta, seed) for name in (*forms, *baselines)}
    skipped = {name: "too few points outside the held-out rows" for name, found in errors.items() if not found}
    scored = {name: found for name, found in errors.items() if found}
    if not any(name in scored for name in forms):
        raise ValueError(
            f"none of {list(forms)} can be fitted without the largest size or ranks on {table.n_points} rows: "
            "add sizes or ranks, or fit the wanted form directly"
        )
    compared = _under_common_rules(scored)
    alone = {name: "no held-out rule in common with the other forms" for name in scored if name not in compared}
    return _decide(table, [name for name in forms if name in compared], compared, baselines, {**skipped, **alone})


def _under_common_rules(errors: Mapping[str, Mapping[str, Floats]]) -> dict[str, dict[str, Floats]]:
    """Errors under the rules that all forms share; a form that shares none with those before it is left out."""
    compared: list[str] = []
    common: list[str] = []
    for name, found in errors.items():
        shared = [rule for rule in common if rule in found] if compared else list(found)
        if shared:
            common = shared
            compared.append(name)
    return {name: {rule: errors[name][rule] for rule in common} for name in compared}


def _splits(law: Law, table: Table) -> dict[str, Split]:
    """Rows to hold out per rule."""
    ranks = [column for column in law.inputs if column != law.size_column]
    at_largest = np.any([table.inputs[column] == table.inputs[column].max() for column in ranks], axis=0)
    return {"largest size": largest_sizes(law, table), "largest ranks": Split("largest ranks", at_largest)}


def _errors(law: Law, table: Table, splits: Mapping[str, Split], delta: float, seed: int) -> dict[str, Floats]:
    """Relative error at every held-out row per rule, (n_points,), NaN elsewhere; empty where none can be had."""
    found: dict[str, Floats] = {}
    for rule, split in splits.items():
        train, test = table.subset(~split.test), table.subset(split.test)
        if split.test.all() or not can_fit(law, train):
            continue
        errors = np.full(table.n_points, np.nan)
        errors[split.test] = relative_errors(fitted_predictor(law, train, delta, seed)(test), test)
        found[rule] = errors
    return found


def _score(errors: Mapping[str, Floats]) -> float:
    return float(np.mean([np.nanmean(values) for values in errors.values()]))


def _decide(
    table: Table,
    forms: Sequence[str],
    errors: Mapping[str, Mapping[str, Floats]],
    baselines: Sequence[str],
    skipped: Mapping[str, str],
) -> FormChoice:
    chosen = forms[0]
    for name in sorted(forms[1:], key=lambda form: _score(errors[form])):
        gain, noise = _paired_gain(table, errors[chosen], errors[name])
        if gain > MARGIN_ERRORS * noise:
            chosen = name
            break
    scores = {name: _score(found) for name, found in errors.items()}
    others = [name for name in scores if name != chosen]
    runner_up = min(others, key=lambda name: scores[name]) if others else None
    lead = 0.0 if runner_up is None else 1.0 - scores[chosen] / max(scores[runner_up], 1e-300)
    beats = all(scores[chosen] < scores[name] for name in baselines if name in scores)
    ordered = sorted(scores, key=lambda name: scores[name])
    return FormChoice(
        law=chosen,
        scores=tuple(FormScore(name, name in baselines, _means(errors[name]), scores[name]) for name in ordered),
        runner_up=runner_up,
        lead=lead,
        beats_trivial=beats,
        skipped=dict(skipped),
        reason=_reason(chosen, runner_up, scores, list(errors[chosen]), beats),
    )


def _means(errors: Mapping[str, Floats]) -> dict[str, float]:
    return {rule: float(np.nanmean(values)) for rule, values in errors.items()}


def _paired_gain(table: Table, kept: Mapping[str, Floats], rival: Mapping[str, Floats]) -> tuple[float, float]:
    """How much smaller the rival's error is, mean over rank pairs, and the standard error of that mean."""
    gains = np.concatenate([kept[rule] - rival[rule] for rule in kept])
    held_out = ~np.isnan(gains)
    pairs, gains = np.tile(_pair_labels(table), len(kept))[held_out], gains[held_out]
    by_pair = [float(np.mean(gains[pairs == pair])) for pair in np.unique(pairs)]
    if len(by_pair) < 2:
        return 0.0, float("inf")
    return float(np.mean(by_pair)), float(np.std(by_pair, ddof=1) / np.sqrt(len(by_pair)))


def _pair_labels(table: Table) -> Floats:
    """A number per rank pair, (n_points,)."""
    ranks = np.stack([values for column, values in table.inputs.items() if column != "D"], axis=1)
    return np.asarray(np.unique(ranks, axis=0, return_inverse=True)[1].reshape(-1))


def _reason(
    chosen: str, runner_up: str | None, scores: Mapping[str, float], rules: Sequence[str], beats_trivial: bool
) -> str:
    if runner_up is None:
        return f"{chosen} is the only form that could be fitted"
    text = (
        f"{chosen} errs by {scores[chosen]:.3%} on the held-out {' and '.join(rules)}, "
        f"{runner_up} by {scores[runner_up]:.3%}"
    )
    if scores[runner_up] < scores[chosen] and beats_trivial:
        text += ": the difference is within chance, the simpler form stays"
    if not beats_trivial:
        text += ": no better than a trivial baseline in absolute error"
    return text
