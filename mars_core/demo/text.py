"""Text on which the demo's LLM is pre-trained: names, plain facts, and questions that the text itself answers.

No picture belongs to it and nothing in it says what a picture of the demo shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from mars_core.demo.drawings import DRAWING_COLOURS
from mars_core.demo.kinds import KIND_OF_NAME, KINDS
from mars_core.demo.questions import LETTER_PROMPT
from mars_core.demo.scenes import PLACES

Message = dict[str, str]
Document = list[Message]
"""A conversation: messages with `role` and `content`."""

_NUMBERS = ("one", "two", "three")
_SIZES = ("small", "large")


def sample_documents(names: Sequence[str], n: int, rng: random.Random) -> list[Document]:
    """Draw `n` conversations. names: Unicode names to talk about, words parted by blanks."""
    writers: tuple[Callable[[Sequence[str], random.Random], Document], ...] = (
        _name_phrase,
        _kind_fact,
        _kind_question,
        _reading,
        _reading,
        _reading_choice,
    )
    return [rng.choice(writers)(names, rng) for _ in range(n)]


def _chat(question: str, answer: str) -> Document:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _name_phrase(names: Sequence[str], rng: random.Random) -> Document:
    name = rng.choice(names)
    question = rng.choice(("Name something.", "Write a name.", "What else is there?"))
    return _chat(question, rng.choice((f"{name}", f"A {name}.", f"This is a {name}.")))


def _kind_fact(names: Sequence[str], rng: random.Random) -> Document:
    name, kind = rng.choice(sorted(KIND_OF_NAME.items()))
    return _chat(f"Tell me about {_words(name)}.", f"{_words(name)} is a kind of {kind}.")


def _kind_question(names: Sequence[str], rng: random.Random) -> Document:
    name, kind = rng.choice(sorted(KIND_OF_NAME.items()))
    return _chat(f"What kind of thing is {_words(name)}?", kind)


def _reading(names: Sequence[str], rng: random.Random) -> Document:
    text, asked = _story(rng)
    turns = rng.sample(asked, 2)
    first, second = (_chat(question, answer) for question, answer, _ in turns)
    first[0]["content"] = f"{text}\n{first[0]['content']}"
    return [*first, *second]


def _reading_choice(names: Sequence[str], rng: random.Random) -> Document:
    text, asked = _story(rng)
    question, answer, words = rng.choice(asked)
    options = [answer, *rng.sample([word for word in words if word != answer], min(3, len(words) - 1))]
    rng.shuffle(options)
    letters = "ABCD"[: len(options)]
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
    return _chat("\n".join([text, question, *lines, LETTER_PROMPT]), letters[options.index(answer)])


def _story(rng: random.Random) -> tuple[str, list[tuple[str, str, tuple[str, ...]]]]:
    """A short text about things on a shelf, and (question, answer, possible answers) about it."""
    count = rng.randint(1, 3)
    colours = rng.sample(DRAWING_COLOURS, count)
    places = rng.sample(PLACES, count)
    asked: list[tuple[str, str, tuple[str, ...]]] = [("How many things are there?", _NUMBERS[count - 1], _NUMBERS)]
    parts = []
    for colour, place in zip(colours, places, strict=True):
        size, kind = rng.choice(_SIZES), rng.choice(KINDS)
        parts.append(f"a {size} {colour} {kind} at the {place}")
        asked += [
            (f"Where is the {colour} thing?", place, PLACES),
            (f"How large is the {colour} thing?", size, _SIZES),
            (f"What colour is the thing at the {place}?", colour, DRAWING_COLOURS),
            (f"What kind of thing is at the {place}?", kind, KINDS),
        ]
    listed = parts[0] if count == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"On the shelf there is {listed}.", asked


def _words(name: str) -> str:
    return name.replace("_", " ")
