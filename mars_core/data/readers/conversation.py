"""What the formats share: messages to turns and images, and a sample from its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mars_core.data.records import (
    AUDIO_MARKER,
    IMAGE_MARKER,
    ImageRef,
    PathImage,
    PathSound,
    Role,
    Sample,
    Source,
    Turn,
)

_ROLES: Mapping[Any, Role] = MappingProxyType(
    {
        "system": "system",
        "human": "user",
        "user": "user",
        "gpt": "assistant",
        "assistant": "assistant",
        "model": "assistant",
    }
)
_TASKS = ("task", "task_type")
OTHER_MEDIA = ("video", "videos")
SOUNDS = ("audio", "audios")


class RowError(ValueError):
    """A row of a dataset file does not make a sample; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, and the image paths that their content blocks name."""

    turns: tuple[Turn, ...]
    paths: tuple[str, ...] = ()


def parse_conversation(messages: Any, system: Any = None) -> Conversation:
    """Turn [{from, value}] (LLaVA, ShareGPT) or [{role, content}] (OpenAI) messages into turns.

    Text is stripped: white space around it would merge with the chat template's own.

    Args:
        messages: the messages.
        system: a system prompt that stands beside them, if any.

    Raises:
        RowError: anything else.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise RowError(f"expected a list of messages, got {_short(messages)}")
    paths: list[str] = []
    turns = [_turn(message, paths) for message in messages]
    if system is not None and system != "":
        turns.insert(0, Turn("system", _text(system, paths).strip()))
    return Conversation(tuple(turn for turn in turns if turn.role != "system" or turn.text), tuple(paths))


def question_and_answer(question: Any, answer: Any, n_images: int) -> tuple[Turn, ...]:
    """Two turns; a question without markers of its own gets one per image in front.

    Raises:
        RowError: one of them is no text.
    """
    if not isinstance(question, str) or not isinstance(answer, str):
        raise RowError(f"`question` and `answer` must be text, got {question!r} and {answer!r}")
    asked, answered = require_characters(question).strip(), require_characters(answer).strip()
    return with_markers((Turn("user", asked), Turn("assistant", answered)), n_images)


def with_markers(turns: tuple[Turn, ...], n_images: int) -> tuple[Turn, ...]:
    """The turns; where no text has a marker, one per image is put in front of the first question."""
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None or any(IMAGE_MARKER in turn.text for turn in turns):
        return turns
    marked = replace(turns[first], text=f"{IMAGE_MARKER}\n" * n_images + turns[first].text)
    return (*turns[:first], marked, *turns[first + 1 :])


def build_sample(
    name: Any,
    images: tuple[ImageRef, ...],
    conversation: Sequence[Turn],
    task: Any,
    source: Source,
    sounds: tuple[PathSound, ...] = (),
) -> Sample:
    """Assemble a sample; without an id it is named by its row, without a task type by its form."""
    return Sample(
        id=f"{source.file.stem}-{source.row}" if name is None else str(name),
        images=images,
        turns=conversation,
        task=str(task) if task else _form((*images, *sounds), conversation),
        source=source,
        sounds=sounds,
    )


def task_of(record: Mapping[str, Any]) -> Any:
    """The task type that a record names, or None."""
    return next((record[name] for name in _TASKS if record.get(name)), None)


def image_paths(value: Any, column: str, folder: Path) -> tuple[PathImage, ...]:
    """Images given as a path or {path}, or a list of them; None and the empty string are no image.

    Raises:
        RowError: anything else, URLs and inline data too.
    """
    values = [] if value is None or value == "" else value if isinstance(value, list) else [value]
    return tuple(PathImage(_path(item, column), folder) for item in values)


def sounds_of(record: Mapping[str, Any], folder: Path) -> tuple[PathSound, ...]:
    """Sounds that a record names in `audio` or `audios`, as images are named.

    Raises:
        RowError: anything else, URLs and inline data too.
    """
    column = next((name for name in SOUNDS if record.get(name) not in (None, "", [], {})), None)
    return (
        tuple(PathSound(image.path, folder) for image in image_paths(record[column], column, folder)) if column else ()
    )


def with_sound_markers(turns: tuple[Turn, ...], n_sounds: int) -> tuple[Turn, ...]:
    """The turns; where no text has an audio marker, one per sound is put in front of the first question."""
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
    if not n_sounds or first is None or any(AUDIO_MARKER in turn.text for turn in turns):
        return turns
    marked = replace(turns[first], text=f"{AUDIO_MARKER}\n" * n_sounds + turns[first].text)
    return (*turns[:first], marked, *turns[first + 1 :])


def require_characters(text: str) -> str:
    """The text, unless it holds half a character (a lone surrogate), which no tokenizer takes.

    Raises:
        RowError: it does; JSON writes such a half as \\ud83d, left over where a text was cut inside an emoji.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(error.start - 20, 0) : error.start + 20]
        raise RowError(
            f"half a character (lone surrogate) in {around!r}: the text was cut inside an emoji or the like; correct it"
        ) from error
    return text


def refuse_other_media(record: Mapping[str, Any]) -> None:
    """Raise RowError where a record names what MARS does not read there: without it, it would say something else."""
    _refuse(record, OTHER_MEDIA)


def refuse_sounds(record: Mapping[str, Any]) -> None:
    """Raise RowError where a row of a table names sounds."""
    _refuse(record, SOUNDS)


def _refuse(record: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if record.get(key) not in (None, "", [], {}):
            remedy = (
                "give it in a JSON file, as the path of a WAV file" if key in SOUNDS else "give single frames as images"
            )
            raise RowError(
                f"the row has `{key}`, and MARS trains on images, sounds of JSON files and text: remove the row, or "
                f"{remedy}"
            )


def require_local(path: str) -> str:
    """The path, unless it is a URL or holds the image itself.

    Raises:
        RowError: it is one of them.
    """
    if "://" in path or path.startswith("data:"):
        raise RowError(
            f"image {_short(path)} is a URL or inline data: download it into the image folder and give its path there"
        )
    return path


def _path(item: Any, column: str) -> str:
    path = item.get("path") if isinstance(item, Mapping) else item
    if not isinstance(path, str) or not path:
        raise RowError(f"`{column}` must be a path or a list of paths, got {_short(item)}")
    return require_local(path)


def _turn(message: Any, paths: list[str]) -> Turn:
    if not isinstance(message, Mapping):
        raise RowError(f"expected a message with a speaker and a text, got {_short(message)}")
    speaker = message.get("from") or message.get("role")
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise RowError(f"unknown speaker {speaker!r}: expected human or gpt, or user or assistant (or system, first)")
    text = message.get("value")
    words = _text(message.get("content") if text is None else text, paths).strip()
    return Turn(_ROLES[speaker], words, trained=_is_trained(message))


def _is_trained(message: Mapping[str, Any]) -> bool:
    """OpenAI's `weight` (0 or 1) and ms-swift's `loss`; an answer without either is trained on."""
    for key in ("weight", "loss"):
        value = message.get(key)
        if value is not None and value not in (0, 1):
            raise RowError(f"`{key}` of a message must be 0 or 1, got {_short(value)}")
        if value is not None and not value:
            return False
    return True


def _text(content: Any, paths: list[str]) -> str:
    if isinstance(content, str):
        return require_characters(content)
    if isinstance(content, Sequence):
        return "".join(_block(block, paths) for block in content)
    raise RowError(f"a message must be text, got {_short(content)}")


def _block(block: Any, paths: list[str]) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind == "audio" and not any(block.get(key) is not None for key in ("audio", "audio_url", "path", "url")):
        return AUDIO_MARKER
    if kind in ("image", "image_url"):
        paths.extend(_block_paths(block))
        return IMAGE_MARKER
    if kind == "text" and isinstance(block.get("text"), str):
        return require_characters(block["text"])
    raise RowError(f"unknown content block {_short(block)}: expected type text or image")


def _block_paths(block: Mapping[str, Any]) -> Iterator[str]:
    """The path in {image: path}, {path: path}, {url: path} or {image_url: {url: path}}; none in a bare marker."""
    named = [block[key] for key in ("image", "path", "url", "image_url") if block.get(key) is not None]
    for value in named[:1]:
        path = value.get("url") if isinstance(value, Mapping) else value
        if not isinstance(path, str) or not path:
            raise RowError(f"an image block must name a path, got {_short(block)}")
        yield require_local(path)


def _form(images: tuple[ImageRef, ...], turns: Sequence[Turn]) -> str:
    if not images:
        return "text-only"
    return "multi-turn" if sum(turn.role == "assistant" for turn in turns) > 1 else "single-turn"


def _short(value: Any, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."
