"""Ask a person in the Prefect UI whether the chosen pair shall be trained."""

from __future__ import annotations

from typing import Literal

from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from pydantic import Field

from mars_core.models.lora import RankPair
from tasks.approval import is_approved, record_approval
from tasks.config import StudyConfig
from tasks.progress import say
from tasks.report import choice_markdown
from tasks.revision import current_revision
from tasks.search import chosen_pair, read_choice

AfterChoice = Literal["train", "ask", "stop"]
APPROVAL_TIMEOUT_SECONDS = 7 * 24 * 3600


class FinalApproval(RunInput):
    """What to do with the chosen pair."""

    decision: Literal["accept", "change ranks", "stop"] = Field(
        "accept", title="Decision", description="`change ranks` trains the ranks below in place of the chosen ones"
    )
    r_me: int = Field(title="Rank of the vision encoder", ge=0, description="Read only under `change ranks`")
    r_llm: int = Field(title="Rank of the LLM", ge=0, description="Read only under `change ranks`")
    reason: str = Field("", title="Reason", description="Kept with the study and shown in its report")


def may_train(config: StudyConfig, after_choice: AfterChoice) -> bool:
    """Whether the final run shall start: at once, after a person's word, or not at all.

    An approval of the present choice is asked for once and kept with the study.
    """
    if after_choice == "stop":
        return False
    return after_choice == "train" or is_approved(current_revision(config)) or _ask(config)


def _ask(config: StudyConfig) -> bool:
    revision = current_revision(config)
    pair, complaint = chosen_pair(revision), ""
    while True:
        answer = pause_flow_run(
            wait_for_input=FinalApproval.with_initial_data(
                description=f"{complaint}{choice_markdown(read_choice(revision))}", r_me=pair.r_me, r_llm=pair.r_llm
            ),
            timeout=APPROVAL_TIMEOUT_SECONDS,
            poll_interval=2,
        )
        if answer.decision == "stop":
            say("stopped by a person: no final run")
            return False
        wanted = RankPair(answer.r_me, answer.r_llm) if answer.decision == "change ranks" else pair
        try:
            record_approval(config, revision, wanted, answer.reason)
        except ValueError as error:  # ranks that the model has no room for: ask again
            complaint = f"**{error}**\n\n"
            continue
        say(f"approved by a person: {wanted}")
        return True
