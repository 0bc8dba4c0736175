"""Score what a rule chose against the truth, and sum up many scores.

All excesses and regrets are relative excess perplexity: exp(difference of losses) - 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from planted.ground import Pair
from planted.rules import RULES, Rule, best_observed
from planted.study import Study

Score = dict[str, Any]

DIVERGED = 1.0  # regret of a pair whose runs diverged
MUCH = 0.01  # a regret that a user would mind
AS_CHEAP = 1.1  # times the parameters of the cheapest pair
SAME = 1e-12


def score_study(study: Study, rule: Rule) -> list[Score]:
    """The rule's score for each of the study's targets."""
    return [score_choice(study, target, rule) for target in study.targets]


def score_choice(study: Study, target: int, rule: Rule) -> Score:
    """Choose for one target and compare with the truth."""
    began = time.perf_counter()
    choice = rule.choose(study, target, rule.margin)
    seconds = time.perf_counter() - began
    pair: Pair = tuple(choice) if isinstance(choice, tuple) else choice.pair
    cheapest, usual = min(map(study.count, study.pairs)), study.count(best_observed(study, target, 0.0))
    score = {
        "target": target,
        "pair": [int(rank) for rank in pair],
        "regret": regret(study, pair, target),
        "parameters": study.count(pair) / usual,
        "cheap": study.count(pair) <= AS_CHEAP * cheapest,
        "seconds": seconds,
    }
    return score | (_statements(study, target, choice, rule.margin) if rule.states else {})


def regret(study: Study, pair: Pair, target: int) -> float:
    """True excess over the best pair that has runs."""
    if pair not in study.pairs:
        return DIVERGED
    return float(np.expm1(study.truth(pair, target) - study.surface.losses(study.pairs, target).min()))


def _statements(study: Study, target: int, choice: Any, margin: float) -> Score:
    """Whether what the choice says of itself is true; what it does not say is left out."""
    over = getattr(choice, "preferred_over", None)
    candidates = [one for one in getattr(choice, "candidates", ()) if one.pair in study.pairs]
    own = [one for one in candidates if one.pair == choice.pair]
    score: Score = {
        "verdict": getattr(choice, "verdict", "none"),
        "margin": margin,
        "cheaper_over": None if over is None else _excess(study, choice.pair, over, target),
        "expected_regret": getattr(own[0], "expected_regret", None) if own else None,
    }
    score |= _covered("loss", candidates, "loss_interval", lambda pair: study.truth(pair, target))
    others = [one for one in candidates if one.pair != choice.pair]
    return score | _covered("excess", others, "excess_interval", lambda pair: _excess(study, pair, choice.pair, target))


def _covered(name: str, candidates: Sequence[Any], field: str, true: Callable[[Pair], float]) -> Score:
    """How many of the stated intervals hold the true value, of how many, and their mean width."""
    stated = [(one.pair, getattr(one, field, None)) for one in candidates]
    known = [(true(pair), interval) for pair, interval in stated if interval is not None]
    if not known:
        return {}
    inside = sum(low - SAME <= value <= high + SAME for value, (low, high) in known)
    width = float(np.mean([high - low for _, (low, high) in known]))
    return {f"{name}_covered": inside, f"{name}_stated": len(known), f"{name}_width": width}


def _excess(study: Study, pair: Pair, other: Pair, target: int) -> float:
    return float(np.expm1(study.truth(pair, target) - study.truth(other, target)))


def summarise(scores: Sequence[Score], states: bool) -> dict[str, Any]:
    """Figures for all scores and by half, by target, by both, and by shape."""
    splits: Mapping[str, Callable[[Score], str]] = {
        "all": lambda score: "all",
        "half": _half,
        "target": lambda score: str(score["target"]),
        "half and target": lambda score: f"{_half(score)}, {score['target']}",
        "shape": lambda score: score["shape"],
    }
    return {name: _by(scores, key, states) for name, key in splits.items()}


def _half(score: Score) -> str:
    return "with schedule" if score["scheduled"] else "without schedule"


def _by(scores: Sequence[Score], key: Callable[[Score], str], states: bool) -> dict[str, Any]:
    groups: dict[str, list[Score]] = {}
    for score in scores:
        groups.setdefault(key(score), []).append(score)
    return {name: _figures(group) | (_stated(group) if states else {}) for name, group in groups.items()}


def _figures(scores: Sequence[Score]) -> dict[str, Any]:
    regrets = np.array([score["regret"] for score in scores])
    no_effect = [score["cheap"] for score in scores if score["shape"] == "no effect"]
    return {
        "choices": len(scores),
        "mean_regret": _rounded(regrets.mean()),
        "median_regret": _rounded(np.median(regrets)),
        "share_over_1_percent": _rounded((regrets > MUCH).mean()),
        "mean_parameters": _mean(score["parameters"] for score in scores),
        "no_effect_cheap": _mean(no_effect),
        "seconds": _mean(score["seconds"] for score in scores),
    }


def _stated(scores: Sequence[Score]) -> dict[str, Any]:
    """Promises kept, coverage and calibration; None where nothing was stated."""
    cheaper = [score for score in scores if score["cheaper_over"] is not None]
    return {
        "cheaper_taken": _rounded(len(cheaper) / len(scores)),
        "cheaper_within_margin_of_best": _mean(score["regret"] <= score["margin"] + SAME for score in cheaper),
        "cheaper_within_margin_of_other": _mean(score["cheaper_over"] <= score["margin"] + SAME for score in cheaper),
        "expected_regret": _mean(score["expected_regret"] for score in scores),
        "excess_coverage": _coverage(scores, "excess"),
        "excess_width": _mean(score.get("excess_width") for score in scores),
        "loss_coverage": _coverage(scores, "loss"),
        "loss_width": _mean(score.get("loss_width") for score in scores),
        "verdicts": {name: _verdict(scores, name) for name in sorted({score["verdict"] for score in scores})},
    }


def _verdict(scores: Sequence[Score], name: str) -> dict[str, Any]:
    own = [score for score in scores if score["verdict"] == name]
    return {
        "share": _rounded(len(own) / len(scores)),
        "mean_regret": _mean(score["regret"] for score in own),
        "share_over_1_percent": _mean(score["regret"] > MUCH for score in own),
        "right": _mean(score["regret"] <= score["margin"] + SAME for score in own),
    }


def _coverage(scores: Sequence[Score], name: str) -> float | None:
    """Share of all stated intervals that hold the truth."""
    stated = sum(score.get(f"{name}_stated", 0) for score in scores)
    return _rounded(sum(score.get(f"{name}_covered", 0) for score in scores) / stated) if stated else None


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return _rounded(np.mean(known)) if known else None


def _rounded(value: Any) -> float:
    return round(float(value), 6)


def known_rules(only: str | None) -> dict[str, Rule]:
    """The rules of these names, separated by commas; all of them where none are given."""
    names = list(RULES) if only is None else [name.strip() for name in only.split(",")]
    unknown = [name for name in names if name not in RULES]
    if unknown:
        raise ValueError(f"unknown rule(s) {', '.join(unknown)}: expected some of {', '.join(RULES)}")
    return {name: RULES[name] for name in names}
