"""Rows of the report's tables, formatted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mars_core.fitting import LawFit
from mars_core.laws import get_law
from mars_core.rates import LearningRates
from mars_core.report import formatting as f
from mars_core.report.answer import FINAL_STAGES
from mars_core.report.data import ReportData
from mars_core.report.study_results import StudyResults, is_balanced
from mars_core.search import Candidate, Choice

Row = dict[str, Any]

SYMBOLS = {
    "alpha_m": ("α", "m"), "alpha_l": ("α", "l"), "alpha": ("α", ""), "beta": ("β", ""), "gamma": ("γ", ""),
    "delta": ("δ", ""), "kappa": ("κ", ""), "mu": ("μ", ""), "nu": ("ν", ""),
}  # fmt: skip
MEANINGS = {
    "convergence": {
        "k": "scale, in optimizer steps",
        "gamma": "how fast convergence gets with rank; negative: higher ranks need fewer steps",
        "delta": "how steps grow with dataset size",
        "E": "steps that remain whatever the rank and size",
    },
    "": {
        "A": "scale of the reducible loss",
        "alpha_m": "how much a higher vision rank lowers the loss; 0 means no effect",
        "alpha_l": "how much a higher LLM rank lowers the loss; 0 means no effect",
        "beta": "how much more data lowers the loss",
        "E": "loss that no rank or amount of data removes (nats per answer token)",
        "kappa": "price of leaving the balance between the ranks",
        "tilt": "where that balance lies: at r_me / r_llm = exp(tilt / (2 κ))",
        "C": "scale of the over-fitting term",
        "mu": "how over-fitting grows with both ranks",
        "nu": "how over-fitting falls with dataset size",
    },
}
LEVELS = {"common": "the same for all pairs", "own": "close to the lowest it reached"}
ROLES = (
    ("base", "Base model"),
    ("uniform", "Uniform ranks"),
    ("uniform-tuned-rate", "Uniform ranks, tuned rate"),
    ("chosen", "Chosen pair"),
)


def coefficient_rows(fit: LawFit) -> list[Row]:
    """Symbol, value, interval and meaning of each coefficient."""
    law = get_law(fit.law)
    meanings = MEANINGS.get(fit.law, MEANINGS[""])
    return [
        {
            "symbol": SYMBOLS.get(symbol, (symbol, "")),
            "value": f.number(fit.coefficients[symbol]),
            "interval": f.interval(fit.intervals.get(symbol)),
            "meaning": meanings.get(symbol) or law.units.get(symbol, ""),
        }
        for symbol in law.symbols
    ]


def equation_of(fit: LawFit) -> str:
    """The fitted law's equation as text."""
    return get_law(fit.law).equation


def fit_facts(fit: LawFit) -> list[tuple[str, str]]:
    """What the fit rests on and how well it predicts what it has not seen."""
    facts = [("Form", get_law(fit.law).title), ("Points", _points(fit))]
    held_out = fit.held_out
    if held_out is None:
        return [*facts, ("Held-out error", "not measured: too few points are left without the largest size")]
    facts.append(
        (
            "Held-out error",
            f"{f.percent(held_out.mape, 2)} mean, {f.percent(held_out.largest_error, 2)} largest, on {held_out.n_test} "
            f"points with {held_out.rule} after fitting the other {held_out.n_train} (on those: "
            f"{f.percent(held_out.train_mape, 2)})",
        )
    )
    if held_out.rivals:
        rivals = ", ".join(f"{_rival(name)} {f.percent(error, 2)}" for name, error in held_out.rivals.items())
        facts.append(("Trivial rivals, same points", rivals))
    return facts


def _rival(name: str) -> str:
    return {
        "steps_per_rank": "fixed share of the run per rank",
        "performance_no_floor": "no floor",
        "performance_no_rank": "no ranks",
        "log_linear": "straight log-log line",
    }.get(name, name)


def _points(fit: LawFit) -> str:
    censored = f", {fit.n_censored} of them censored" if fit.n_censored else ""
    intervals = f"{f.percent(fit.level, 0)} intervals from {len(fit.draws)} bootstrap draws"
    return f"{fit.n_points} from {fit.n_groups} runs{censored}; {intervals}"


def how_law_c(results: StudyResults) -> str:
    """How to read law C's plot, for the signal and level in use."""
    held = {
        "slice": "the other module keeps the reference rank",
        "isolated": "the other module has no adapter",
        "given": "the times came with the runs",
        "trajectory": "here the module's adapter has come close to where it ended",
    }.get(results.signal, f"signal: {results.signal}")
    level = LEVELS.get(results.level, "as its owner defined it")
    return (
        f"Each point is the step at which a run had come down to the level that counts as converged at that size "
        f"({level}); {held}. Open points with an arrow had not got there yet, so their true time is higher. Parallel "
        "lines mean that rank and size act independently, as the law assumes; lines along the dotted one mean that "
        "runs converge only at their very end."
    )


def what_slices_say(results: StudyResults) -> str:
    """What law C from slices can add to law P, and what not."""
    if results.signal != "slice":
        return ""
    return (
        "A slice says how fast the loss falls along one rank; it cannot say which module is slow, because where the "
        "loss follows Eq. 1 its γ equals −α/β of that rank (within 0.003 when measured) and law C restates law P."
    )


def rate_slopes(choice: Choice) -> str:
    """How the best learning rate goes with the ranks and the size, in words."""
    if choice.rates is None:
        return ""
    words = {"s_me": "r_me", "s_llm": "r_llm", "s_D": "the dataset size"}
    said = []
    for name, (value, low, high) in choice.rates.slopes.items():
        symbol, _, axis = name.partition(" ")
        if symbol in words:
            said.append(f"{words[symbol]}^{f.number(value, 2)} {f.interval((low, high), 2)} {axis}".strip())
    return "; ".join(said)


def candidate_rows(results: StudyResults) -> list[Row]:
    """All compared pairs by expected regret."""
    choice = results.choice
    if choice is None:
        return []
    ordered = sorted(choice.candidates, key=lambda c: (c.expected_regret is None, c.expected_regret or 0.0))
    return [_candidate_row(candidate, choice) for candidate in ordered]


def _candidate_row(candidate: Candidate, choice: Choice) -> Row:
    return {
        "pair": f.pair(candidate.pair),
        "chosen": candidate.pair == choice.pair,
        "parameters": f.count(candidate.trainable_parameters),
        "loss": f.fixed(candidate.loss, 4),
        "interval": f.fixed_interval(candidate.loss_interval, 4),
        "regret": f.percent(candidate.expected_regret, 2),
        "excess": f.signed_percent(candidate.excess, 2),
        "excess_interval": f.percent_interval(candidate.excess_interval, 2),
        "best": f.percent(candidate.probability_best, 0),
        "balanced": _remarks(candidate, choice),
    }


def has_balance(choice: Choice) -> bool:
    """Whether any pair lies next to the balance curve: without one, none is more balanced than another."""
    return any(is_balanced(candidate, choice) for candidate in choice.candidates)


def _balanced(candidate: Candidate, choice: Choice) -> str:
    if not has_balance(choice):
        return ""
    return "yes" if is_balanced(candidate, choice) else "no"


def _remarks(candidate: Candidate, choice: Choice) -> str:
    source = candidate.source
    words = [
        _balanced(candidate, choice),
        {"clamped": "clamped", "default pair": "default pair"}.get(source.how, ""),
        "extrapolated" if source.extrapolated else "" if source.measured else "not measured",
    ]
    return "; ".join(word for word in words if word)


def other_rule(results: StudyResults) -> str:
    """What the rule that was not asked for takes from the same runs; empty where the choice does not say."""
    choice = results.choice
    if choice is None or choice.other_rule is None:
        return ""
    name = "The rule of MARS (law: mars)" if choice.rule == "paper" else "Algorithm 1 of the paper"
    pair, reason = tuple(choice.other_rule["pair"]), choice.other_rule["reason"]
    return f"{name} takes {'the same pair' if pair == choice.pair else f.pair(pair)}: {reason}"


def balance_rows(results: StudyResults) -> list[Row]:
    """The balance rank at each LLM rank."""
    if results.choice is None:
        return []
    return [
        {
            "r_llm": point.r_llm,
            "r_me": f.number(point.r_me, 3),
            "interval": f.interval(point.interval, 3),
            "undefined": f.percent(point.share_undefined, 0),
            "problem": point.problem or "",
        }
        for point in results.choice.balance_curve
    ]


def dropped_rows(results: StudyResults) -> list[Row]:
    """Pairs (or LLM ranks) that are no candidates, with their reasons."""
    if results.choice is None:
        return []
    return [
        {
            "what": f"r_llm = {item.r_llm}" if item.r_me is None else f.pair((item.r_me, item.r_llm)),
            "reason": item.reason,
        }
        for item in results.choice.dropped
    ]


def score_rows(data: ReportData) -> list[Row]:
    """Overall test scores: one row per model."""
    rows = []
    for role, name in ROLES:
        entry = (data.evaluation or {}).get(role)
        if entry:
            rows.append({"name": _named(data, role, name), "role": role, **_score(entry["overall"])})
    return rows


def comparison_rows(data: ReportData) -> list[Row]:
    """Base model, chosen pair and baselines, the lowest test perplexity first."""
    rows = sorted(data.comparison, key=lambda row: float(row["test"]["overall"]["perplexity"]))
    return [
        {
            "name": f"MARS {f.pair((row['settings']['r_me'], row['settings']['r_llm']))}"
            if row["role"] == "chosen"
            else row["name"],
            "role": row["role"],
            "parameters": f.count(row["trainable_parameters"] or None),
            "best_val_loss": f.fixed(row.get("best_val_loss"), 4),
            "seconds": f.duration(row.get("seconds")),
            "generated": _generated_cell((row["test"].get("generated") or {}).get("overall")),
            "rates": str(LearningRates(*row["learning_rates"])) if row.get("learning_rates") else f.DASH,
            "search": _search_cell(row.get("search")),
            **_score(row["test"]["overall"]),
        }
        for row in rows
    ]


def has_searches(data: ReportData) -> bool:
    """Whether the learning rate of a baseline was searched for."""
    return any(row["role"] == "baseline" and row.get("search") for row in data.comparison)


def _search_cell(search: Mapping[str, Any] | None) -> str:
    if not search:
        return f.DASH
    steps = f.count(search["pair_steps"])
    return f"{f.plural(int(search['runs']), 'run')}, {steps} steps, {f.duration(search['seconds'])}"


def task_rows(data: ReportData) -> list[Row]:
    """Test scores by task type; each row has one score per evaluated model, in the order of `evaluated_roles`."""
    evaluation = data.evaluation or {}
    roles = [role for role, _ in evaluated_roles(data)]
    tasks = sorted({task for role in roles for task in evaluation[role].get("by_task") or {}})
    rows = []
    for task in tasks:
        scores = [_score((evaluation[role].get("by_task") or {}).get(task)) for role in roles]
        answers = next((score["answers"] for score in scores if score["answers"] != f.DASH), f.DASH)
        rows.append({"task": task, "answers": answers, "scores": scores})
    return rows


def evaluated_roles(data: ReportData) -> list[tuple[str, str]]:
    """(role, name) of the models that were tested."""
    return [(role, _named(data, role, name)) for role, name in ROLES if (data.evaluation or {}).get(role)]


def _named(data: ReportData, role: str, name: str) -> str:
    final = next((final for final in data.finals if final.get("role") == role), None)
    return f"{name} {f.pair(final['pair'])}" if final else name


def _score(score: Mapping[str, Any] | None) -> Row:
    known = score or {}
    return {
        "loss": f.fixed(known.get("loss"), 4),
        "perplexity": f.fixed(known.get("perplexity")),
        "accuracy": f.percent(known.get("accuracy")),
        "answers": f.count(known.get("n_answers")),
        "tokens": f.count(known.get("n_tokens")),
    }


METHODS = (("letter", "the option's letter"), ("text", "exact match after normalisation"))
GENERATED = (("overall", "all answers"), ("with_image", "with an image"), ("multiple_choice", "multiple choice"))


def generated_rows(data: ReportData) -> list[Row]:
    """Accuracy of generated answers: all, by task type and by ScienceQA's subgroups; a cell per evaluated model."""
    found = [((data.evaluation or {}).get(role) or {}).get("generated") or {} for role, _ in evaluated_roles(data)]
    if not any(found):
        return []
    rows = [_generated(name, [scores.get(key) for scores in found]) for key, name in GENERATED]
    for kind, prefix in (("by_task", "task: "), ("scienceqa", "ScienceQA ")):
        names = dict.fromkeys(name for scores in found for name in scores.get(kind) or {})
        rows += [_generated(prefix + name, [(scores.get(kind) or {}).get(name) for scores in found]) for name in names]
    return [row for row in rows if row["answers"] != f.DASH]


def _generated(name: str, scores: Sequence[Mapping[str, Any] | None]) -> Row:
    counts = [score["n"] for score in scores if score]
    answers = f.count(counts[0]) if counts else f.DASH
    return {"group": name, "answers": answers, "cells": [_generated_cell(score) for score in scores]}


def _generated_cell(score: Mapping[str, Any] | None) -> str:
    if not score:
        return f.DASH
    low, high = score["interval"]
    return f"{f.percent(score['accuracy'])} ({f.percent(low)} to {f.percent(high)})"


def generated_note(data: ReportData) -> str:
    """How generated answers were marked, and how many were too long to be generated."""
    found: Mapping[str, Any] = next(
        (s["generated"] for s in (data.evaluation or {}).values() if s.get("generated")), {}
    )
    methods, left_out = found.get("methods") or {}, int(found.get("too_long") or 0)
    parts = [f"{f.count(methods[name])} by {words}" for name, words in METHODS if methods.get(name)]
    long = f" {f.plural(left_out, 'longer answer')} were left to perplexity." if left_out else ""
    return f"Greedy decoding; answers marked: {', '.join(parts)}.{long}"


def final_rows(data: ReportData) -> list[Row]:
    """One row per final fine-tune."""
    return [
        {
            "role": str(final.get("role", "")),
            "pair": f.pair(final.get("pair")),
            "parameters": f.count(final.get("trainable_parameters")),
            "steps": f.count(final.get("steps")),
            "best_step": f.count(final.get("best_step")),
            "best_val_loss": f.fixed(final.get("best_val_loss"), 4),
            "seconds": f.duration(final.get("seconds")),
        }
        for final in data.finals
    ]


def cost_rows(data: ReportData, results: StudyResults) -> list[Row]:
    """Seconds, steps, peak memory and share of each stage, and the total."""
    total = sum(float(cost["seconds"]) for cost in data.costs)
    rows = []
    for cost in data.costs:
        steps, memory = _stage_amounts(cost, data, results)
        rows.append(
            {
                "stage": str(cost["stage"]),
                "seconds": f.duration(cost["seconds"]),
                "share": f.percent(float(cost["seconds"]) / total if total else None, 0),
                "steps": f.count(steps),
                "memory": f.size_in_bytes(memory),
                "detail": str(cost.get("detail") or ""),
            }
        )
    return rows


def total_cost(data: ReportData) -> str:
    """Time of all stages."""
    return f.duration(sum(float(cost["seconds"]) for cost in data.costs) if data.costs else None)


def _stage_amounts(cost: Mapping[str, Any], data: ReportData, results: StudyResults) -> tuple[Any, Any]:
    """Steps and peak memory: the caller's, else what the stage's own records say."""
    stage = str(cost["stage"]).lower()
    steps, memory = None, None
    if stage.startswith("calib") and not results.metrics.empty:
        steps = results.metrics.groupby("run_id")["step"].max().sum()
        memory = results.metrics["peak_memory_bytes"].max() if "peak_memory_bytes" in results.metrics else None
    elif stage.startswith(FINAL_STAGES):
        finals = [final for final in data.finals if str(final.get("role")) in stage] or list(data.finals)
        steps = sum(int(final.get("steps") or 0) for final in finals)
        memory = max((float(final.get("peak_memory_bytes") or 0) for final in finals), default=0) or None
    return cost.get("steps", steps), cost.get("peak_memory_bytes", memory)


def group_rows(data: ReportData) -> list[Row]:
    """The model's partition: linear layers and LoRA parameters per unit of rank."""
    names = {"me": "vision encoder (ME)", "projector": "projector", "llm": "LLM"}
    groups = data.model.get("groups") or {}
    return [
        {
            "group": names.get(key, key),
            "layers": f.count(group.get("layers")),
            "per_rank": f.count(group.get("parameters_per_rank")),
        }
        for key, group in groups.items()
    ]


def data_rows(data: ReportData) -> list[tuple[str, str]]:
    """Counts of the splits, what was dropped, and the hash."""
    rows = [(f"{name.capitalize()} samples", f.count(data.data.get(name))) for name in ("train", "validation", "test")]
    if data.data.get("dropped_too_long"):
        rows.append(("Dropped (too long)", f.count(data.data["dropped_too_long"])))
    if data.data.get("data_hash"):
        rows.append(("Data hash", str(data.data["data_hash"])))
    return rows


def task_count_rows(data: ReportData) -> list[tuple[str, str]]:
    """Samples by task type, the most frequent first."""
    tasks = data.data.get("tasks") or {}
    return [(str(task), f.count(n)) for task, n in sorted(tasks.items(), key=lambda item: (-item[1], item[0]))]
