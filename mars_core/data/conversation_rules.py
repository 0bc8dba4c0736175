"""What a sample's conversation must be, so that a model can be trained and scored on it."""

from __future__ import annotations

from collections.abc import Iterator

from mars_core.data.records import IMAGE_MARKER, Sample


def broken_rules(sample: Sample) -> Iterator[str]:
    """Say what is wrong with a conversation and its number of images, one reason per rule broken."""
    roles = [turn.role for turn in sample.turns]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        yield (
            f"roles out of order ({', '.join(roles) or 'no turns'}): expected user and assistant in turn, "
            "from a user's question to an assistant's answer"
        )
    if not all(sample.answers):
        yield "empty answer: write one, or remove the row"
    if any(IMAGE_MARKER in answer for answer in sample.answers):
        yield f"{IMAGE_MARKER} in an answer: images can only stand in a user's turn"
    markers = sum(turn.text.count(IMAGE_MARKER) for turn in sample.turns)
    if markers != len(sample.images):
        yield (
            f"{markers} {IMAGE_MARKER} {'marker' if markers == 1 else 'markers'} for {len(sample.images)} "
            f"{'image' if len(sample.images) == 1 else 'images'}: put one marker per image into the text"
        )


def require_rules(sample: Sample) -> None:
    """Raise ValueError with the first rule that `sample` breaks."""
    for reason in broken_rules(sample):
        raise ValueError(reason)
