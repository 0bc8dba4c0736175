"""A sample as the chat text that its processor's template makes, and where the answers stand in it.

Training must continue exactly the prompt that generation starts from. So each answer is located by
rendering the conversation before it with the generation prompt, and the whole; the whole must go on
from the prompt with that answer. Some templates (LLaVA-OneVision's) put other white space between
header and answer than their own generation prompt does; the white space of the prompt is then used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError

from mars_core.data.records import AUDIO_MARKER, IMAGE_MARKER, Sample, Turn

_BLOCKS = {IMAGE_MARKER: "image", AUDIO_MARKER: "audio"}


@dataclass(frozen=True)
class ChatText:
    """Rendered conversation; `answers` are character spans [start, end) of answer and end of turn."""

    text: str
    answers: tuple[tuple[int, int], ...]


def chat_messages(turns: tuple[Turn, ...], markers: tuple[str, ...] = (IMAGE_MARKER,)) -> list[dict[str, Any]]:
    """Turns as messages with typed content blocks, image (or audio) blocks where the `markers` stand."""
    return [{"role": turn.role, "content": list(_blocks(turn, markers))} for turn in turns]


def markers_of(sample: Sample) -> tuple[str, ...]:
    """The markers that stand for something in a sample's text; without sounds `<audio>` is text like any other."""
    return (IMAGE_MARKER, AUDIO_MARKER) if sample.sounds else (IMAGE_MARKER,)


def render(turns: tuple[Turn, ...], processor: Any, markers: tuple[str, ...] = (IMAGE_MARKER,)) -> ChatText:
    """Apply the processor's chat template to a conversation and locate the answers that are trained on.

    Raises:
        ValueError: the template refuses the conversation, does not go on from its own generation prompt,
            changes the answer, or does not end it.
    """
    messages = chat_messages(turns, markers)
    whole = _apply(processor, messages, prompt=False)
    text, answers, done = "", [], 0
    for place, turn in enumerate(turns):
        if turn.role != "assistant" or not turn.trained:
            continue
        prompt = _apply(processor, messages[:place], prompt=True)
        upto = _apply(processor, messages[: place + 1], prompt=False)
        _require_kept(turn.text, prompt, upto, whole)
        header, start, end = _locate(turn.text, prompt, upto, whole)
        text += whole[done:header] + prompt[header:]
        answers.append((len(text), len(text) + end - start))
        text, done = text + whole[start:end], end
    return ChatText(text + whole[done:], tuple(answers))


def _blocks(turn: Turn, markers: tuple[str, ...]) -> Iterator[dict[str, str]]:
    for piece in re.split(f"({'|'.join(map(re.escape, markers))})", turn.text):
        if piece in markers:
            yield {"type": _BLOCKS[piece]}
        elif piece.strip():
            yield {"type": "text", "text": piece.strip("\r\n")}


def _apply(processor: Any, messages: list[dict[str, Any]], *, prompt: bool) -> str:
    try:
        return str(processor.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False))
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from error


def _require_kept(answer: str, prompt: str, upto: str, whole: str) -> None:
    """Some templates leave the thinking out of all answers but the last: then no one text holds them all."""
    if upto.startswith(prompt + answer) and answer not in whole:
        raise ValueError(
            f"the chat template changes an earlier answer in a longer conversation ({answer[:40]!r} is no longer in "
            "it, as with templates that drop thinking): give one row per answer, or a template that keeps answers"
        )


def _locate(answer: str, prompt: str, upto: str, whole: str) -> tuple[int, int, int]:
    """(end of what prompt and whole share, start of the answer, end of its end-of-turn) in `whole`."""
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
    body = len(whole) - len(whole[shared:].lstrip())
    if prompt[shared:].strip() or not whole.startswith(answer, body):
        raise ValueError(
            "the chat template does not put the answer right behind its generation prompt: "
            f"expected {prompt[-40:]!r} and then {answer[:40]!r}, got {whole[max(shared - 40, 0) : body + 40]!r}; "
            "use a chat template whose rendered answers start where its generation prompt ends"
        )
    close = upto[body + len(answer) :].rstrip()
    end = body + len(answer) + len(close)
    if not close or not whole.startswith(close, body + len(answer)):
        raise ValueError(
            "the chat template does not mark the end of an answer alike in every turn, so a model trained "
            "with it would not learn to stop: let it write an end-of-turn token behind each answer"
        )
    return shared, shared if shared == len(prompt) else body, end
