"""How many tokens a sample has, without decoding its images.

How many tokens an image takes depends on its size alone. So a blank image of that size is processed
instead, once per combination of sizes, and its expansion is put into the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from PIL import Image

from mars_core.data.chat import ChatText, render
from mars_core.data.conversation_rules import require_rules
from mars_core.data.images import image_size
from mars_core.data.processing import Expansion, process, token_ids
from mars_core.data.records import Sample

_Sizes: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a sample: all, those its images take (their tags too), those of its answers with their ends."""

    tokens: int
    images: int
    answers: int


class TokenCounter:
    """Counts the tokens of samples under one processor; expansions are computed once per image sizes."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._expansions: dict[_Sizes, Expansion] = {}

    def __call__(self, sample: Sample) -> int:
        """Number of tokens of `sample`, image tokens included.

        Raises:
            ValueError: an image cannot be found or read, or the conversation breaks a rule.
        """
        with _naming(sample):
            chat, expansion = self._rendered(sample)
            return len(token_ids(chat.text, expansion, self._processor))

    def measure(self, sample: Sample) -> Lengths:
        """The tokens of `sample` by what they are for; answers are counted one by one.

        Raises:
            ValueError: as when counting.
        """
        with _naming(sample):
            chat, expansion = self._rendered(sample)
            tokens = len(token_ids(chat.text, expansion, self._processor))
            # Without an expansion each image is one token of the text.
            without = len(token_ids(chat.text, Expansion(), self._processor)) - len(sample.images)
            answers = [chat.text[start:end] for start, end in chat.answers]
            ids = self._processor.tokenizer(answers, add_special_tokens=False)["input_ids"]
            return Lengths(tokens, tokens - without if sample.images else 0, sum(map(len, ids)))

    def last_answer(self, sample: Sample) -> tuple[int, int]:
        """Tokens before the last answer of `sample`, image tokens included, and of that answer with its end.

        Raises:
            ValueError: as when counting.
        """
        with _naming(sample):
            chat, expansion = self._rendered(sample)
            before, upto = (len(token_ids(chat.text[:end], expansion, self._processor)) for end in chat.answers[-1])
            return before, upto - before

    def _rendered(self, sample: Sample) -> tuple[ChatText, Expansion]:
        require_rules(sample)
        chat = render(tuple(sample.turns), self._processor)
        return chat, self._expansion(chat.text, tuple(image_size(image) for image in sample.images))

    def _expansion(self, text: str, sizes: _Sizes) -> Expansion:
        if sizes not in self._expansions:
            blanks = [Image.new("RGB", size) for size in sizes]
            self._expansions[sizes] = process(text, blanks, self._processor).expansion
        return self._expansions[sizes]


@contextmanager
def _naming(sample: Sample) -> Iterator[None]:
    """Say of which sample a complaint is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{sample.source}: {error}") from error
