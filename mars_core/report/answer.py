"""The answer first: chosen pair, verdict, reason, test scores in words, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mars_core.metrics.schema import PERPLEXITY
from mars_core.ranks import Pair
from mars_core.report import formatting as f
from mars_core.report.data import ReportData
from mars_core.report.decision import decision_sentences, verdict_words
from mars_core.report.spread import seed_deviation
from mars_core.report.study_results import StudyResults
from mars_core.search import Candidate

SEARCH_STAGES = ("calib", "fit", "search")
FINAL_STAGES = ("final", "finetune", "fine-tune")


@dataclass(frozen=True)
class Fact:
    """One figure of the summary with its name and a line on it."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Answer:
    """What the head of the report says."""

    pair: Pair | None
    tone: str
    badge: str
    verdict_meaning: str
    decision: tuple[str, ...]
    fallback_cause: str | None
    decided_by: str
    outcome: tuple[str, ...]
    facts: tuple[Fact, ...]

    @property
    def cause_is_in_reason(self) -> bool:
        """Whether the reason already says why this is a fallback."""
        return (self.fallback_cause or "").lower() in " ".join(self.decision).lower()


def answer_of(data: ReportData, results: StudyResults) -> Answer:
    """The summary; says plainly which stages are still to come."""
    choice = results.choice
    if choice is None:
        reason = "No pair has been chosen yet. Here is what was measured so far."
        return Answer(None, "doubt", "no choice yet", "", (reason,), None, "", (), _facts(data, results))
    tone, badge, meaning = verdict_words(choice)
    return Answer(
        choice.pair, tone, badge, meaning, decision_sentences(choice), choice.fallback_cause, choice.decided_by,
        tuple(_outcome(data, results)), _facts(data, results),
    )  # fmt: skip


def overall(evaluation: Mapping[str, Any] | None, role: str) -> Mapping[str, Any] | None:
    """Overall test score of `base`, `chosen` or `uniform`; None where it was not evaluated."""
    entry = (evaluation or {}).get(role)
    score: Mapping[str, Any] | None = entry.get("overall") if entry else None
    return score


def final_of(data: ReportData, role: str) -> Mapping[str, Any] | None:
    """The final run with this role, None where there is none."""
    return next((final for final in data.finals if final.get("role") == role), None)


def _outcome(data: ReportData, results: StudyResults) -> list[str]:
    base, chosen, uniform = (overall(data.evaluation, role) for role in ("base", "chosen", "uniform"))
    sentences = _missed(data, results)
    if chosen is None:
        return [*sentences, _not_yet(data)]
    sentences.append(_before_after(base, chosen))
    if uniform is not None:
        sentences.append(_against_uniform(chosen, uniform, final_of(data, "uniform")))
        sentences.append(_caution(results))
    elif _is_uniform(results.choice.pair if results.choice else None):
        sentences.append("The chosen pair is itself a uniform pair, so there is nothing to compare it with.")
    return sentences


def _missed(data: ReportData, results: StudyResults) -> list[str]:
    """A sentence where the final run ended outside the interval that was predicted for its pair."""
    final = final_of(data, "chosen")
    candidate = _candidate(results, None if final is None else final.get("pair"))
    reached = None if final is None else _reached(final, results)
    if candidate is None or candidate.loss_interval is None or reached is None:
        return []
    low, high = candidate.loss_interval
    if low <= reached <= high:
        return []
    side = "above" if reached > high else "below"
    return [
        f"The prediction missed: the final run's validation {results.objective.quantity} is {f.fixed(reached)}, {side} "
        f"the predicted 95% interval {f.fixed_interval(candidate.loss_interval)}."
    ]


def _candidate(results: StudyResults, pair: Sequence[int] | None) -> Candidate | None:
    if results.choice is None or pair is None:
        return None
    return next((item for item in results.choice.candidates if item.pair == tuple(pair)), None)


def _reached(final: Mapping[str, Any], results: StudyResults) -> float | None:
    """The objective's quantity on the validation set, of the kept checkpoint."""
    value = final.get("best_val_loss" if results.objective.name == PERPLEXITY else "best_objective")
    return None if value is None else float(value)


def _not_yet(data: ReportData) -> str:
    if not data.finals:
        return "The final fine-tune has not been run yet, so there is no adapter and there are no test scores."
    return "The final model has not been evaluated on the test set yet."


def _before_after(base: Mapping[str, Any] | None, chosen: Mapping[str, Any]) -> str:
    after = f"{f.fixed(chosen['perplexity'])}", f"{f.percent(chosen['accuracy'])}"
    if base is None:
        return f"On the test set the tuned model has perplexity {after[0]} and exact-match accuracy {after[1]}."
    return (
        f"On the test set, fine-tuning takes perplexity from {f.fixed(base['perplexity'])} to {after[0]} "
        f"and exact-match accuracy from {f.percent(base['accuracy'])} to {after[1]}."
    )


def _against_uniform(chosen: Mapping[str, Any], uniform: Mapping[str, Any], final: Mapping[str, Any] | None) -> str:
    name = f"The uniform default {f.pair(final['pair'])}" if final else "The uniform default"
    change = float(chosen["perplexity"]) / float(uniform["perplexity"]) - 1.0
    points = 100 * (float(chosen["accuracy"]) - float(uniform["accuracy"]))
    return (
        f"{name}, trained with the same budget, reaches {f.fixed(uniform['perplexity'])} and "
        f"{f.percent(uniform['accuracy'])}: the chosen pair's perplexity is {_lower_or_higher(change)} and its "
        f"accuracy {_points(points)}."
    )


def _lower_or_higher(change: float) -> str:
    if abs(change) < 5e-4:
        return "the same"
    return f"{100 * abs(change):.1f}% {'lower (better)' if change < 0 else 'higher (worse)'}"


def _points(points: float) -> str:
    if abs(points) < 0.05:
        return "the same"
    return f"{abs(points):.1f} points {'higher (better)' if points > 0 else 'lower (worse)'}"


def _caution(results: StudyResults) -> str:
    deviation = None if results.metrics.empty else seed_deviation(results)
    if deviation is None:
        return (
            "Each was trained once, and calibration had one seed per pair, so it is not known how much of the "
            "difference is chance."
        )
    return (
        f"Each was trained once. In calibration, the seed alone moves perplexity by {f.percent(deviation)} (standard "
        "deviation): a difference of that size is no evidence."
    )


def _is_uniform(pair: Pair | None) -> bool:
    return pair is not None and pair[0] == pair[1]


def _facts(data: ReportData, results: StudyResults) -> tuple[Fact, ...]:
    facts = [_predicted(data, results), _parameters(data, results), _search_cost(data, results), _final_cost(data)]
    return tuple(fact for fact in facts if fact is not None)


def _predicted(data: ReportData, results: StudyResults) -> Fact | None:
    choice = results.choice
    candidate = _candidate(results, None if choice is None else choice.pair)
    if choice is None or candidate is None or candidate.loss is None:
        return None
    measured = candidate.source.how in ("best observed", "observed")
    quantity = results.objective.quantity
    name = f"Measured validation {quantity}" if measured else f"Predicted {quantity} at D = {f.count(choice.D_target)}"
    details = [] if candidate.perplexity is None else [f"perplexity {f.fixed(candidate.perplexity)}"]
    if candidate.loss_interval is not None:
        details.insert(0, f"95% interval {f.fixed_interval(candidate.loss_interval)}")
    final = final_of(data, "chosen")
    if final is not None:
        missed = "missed: " if _missed(data, results) else ""
        details.append(f"{missed}the final run reached {f.fixed(_reached(final, results))}")
    return Fact(name, f.fixed(candidate.loss), "; ".join(details))


def _parameters(data: ReportData, results: StudyResults) -> Fact | None:
    choice = results.choice
    if choice is None or choice.cost_unit != "parameters":
        return None
    candidate = _candidate(results, choice.pair)
    if candidate is None:
        return None
    uniform = final_of(data, "uniform")
    detail = ""
    if uniform and uniform.get("trainable_parameters"):
        detail = f"uniform default: {f.count(uniform['trainable_parameters'])}"
    return Fact("Trainable parameters", f.count(candidate.trainable_parameters), detail)


def stage_seconds(data: ReportData, stages: tuple[str, ...]) -> float | None:
    """Seconds of the stages whose name starts with one of `stages`; None where none was recorded."""
    own = [float(c["seconds"]) for c in data.costs if str(c.get("stage", "")).lower().startswith(stages)]
    return sum(own) if own else None


def _search_cost(data: ReportData, results: StudyResults) -> Fact | None:
    seconds = stage_seconds(data, SEARCH_STAGES)
    if seconds is None:
        return None
    return Fact("Finding the pair took", f.duration(seconds), exhaustive_estimate(data, results, seconds))


def exhaustive_estimate(data: ReportData, results: StudyResults, seconds: float) -> str:
    """What full fine-tunes of all calibrated pairs would have cost, from the chosen run's own time."""
    chosen = final_of(data, "chosen")
    n_pairs = len(results.metrics[["r_me", "r_llm"]].drop_duplicates())
    if chosen is None or not chosen.get("seconds"):
        return f"{results.n_runs} calibration runs"
    full = n_pairs * float(chosen["seconds"])
    return f"full fine-tunes of all {n_pairs} pairs: about {f.duration(full)} ({full / max(seconds, 1e-9):.1f}×)"


def _final_cost(data: ReportData) -> Fact | None:
    chosen = final_of(data, "chosen")
    if chosen is None:
        return None
    return Fact("Final fine-tune took", f.duration(chosen.get("seconds")), f"{f.count(chosen.get('steps'))} steps")
