"""What a sample's conversation must be, so that a model can be trained and scored on it."""

from __future__ import annotations

from collections.abc import Iterator

from mars_core.data.records import IMAGE_MARKER, Sample, Turn


def broken_rules(sample: Sample) -> Iterator[str]:
    """Say what is wrong with a conversation and its number of images, one reason per rule broken."""
    yield from _broken(tuple(sample.turns), len(sample.images))


def require_rules(sample: Sample) -> None:
    """Raise ValueError with the first rule that `sample` breaks."""
    for reason in broken_rules(sample):
        raise ValueError(reason)


def _broken(turns: tuple[Turn, ...], n_images: int) -> Iterator[str]:
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
    for role, name in (("assistant", "an answer"), ("system", "a system prompt")):
        if any(IMAGE_MARKER in turn.text for turn in turns if turn.role == role):
            yield f"{IMAGE_MARKER} in {name}: images can only stand in a user's turn"
    markers = sum(turn.text.count(IMAGE_MARKER) for turn in turns)
    if markers != n_images:
        yield (
            f"{markers} {IMAGE_MARKER} {'marker' if markers == 1 else 'markers'} for {n_images} "
            f"{'image' if n_images == 1 else 'images'}: put one marker per image into the text"
        )
