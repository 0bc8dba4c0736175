"""What to do next, with its cost: the recommendation first, then what else could be tried."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mars_core.metrics.schema import PERPLEXITY
from mars_core.report import formatting as f
from mars_core.report.answer import final_of, overall, stage_seconds
from mars_core.report.data import ReportData
from mars_core.report.study_results import PEAKS, StudyResults
from mars_core.search import Choice

RATES_TRIED = 3


@dataclass(frozen=True)
class Step:
    """Something to do. cost: what it takes, a half sentence; empty where it takes nothing worth stating."""

    what: str
    cost: str = ""


def next_steps(data: ReportData, results: StudyResults) -> tuple[Step, ...]:
    """The first is what the results ask for; the others are possible and have their cost."""
    unfinished = _unfinished(data, results)
    if unfinished is not None:
        return (unfinished,)
    options = [_more_seeds(data, results), _other_rate(data, results), _more_data(data, results)]
    possible = [step for step in options if step is not None]
    if results.choice is not None and results.choice.verdict == "cannot tell":
        guess = _take_the_guess(results.choice)
        return (guess, *possible) if results.choice.seeds_needed is None else (*possible, guess)
    return (_stop(results), *possible)


def _unfinished(data: ReportData, results: StudyResults) -> Step | None:
    if results.metrics.empty:
        return Step("Train the calibration runs: mars calibrate", "mars calibrate --dry-run says what they take")
    if results.choice is None:
        return Step("Let the runs finish where some are missing, then choose: mars run", "fits take seconds to minutes")
    if not data.finals:
        return Step("Train the chosen pair: mars finetune")
    if overall(data.evaluation, "chosen") is None:
        return Step("Score the adapter on the test set: mars evaluate")
    return None


def _stop(results: StudyResults) -> Step:
    choice = results.choice
    gain = None if choice is None else _gain(choice)
    return Step("Stop here: take the adapter." if gain is None else f"Stop here: {gain}.")


def _take_the_guess(choice: Choice) -> Step:
    """Where the runs do not tell which pair is best: the adapter at hand, and why that may be enough."""
    untold = ": even a dozen seeds of each pair would not tell which is best" if choice.seeds_needed is None else ""
    gain = _gain(choice)
    return Step(f"Use this adapter as it is{untold}{'' if gain is None else f'; {gain}'}.")


def _gain(choice: Choice) -> str | None:
    """What the best pair is expected to have over the chosen one."""
    if choice.regret is None:
        return None
    bound = "" if choice.regret_bound is None else f", at most {f.percent(choice.regret_bound, 2)} (95%)"
    return f"another pair is expected to gain {f.percent(choice.regret, 2)} of {choice.objective}{bound}"


def _more_seeds(data: ReportData, results: StudyResults) -> Step | None:
    choice, spent = results.choice, stage_seconds(data, ("calib",))
    now = len(results.seeds)
    if choice is None or choice.seeds_needed is None or choice.seeds_needed <= now:
        return None
    needed = choice.seeds_needed
    cost = "" if spent is None else f"about {f.duration(spent * (needed - now) / now)} more of calibration"
    return Step(f"More seeds: {needed} of each pair would tell the pairs apart (calibration.seeds; now {now}).", cost)


def _other_rate(data: ReportData, results: StudyResults) -> Step | None:
    """Where one rate was tried; where several were, the choice says itself whether they were enough."""
    spent = stage_seconds(data, ("calib",))
    if results.choice is None or results.choice.rates is not None or _rates_tried(results) > 1:
        return None
    cost = "" if spent is None else f"about {f.duration(spent * (RATES_TRIED - 1))} more of calibration for three rates"
    return Step("Another learning rate: all pairs were compared at one (calibration.learning_rates).", cost)


def _rates_tried(results: StudyResults) -> int:
    known = [name for name in PEAKS if name in results.all_runs]
    return len(results.all_runs[known].drop_duplicates()) if known else 1


def _more_data(data: ReportData, results: StudyResults) -> Step | None:
    """Twice the data by law P, which is of the loss where perplexity is the objective."""
    choice, law = results.choice, results.performance
    final = final_of(data, "chosen")
    if choice is None or law is None or min(choice.pair) < 1 or results.objective.name != PERPLEXITY:
        return None
    sizes = np.array([choice.D_target, 2 * choice.D_target], dtype=np.float64)
    ranks = {
        name: np.full(2, rank, dtype=np.float64) for name, rank in zip(("r_me", "r_llm"), choice.pair, strict=True)
    }
    now, then = law.predict({**ranks, "D": sizes})
    gain = -float(np.expm1(then - now))
    cost = "" if final is None else f"the final run then takes about {f.duration(2 * float(final['seconds']))}"
    return Step(f"More data: by law P twice as much takes {f.percent(gain)} off the perplexity.", cost)
