"""What the formats share: messages to turns, and a sample from its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mars_core.data.records import IMAGE_MARKER, ImageRef, Role, Sample, Source, Turn

_ROLES: Mapping[Any, Role] = MappingProxyType(
    {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
)


class RowError(ValueError):
    """A row of a dataset file does not make a sample; the message is the reason."""


def parse_turns(messages: Any) -> tuple[Turn, ...]:
    """Turn [{from, value}] (LLaVA) or [{role, content}] (OpenAI) messages into turns.

    Text is stripped: white space around it would merge with the chat template's own.

    Raises:
        RowError: anything else.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise RowError(f"expected a list of messages, got {_short(messages)}")
    return tuple(_turn(message) for message in messages)


def build_sample(name: Any, images: tuple[ImageRef, ...], turns: tuple[Turn, ...], task: Any, source: Source) -> Sample:
    """Assemble a sample; without an id it is named by its row, without a task type by its form."""
    return Sample(
        id=f"{source.file.stem}-{source.row}" if name is None else str(name),
        images=images,
        turns=turns,
        task=str(task) if task else _form(images, turns),
        source=source,
    )


def _turn(message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise RowError(f"expected a message with a speaker and a text, got {_short(message)}")
    speaker = message.get("from") or message.get("role")
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise RowError(f"unknown speaker {speaker!r}: expected human or gpt, or user or assistant")
    text = message.get("value")
    return Turn(_ROLES[speaker], _text(message.get("content") if text is None else text).strip())


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(_block(block) for block in content)
    raise RowError(f"a message must be text, got {_short(content)}")


def _block(block: Any) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind == "image":
        return IMAGE_MARKER
    if kind == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    raise RowError(f"unknown content block {_short(block)}: expected type text or image")


def _form(images: tuple[ImageRef, ...], turns: tuple[Turn, ...]) -> str:
    if not images:
        return "text-only"
    return "multi-turn" if sum(turn.role == "assistant" for turn in turns) > 1 else "single-turn"


def _short(value: Any, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
