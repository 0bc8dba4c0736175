"""A choice in a few plain sentences: the pair and why, what it may cost, how it compares."""

from __future__ import annotations

from collections.abc import Sequence

from mars_core.ranks import Pair
from mars_core.report import formatting as f
from mars_core.search import Choice, Rival
from mars_core.search.rates import BestRate, FixedRate

# verdict: tone of the headline, badge, meaning. The last four are of choices that earlier versions stored.
VERDICTS = {
    "best": (
        "good",
        "predicted best",
        "Its regret is within the larger of the margin and 0.25% with at least 80% probability.",
    ),
    "as good and cheaper": (
        "good",
        "as good and cheaper",
        "It trains fewer parameters than the pair predicted best and is very likely within the margin of it.",
    ),
    "cannot tell": (
        "doubt",
        "cannot tell",
        "Several pairs may be the best one. This is the best guess, not a finding.",
    ),
    "paper": ("doubt", "Algorithm 1 of the paper", "The study asks for Algorithm 1 as printed (law: paper)."),
    "chosen": (
        "good",
        "chosen by both laws",
        "The balance curve narrowed the pairs and law P picked the best of them.",
    ),
    "indistinguishable": ("good", "cheapest of equals", "A cheaper pair was taken: as good within the margin."),
    "balance uninformative": ("doubt", "balance uninformative", "Law P decided over all pairs."),
    "fallback": ("doubt", "fallback", "The laws could not carry the full method here; the next best evidence decided."),
}
# The same where a cheaper pair was taken that is expected within half the margin of the best guess.
TIED = {
    "best": (
        "good",
        "cheaper, about as good",
        "It is cheaper than the best guess and expected within half the margin of it. Its regret is within the larger "
        "of the margin and 0.25% with at least 80% probability.",
    ),
    "cannot tell": (
        "doubt",
        "cannot tell",
        "Several pairs may be the best one. This one is cheaper than the best guess and expected within half the "
        "margin of it: a guess, not a finding.",
    ),
}
RIVALS = {
    "best observed": "the pair measured best in calibration",
    "largest": "the largest pair",
    "uniform": "the uniform pair",
}
AXES = {"all": "", "me": " for the vision encoder", "llm": " for the LLM"}
SAME = 5e-5  # an excess that rounds to 0.00%


def decision_sentences(choice: Choice) -> tuple[str, ...]:
    """The decision in words; of a choice that an earlier version stored, its reason alone."""
    return (choice.reason, *rate_sentences(choice), *regret_sentence(choice), *rival_sentences(choice))


def rate_sentences(choice: Choice) -> list[str]:
    """The learning rate to train at, and what the two decisions gain over the user's default; nothing for one rate."""
    if choice.rates is None:
        return []
    named = " and ".join(map(_best_rate, choice.rates.chosen))
    gains = [] if choice.rates.fixed is None else _gains(choice.rates.fixed, choice.objective)
    return [f"Train it at a peak learning rate of {named}.", *gains]


def _best_rate(best: BestRate) -> str:
    low, high = map(f.rate, best.interval)
    return f"{f.rate(best.rate)}{AXES[best.axis]} (95% interval {low} to {high})"


def _gains(fixed: FixedRate, objective: str) -> list[str]:
    """What the user's own rate would have given, and which of the two decisions gains more."""
    me, llm = fixed.rates
    at = f.rate(llm) if me == llm else f"{f.rate(me)} (vision encoder) and {f.rate(llm)} (LLM)"
    least = "at least " if fixed.at_least else ""
    default = "" if fixed.default is None else f"the default pair {f.pair(fixed.default)}"
    best = f"{default} itself is best" if fixed.pair == fixed.default else f"the best pair is {f.pair(fixed.pair)}"
    excess = f.percent(max(fixed.excess, 0.0), 2)
    said = [f"At your learning rate of {at} {best}, with {least}{excess} more {objective} than this choice."]
    if fixed.default is None:
        return said
    return [
        *said,
        f"For {default} the best rate alone gains {least}{f.percent(fixed.rate_gain, 2)}, and the best pair at your "
        f"rate {f.percent(fixed.rank_gain, 2)}: {_limit(fixed)}.",
    ]


def _limit(fixed: FixedRate) -> str:
    if fixed.was_the_limit:
        return "the learning rate was the limit"
    if fixed.at_least:
        return "which of them gains more is not known, since no run had that rate"
    return "the ranks gain at least as much as the rate"


def verdict_words(choice: Choice) -> tuple[str, str, str]:
    """Tone, badge and meaning of the verdict; an unknown one stands for itself."""
    words = TIED.get(choice.verdict) if choice.preferred_over else None
    return words or VERDICTS.get(choice.verdict, ("doubt", choice.verdict, ""))


def regret_sentence(choice: Choice) -> list[str]:
    """Expected regret with its bound, where the reason does not state it."""
    if choice.regret is None or choice.decided_by == "posterior":
        return []
    bound = f.percent(choice.regret_bound, 2)
    regret = f"{f.percent(choice.regret, 2)} of {choice.objective}"
    return [f"Its expected regret over all pairs is {regret}, at most {bound} (95%)."]


def rival_sentences(choice: Choice) -> list[str]:
    """The pairs that one would take without a search, beside the chosen one."""
    by_pair: dict[Pair, list[Rival]] = {}
    for rival in choice.rivals:
        by_pair.setdefault(rival.pair, []).append(rival)
    own = _parameters(choice)
    same = [f"It is also {_names(rivals)}." for pair, rivals in by_pair.items() if pair == choice.pair]
    others = [_compared(choice, rivals, own) for pair, rivals in by_pair.items() if pair != choice.pair]
    return [*same, *([f"Beside it, {'; '.join(others)}."] if others else [])]


def _compared(choice: Choice, rivals: Sequence[Rival], own: int | None) -> str:
    rival = rivals[0]
    cost = f.count(rival.trainable_parameters)
    words = f"{_names(rivals)}, {f.pair(rival.pair)}, "
    words += f"trains {cost} parameters" if choice.cost_unit == "parameters" else f"has a rank of {cost} in all"
    if own:
        words += f" ({f.number(rival.trainable_parameters / own, 2)} times as many)"
    if rival.excess is None:
        return words
    interval = f.percent_interval(rival.excess_interval, 2)
    return f"{words} and is predicted to have {_difference(rival.excess)} {choice.objective} ({interval})"


def _difference(excess: float) -> str:
    if abs(excess) < SAME:
        return "the same"
    return f"{f.percent(abs(excess), 2)} {'more' if excess > 0 else 'less'}"


def _names(rivals: Sequence[Rival]) -> str:
    return " and ".join(RIVALS.get(rival.name, rival.name) for rival in rivals)


def _parameters(choice: Choice) -> int | None:
    return next((c.trainable_parameters for c in choice.candidates if c.pair == choice.pair), None)
