"""How many tokens a sample has, without decoding its images.

How many tokens an image takes depends on its size alone, and those of a sound on its length. So a blank image of that
size, or silence of that length, is processed instead, once per combination, and its expansion is put into the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from mars_core.data.answer_spans import answer_spans
from mars_core.data.chat import ChatText, markers_of, render
from mars_core.data.control_tokens import ControlTokens
from mars_core.data.conversation_rules import require_rules
from mars_core.data.images import image_size
from mars_core.data.processing import Expansion, process, token_ids
from mars_core.data.records import Sample
from mars_core.data.sounds import load_sound, sampling_rate

# (width, height) of an image, (length,) of a sound.
_Sizes: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a sample: all, those its images and sounds take (their tags too), those of its answers with their ends.

    control: a control token of the model that stands in its text, if any.
    """

    tokens: int
    images: int
    answers: int
    control: str | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """A rendered sample.

    tokens: their number. spans: where its answers stand in them, [start, end). control: as in `Lengths`.
    """

    chat: ChatText
    tokens: int
    spans: tuple[tuple[int, int], ...]
    control: str | None


class TokenCounter:
    """Counts the tokens of samples under one processor; expansions are computed once per image sizes.

    A sample that training would refuse is refused here, so that it is known before anything expensive.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._control = ControlTokens(processor)
        self._expansions: dict[_Sizes, Expansion] = {}

    def __call__(self, sample: Sample) -> int:
        """Number of tokens of `sample`, image tokens included.

        Raises:
            ValueError: an image cannot be found or read, the conversation breaks a rule, or the chat template, the
                processor or its tokenizer refuse it or do not allow exact labels.
        """
        return self.count(sample).tokens

    def measure(self, sample: Sample) -> Lengths:
        """The tokens of `sample` by what they are for.

        Raises:
            ValueError: as when counting.
        """
        counted = self.count(sample)
        with _naming(sample):
            # Without an expansion each image is one token of the text.
            without = len(token_ids(counted.chat.text, Expansion(), self._processor)) - len(sample.media)
            answers = sum(end - start for start, end in counted.spans)
            images = counted.tokens - without if sample.media else 0
            return Lengths(counted.tokens, images, answers, counted.control)

    def last_answer(self, sample: Sample) -> tuple[int, int]:
        """Tokens before the last answer of `sample`, image tokens included, and of that answer with its end.

        Raises:
            ValueError: as when counting.
        """
        start, end = self.count(sample).spans[-1]
        return start, end - start

    def count(self, sample: Sample) -> Counted:
        """The chat text of `sample` with its tokens.

        Raises:
            ValueError: as when counting.
        """
        with _naming(sample):
            return self._count(sample)

    def _count(self, sample: Sample) -> Counted:
        require_rules(sample)
        turns = tuple(sample.turns)
        chat, control = render(turns, self._processor, markers_of(sample)), self._control.found_in(sample)
        expansion = self._expansion(chat.text, self._sizes(sample), control)
        ids = token_ids(chat.text, expansion, self._processor)
        return Counted(chat, len(ids), answer_spans(chat, ids, expansion, self._processor), control)

    def _sizes(self, sample: Sample) -> _Sizes:
        lengths = (load_sound(sound, sampling_rate(self._processor)).shape for sound in sample.sounds)
        return (*map(image_size, sample.images), *lengths)

    def _expansion(self, text: str, sizes: _Sizes, control: str | None) -> Expansion:
        if control is not None:
            return self._expansion_beside(control, text, sizes)
        if sizes not in self._expansions:
            self._expansions[sizes] = self._expansion_of(sizes, text)
        return self._expansions[sizes]

    def _expansion_of(self, sizes: _Sizes, text: str) -> Expansion:
        try:
            return self._processed(text, sizes)
        except ValueError as error:
            shapes = ", ".join(" x ".join(map(str, size)) for size in sizes if len(size) == 2)
            hint = f" (its images have {shapes} pixels: crop, pad or shrink one that it cannot take)" if shapes else ""
            raise ValueError(f"{error}{hint}") from error

    def _expansion_beside(self, control: str, text: str, sizes: _Sizes) -> Expansion:
        """Of a row whose text the processor may take for images: what other rows gave says nothing of it."""
        try:
            return self._processed(text, sizes)
        except ValueError as error:
            raise ValueError(
                f"the text has {control!r}, a control token of the model, and {error.args[0].rstrip('.')}; write it in "
                "another way, such as with spaces, or remove the row"
            ) from error

    def _processed(self, text: str, sizes: _Sizes) -> Expansion:
        images = [Image.new("RGB", (size[0], size[1])) for size in sizes if len(size) == 2]
        silence = [np.zeros(size, dtype=np.float32) for size in sizes if len(size) == 1]
        return process(text, images, self._processor, silence).expansion


@contextmanager
def _naming(sample: Sample) -> Iterator[None]:
    """Say of which sample a complaint is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{sample.source}: {error}") from error
