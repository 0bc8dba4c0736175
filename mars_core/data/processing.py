"""Running a processor once, and knowing what text its tokens stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mars_core.data.sounds import Waveform, sampling_rate

_REPLACEMENTS = "text_replacement_offsets"
# What processors raise on texts and pictures that they cannot take.
_REFUSALS = (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Expansion:
    """What a processor puts in place of each placeholder of an image or a sound, in order."""

    placeholder: str = ""
    replacements: tuple[str, ...] = ()

    def apply(self, text: str) -> str:
        """Expand the placeholders of a text, or of its beginning."""
        if not self.replacements:
            return text
        first, *rest = text.split(self.placeholder)
        pairs = zip(self.replacements, rest, strict=False)
        return first + "".join(replacement + piece for replacement, piece in pairs)


@dataclass(frozen=True)
class Processed:
    """A processor's tensors for one conversation, and the expansion behind its tokens."""

    tensors: Mapping[str, Any]
    expansion: Expansion


def process(text: str, images: Sequence[Image.Image], processor: Any, sounds: Sequence[Waveform] = ()) -> Processed:
    """Run the processor on a rendered conversation and its images or sounds, which have the processor's rate.

    Raises:
        ValueError: the processor refuses them, or does not say what it put in place of each.
    """
    heard = {"audio": list(sounds), "sampling_rate": sampling_rate(processor)} if sounds else {}
    try:
        outputs = processor(
            text=[text],
            images=[list(images)] if images else None,
            add_special_tokens=_adds_special_tokens(text, processor),
            return_text_replacement_offsets=True,
            return_tensors="pt",
            **heard,
        )
    except _REFUSALS as error:
        raise ValueError(f"the model's processor refuses the row: {str(error) or type(error).__name__}") from error
    expected = len(images) + len(sounds)
    recorded = outputs.get(_REPLACEMENTS, [[]])[0] if expected else []
    if len(recorded) != expected:
        raise ValueError(
            f"{type(processor).__name__} does not report the expansions of its {'audio' if sounds else 'image'} "
            "tokens, which exact labels need: use a processor class of transformers 5.20 or newer"
        )
    placeholder = recorded[0]["text"] if recorded else ""
    expansion = Expansion(placeholder, tuple(entry["replacement"] for entry in recorded))
    return Processed({key: outputs[key] for key in outputs if key != _REPLACEMENTS}, expansion)


def token_ids(text: str, expansion: Expansion, processor: Any) -> list[int]:
    """Tokens of a rendered conversation, or of its beginning, as the processor makes them."""
    special = _adds_special_tokens(text, processor)
    try:
        ids: list[int] = processor.tokenizer(expansion.apply(text), add_special_tokens=special)["input_ids"]
    except _REFUSALS as error:
        raise ValueError(f"the tokenizer refuses the text: {error}") from error
    return ids


def _adds_special_tokens(text: str, processor: Any) -> bool:
    """Like transformers' own chat path: not if the template wrote the beginning-of-text token already."""
    bos = processor.tokenizer.bos_token
    return not (bos and text.startswith(bos))
