"""Control tokens of a model inside a row's own text, which the tokenizer cannot tell from the template's."""

from __future__ import annotations

import re
from typing import Any

from mars_core.data.chat import markers_of
from mars_core.data.records import Sample


class ControlTokens:
    """The strings that a processor's tokenizer reads as one control token each, wherever they stand."""

    def __init__(self, processor: Any) -> None:
        names = sorted(_control_strings(processor), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None

    def found_in(self, sample: Sample) -> str | None:
        """The first control token in the texts, markers of images and sounds aside; None where there is none."""
        if self._pattern is None:
            return None
        markers = re.compile("|".join(map(re.escape, markers_of(sample))))
        texts = (piece for turn in sample.turns for piece in markers.split(turn.text))
        return next((found[0] for text in texts if (found := self._pattern.search(text))), None)


def _control_strings(processor: Any) -> set[str]:
    tokenizer = processor.tokenizer
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    # Placeholders of images, videos and sounds, which need not be special tokens of the tokenizer.
    own = {value for name, value in vars(processor).items() if name.endswith("_token") and isinstance(value, str)}
    return {name for name in {*tokenizer.all_special_tokens, *added, *own} if name.strip()}
