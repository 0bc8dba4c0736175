"""A choice for the Prefect UI: the artifact that shows it, and the question whether it shall be trained."""

from __future__ import annotations

from collections.abc import Mapping

from mars_core.markdown import markdown_table
from mars_core.search import Choice
from mars_core.search.choice import Pair
from mars_core.search.from_laws import observed_losses
from mars_core.search.objective import objective_named
from tasks.calibrate import stored_metrics
from tasks.search import read_choice
from tasks.store import Revision

LAW_P_DECIDED = ("balanced candidates", "law P over all pairs")


def choice_markdown(choice: Choice) -> str:
    """The choice and its reason."""
    return f"# Rank pair (r_me, r_llm) = {choice.pair}\n\n{_reason(choice)}"


def question_markdown(revision: Revision) -> str:
    """What a form asks about the choice; a form has little room, so its reason comes last."""
    choice = read_choice(revision)
    asked = f"### Train rank pair (r_me, r_llm) = {choice.pair}?"
    return "\n\n".join([asked, _pairs(revision, choice), _reason(choice)])


def _reason(choice: Choice) -> str:
    lines = [f"**{choice.verdict}**: {choice.reason}", f"Target dataset size: {choice.D_target:.0f} samples."]
    if choice.fallback_cause and choice.fallback_cause.lower() not in choice.reason.lower():
        lines.append(f"Cause of the fallback: {choice.fallback_cause}")
    return "\n\n".join(lines)


def _pairs(revision: Revision, choice: Choice) -> str:
    """Every pair that was measured or compared, the best first: for a person who may take another one."""
    observed = observed_losses(stored_metrics(revision), objective_named(choice.objective))
    largest = observed["D"].max()
    at_largest = observed[observed["D"] == largest]
    measured = {(int(row.r_me), int(row.r_llm)): float(row.loss) for row in at_largest.itertuples()}
    by_law = choice.decided_by in LAW_P_DECIDED
    predicted = {c.pair: c.loss for c in choice.candidates if c.loss is not None} if by_law else {}
    known = measured | predicted
    rows = [
        [f"**{pair}** chosen" if pair == choice.pair else str(pair), _shown(pair, measured), _shown(pair, predicted)]
        for pair in sorted(known, key=lambda pair: (pair not in predicted, known[pair]))
    ]
    quantity = objective_named(choice.objective).quantity
    header = ["(r_me, r_llm)", f"{quantity} at {largest:.0f} samples", f"predicted at {choice.D_target:.0f}"]
    return markdown_table(header, rows) if by_law else markdown_table(header[:2], [row[:2] for row in rows])


def _shown(pair: Pair, losses: Mapping[Pair, float]) -> str:
    return f"{losses[pair]:.4f}" if pair in losses else "-"
