"""A person's word on the choice: recorded beside it, valid for that very choice."""

from __future__ import annotations

from pathlib import Path

from mars_core.models.lora import check_ranks
from mars_core.ranks import RankPair
from tasks.choice.search import choice_path, chosen_pair
from tasks.storage.files import file_hash, read_json, write_json
from tasks.storage.folder import Revision
from tasks.storage.transfer import publish_files
from tasks.study.opened import Study


def approval_path(revision: Revision) -> Path:
    """Where the approval lies."""
    return revision.path("approval.json")


def record_approval(study: Study, pair: RankPair, reason: str) -> None:
    """Record that a person wants this pair trained, be it the chosen one or another.

    Raises:
        ValueError: the model has no room for these ranks.
    """
    check_ranks(study.inputs.partition, pair)
    approval = {"choice": file_hash(choice_path(study.revision)), "pair": list(pair), "reason": reason}
    write_json(approval_path(study.revision), approval)
    publish_files(study.config.study, [approval_path(study.revision)])


def is_approved(revision: Revision) -> bool:
    """Whether a person has approved a pair for the present choice."""
    path = approval_path(revision)
    return path.is_file() and bool(read_json(path)["choice"] == file_hash(choice_path(revision)))


def pair_to_train(revision: Revision) -> RankPair:
    """The pair of the final run: the chosen one, unless a person changed it."""
    if is_approved(revision):
        return RankPair(*read_json(approval_path(revision))["pair"])
    return chosen_pair(revision)


def approval_notes(revision: Revision) -> list[str]:
    """What the report says about a person's word on the choice."""
    if not is_approved(revision):
        return []
    reason = read_json(approval_path(revision))["reason"] or "no reason given"
    pair, chosen = pair_to_train(revision), chosen_pair(revision)
    if pair == chosen:
        return [f"a person accepted the chosen {chosen}: {reason}"]
    return [
        f"a person had {pair} trained in place of the chosen {chosen}: {reason}; "
        "final run, adapter and test scores are those of the trained pair"
    ]
