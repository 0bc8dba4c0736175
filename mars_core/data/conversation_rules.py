"""What a sample's conversation must be, so that a model can be trained and scored on it."""

from __future__ import annotations

from collections.abc import Iterator

from mars_core.data.records import AUDIO_MARKER, IMAGE_MARKER, Sample, Turn


def broken_rules(sample: Sample) -> Iterator[str]:
    """Say what is wrong with a conversation and its numbers of images and sounds, one reason per rule broken."""
    turns = tuple(sample.turns)
    yield from _broken(turns)
    yield from _misplaced(turns, IMAGE_MARKER, "image", len(sample.images))
    # In a row without sounds `<audio>` is text like any other.
    if sample.sounds:
        yield from _misplaced(turns, AUDIO_MARKER, "sound", len(sample.sounds))
    if sample.images and sample.sounds:
        yield "both images and sounds in one row: MARS trains on rows with one kind of them; split the row"


def require_rules(sample: Sample) -> None:
    """Raise ValueError with the first rule that `sample` breaks."""
    for reason in broken_rules(sample):
        raise ValueError(reason)


def _broken(turns: tuple[Turn, ...]) -> Iterator[str]:
    roles = [turn.role for turn in turns]
    exchanges = roles[1:] if roles[:1] == ["system"] else roles
    if not exchanges or exchanges != ["user", "assistant"] * (len(exchanges) // 2):
        yield (
            f"roles out of order ({', '.join(roles) or 'no turns'}): expected user and assistant in turn, "
            "from a user's question to an assistant's answer"
        )
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    if not all(answers):
        yield "empty answer: write one, or remove the row"
    if answers and not any(turn.trained for turn in turns if turn.role == "assistant"):
        yield "no answer is trained on (weight 0 in every one): give one the weight 1, or remove the row"


def _misplaced(turns: tuple[Turn, ...], marker: str, kind: str, count: int) -> Iterator[str]:
    for role, name in (("assistant", "an answer"), ("system", "a system prompt")):
        if any(marker in turn.text for turn in turns if turn.role == role):
            yield f"{marker} in {name}: {kind}s can only stand in a user's turn"
    markers = sum(turn.text.count(marker) for turn in turns)
    if markers != count:
        yield (
            f"{markers} {marker} {'marker' if markers == 1 else 'markers'} for {count} "
            f"{kind if count == 1 else kind + 's'}: put one marker per {kind} into the text"
        )
