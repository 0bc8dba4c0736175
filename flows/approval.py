"""Ask a person in the Prefect UI whether the chosen pair shall be trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from pydantic import Field

from mars_core.ranks import RankPair
from tasks.choice.approval import is_approved, record_approval
from tasks.choice.markdown import question_markdown
from tasks.choice.search import chosen_pair
from tasks.running.progress import show_message
from tasks.study.opened import Study, reopen_study

AfterChoice = Literal["train", "ask", "stop"]
APPROVAL_TIMEOUT_SECONDS = 7 * 24 * 3600


class FinalApproval(RunInput):
    """What to do with the chosen pair."""

    decision: Literal["accept", "change ranks", "stop"] = Field(
        "accept",
        title="Decision",
        description="Accept trains the chosen ranks, change ranks those given below, stop none",
    )
    r_me: int = Field(title="Rank of the vision encoder, r_me")
    r_llm: int = Field(title="Rank of the LLM, r_llm")
    reason: str = Field("", title="Reason", description="Kept with the study and shown in its report")


def approval_form(values: Mapping[str, Any], question: str) -> type[FinalApproval]:
    """The form with these values filled in, below a question in Markdown."""
    # Prefect replaces a field by its first value alone: title and description have to come along.
    known = FinalApproval.model_fields
    fields: dict[str, Any] = {
        name: Field(value, title=known[name].title, description=known[name].description)
        for name, value in values.items()
    }
    return FinalApproval.with_initial_data(description=question, **fields)


def may_train(study: Study, after_choice: AfterChoice) -> bool:
    """Whether the final run shall start: at once, after a person's word, or not at all.

    An approval of the present choice is asked for once and kept with the study.
    """
    if after_choice == "stop":
        return False
    if after_choice == "train":
        return True
    study.pull()  # a person may have answered another machine
    if not (is_approved(study.revision) or _ask(study)):
        return False
    study.look_again()
    _refuse_older(study)
    return True


def _refuse_older(study: Study) -> None:
    """A person who was asked may have taken days, in which a nightly run opened another revision.

    Raises:
        ValueError: a newer revision is there.
    """
    newest = reopen_study(study.config).revision
    if newest != study.revision:
        raise ValueError(
            f"revision {newest.number} of {study.folder} was opened while a person was asked about the choice of "
            f"revision {study.revision.number}: run this again, it goes on with the newest"
        )


def _ask(study: Study) -> bool:
    pair, question = chosen_pair(study.revision), question_markdown(study.revision)
    form = approval_form(pair._asdict(), question)
    while True:
        answer = pause_flow_run(wait_for_input=form, timeout=APPROVAL_TIMEOUT_SECONDS, poll_interval=2)
        if answer.decision == "stop":
            show_message(f"stopped by a person, no final run: {answer.reason or 'no reason given'}")
            return False
        try:
            wanted = _wanted(answer, pair)
            record_approval(study, wanted, answer.reason)
        except ValueError as error:  # ask again, with what was answered filled in
            form = approval_form(answer.model_dump(), f"**{error}**\n\n{question}")
            continue
        show_message(f"approved by a person: {wanted}")
        return True


def _wanted(answer: FinalApproval, chosen: RankPair) -> RankPair:
    given = RankPair(answer.r_me, answer.r_llm)
    if answer.decision == "accept" and given != chosen:
        raise ValueError(
            f"The decision was to accept {chosen}, but the ranks were changed to {given}: "
            f"choose change ranks to train {given}, or put the ranks back"
        )
    return given
