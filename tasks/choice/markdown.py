"""A choice for the Prefect UI: the artifact that shows it, and the question whether it shall be trained."""

from __future__ import annotations

from collections.abc import Mapping

from mars_core.markdown import markdown_table
from mars_core.ranks import Pair
from mars_core.report.decision import decision_sentences
from mars_core.search import Choice, read_points
from mars_core.search.objective import objective_named
from tasks.calibration.stored import stored_metrics
from tasks.choice.search import read_choice
from tasks.storage.folder import Revision


def choice_markdown(choice: Choice) -> str:
    """The choice and its reason."""
    return f"# Rank pair (r_me, r_llm) = {choice.pair}\n\n{_reason(choice)}"


def question_markdown(revision: Revision) -> str:
    """What a form asks about the choice; a form has little room, so its reason comes last."""
    choice = read_choice(revision)
    asked = f"### Train rank pair (r_me, r_llm) = {choice.pair}?"
    return "\n\n".join([asked, _pairs(revision, choice), _reason(choice)])


def decision_text(choice: Choice) -> str:
    """Reason, regret, rivals and what would tell, in few sentences."""
    return " ".join(decision_sentences(choice))


def _reason(choice: Choice) -> str:
    lines = [f"**{choice.verdict}**: {decision_text(choice)}"]
    lines += [f"Warning: {warning}" for warning in choice.warnings]
    lines.append(f"Target dataset size: {choice.D_target:.0f} samples.")
    if choice.fallback_cause and choice.fallback_cause.lower() not in choice.reason.lower():
        lines.append(f"Cause of the fallback: {choice.fallback_cause}")
    return "\n\n".join(lines)


def _pairs(revision: Revision, choice: Choice) -> str:
    """Every pair that was measured or compared, the best first: for a person who may take another one."""
    objective = objective_named(choice.objective)
    observed = read_points(stored_metrics(revision), objective).table
    largest = observed["D"].max()
    at_largest = observed[observed["D"] == largest]
    means = at_largest.groupby(["r_me", "r_llm"])["loss"].mean()
    measured = {(int(pair[0]), int(pair[1])): float(loss) for pair, loss in means.items()}
    predicted = {c.pair: c.loss for c in choice.candidates if c.loss is not None}
    known = measured | predicted
    rows = [
        [f"**{pair}** chosen" if pair == choice.pair else str(pair), _shown(pair, measured), _shown(pair, predicted)]
        for pair in sorted(known, key=lambda pair: (pair not in predicted, known[pair]))
    ]
    header = ["(r_me, r_llm)", f"{objective.quantity} at {largest:.0f} samples", f"predicted at {choice.D_target:.0f}"]
    return markdown_table(header, rows) if predicted else markdown_table(header[:2], [row[:2] for row in rows])


def _shown(pair: Pair, losses: Mapping[Pair, float]) -> str:
    return f"{losses[pair]:.4f}" if pair in losses else "-"
