"""What another tool must know of a model's chat template and tokenizer, found by rendering small conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

_ASKED, _ANSWERED, _SYSTEM = "XYZ", "QRS", "SYS"


@dataclass(frozen=True)
class ChatFacts:
    """How a model's own chat template writes a conversation.

    image_token_id: the token that stands for an image's features; None where the processor names none.
    default_system: system prompt that the template adds where a row has none.
    after_image: line breaks between an image and the text behind it. images_first: whether a turn's images stand before
    all its text. between_texts: what then joins its texts.
    """

    image_token_id: int | None
    default_system: str
    after_image: str
    images_first: bool
    between_texts: str


def chat_facts(processor: Any) -> ChatFacts:
    """Read the facts off a processor."""
    after_image, images_first, between = _around_images(processor)
    return ChatFacts(
        image_token_id=_image_token_id(processor),
        default_system=_default_system(processor),
        after_image=after_image,
        images_first=images_first,
        between_texts=between,
    )


def _image_token_id(processor: Any) -> int | None:
    token = getattr(processor, "image_token", None)
    return int(processor.tokenizer.convert_tokens_to_ids(token)) if isinstance(token, str) else None


def _around_images(processor: Any) -> tuple[str, bool, str]:
    """(after_image, images_first, between_texts)."""
    one = _rendered(processor, [_message("user", None, _ASKED)])
    several = _rendered(processor, [_message("user", _ASKED, None, _ANSWERED)])
    plain = _rendered(processor, [_message("user", _ASKED, _ANSWERED)])
    if one is None or several is None or plain is None:
        return "", False, ""
    before = one.partition(_ASKED)[0]
    first = several.partition(_ASKED)[0] != plain.partition(_ASKED)[0]
    between = several.partition(_ASKED)[2].partition(_ANSWERED)[0]
    return before[len(before.rstrip("\n")) :], first, between if first else ""


def _default_system(processor: Any) -> str:
    given = _rendered(processor, [_message("system", _SYSTEM), _message("user", _ASKED)])
    without = _rendered(processor, [_message("user", _ASKED)])
    if given is None or without is None or _SYSTEM not in given:
        return ""
    before, _, rest = given.partition(_SYSTEM)
    after, head = rest.partition(_ASKED)[0], without.partition(_ASKED)[0]
    fits = head.startswith(before) and head.endswith(after) and len(head) > len(before) + len(after)
    return head[len(before) : len(head) - len(after)] if fits else ""


def _message(role: str, *parts: str | None) -> dict[str, Any]:
    """None stands for an image."""
    blocks = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": blocks}


def _rendered(processor: Any, messages: list[dict[str, Any]]) -> str | None:
    try:
        return str(processor.apply_chat_template(messages, add_generation_prompt=False, tokenize=False))
    except TemplateError:
        return None
