"""Text on which the demo's LLM is pre-trained: names, plain facts, and questions that the text itself answers.

No picture belongs to it, and nothing in it says what a picture of the demo shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from mars_core.demo.drawings import DRAWING_COLOURS, Drawing
from mars_core.demo.kinds import KIND_OF_NAME, KINDS
from mars_core.demo.questions import NUMBERS, Question, ask, choice_prompt
from mars_core.demo.scenes import GROUNDS, PLACES, SIZES, Placed, Scene

Message = dict[str, str]
Document = list[Message]
"""A conversation: messages with `role` and `content`."""

LOOKS: dict[str, tuple[str, ...]] = {
    "shade": ("pale", "middling", "dark"),
    "shape": ("tall", "even", "wide"),
    "extent": ("slight", "medium", "big"),
}
"""What a grey drawing looks like: these words occur in no answer of the demo."""

_NOTED: dict[str, tuple[str, ...]] = {
    **LOOKS,
    "colour": tuple(GROUNDS),
    "kind": KINDS,
    "number": NUMBERS,
    "size": tuple(SIZES),
    "place": PLACES,
}
_ASKED: dict[str, tuple[str, ...]] = {
    "colour": ("What is the colour?", "What colour is it?", "What colour is the ground?"),
    "kind": ("What is the kind?", "What kind of thing is it?"),
    "number": ("What is the number?", "How many things are there?"),
    "size": ("What is the size?", "How large is it?"),
    "place": ("What is the place?", "Where is it?"),
}


def sample_documents(names: Sequence[str], n: int, rng: random.Random) -> list[Document]:
    """Draw `n` conversations. names: Unicode names to talk about, words parted by blanks."""
    return [rng.choice(_WRITERS)(names, rng) for _ in range(n)]


def sample_reading(n: int, rng: random.Random) -> list[Document]:
    """Draw `n` conversations whose every question is answered by the text before it."""
    return [rng.choice((_notes, _reading, _reading_choice))((), rng) for _ in range(n)]


def asked_about(features: dict[str, str], noted: str, rng: random.Random) -> Document:
    """Questions, in random order, about features (name -> word) that `noted` holds in some form."""
    document: Document = []
    for name in rng.sample(sorted(features), min(4, len(features))):
        question = rng.choice(_ASKED.get(name, (f"What is the {name}?",)))
        document += _chat(question if document else f"{noted}\n{question}", features[name])
    return document


def _chat(question: str, answer: str) -> Document:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _name_phrase(names: Sequence[str], rng: random.Random) -> Document:
    name = rng.choice(names)
    question = rng.choice(("Name something.", "Write a name.", "What else is there?"))
    return _chat(question, rng.choice((name, f"A {name}.", f"This is a {name}.")))


def _kind_question(names: Sequence[str], rng: random.Random) -> Document:
    name, kind = rng.choice(sorted(KIND_OF_NAME.items()))
    return _chat(f"What kind of thing is {name.replace('_', ' ')}?", kind)


def _notes(names: Sequence[str], rng: random.Random) -> Document:
    features = {name: rng.choice(_NOTED[name]) for name in rng.sample(sorted(_NOTED), rng.randint(3, 5))}
    words = [*features.values()] * rng.randint(1, 4)
    rng.shuffle(words)
    return asked_about(features, " ".join(words), rng)


def _reading(names: Sequence[str], rng: random.Random) -> Document:
    text, asked = _story(rng)
    document: Document = []
    for question in asked:
        document += _chat(question.text if document else f"{text}\n{question.text}", question.answer)
    return document


def _reading_choice(names: Sequence[str], rng: random.Random) -> Document:
    text, asked = _story(rng)
    prompt, answer = choice_prompt(asked[0], rng)
    return _chat(f"{text}\n{prompt}", answer)


def _story(rng: random.Random) -> tuple[str, list[Question]]:
    """A short text about an invented scene, and questions that it answers."""
    scene = _invented_scene(rng)
    parts = [f"{o.place} {o.size} {o.colour} {o.kind}" for o in scene.objects]
    rng.shuffle(parts)
    return f"ground {scene.ground}, {', '.join(parts)}", ask(scene, rng)


def _invented_scene(rng: random.Random) -> Scene:
    count = rng.randint(1, len(NUMBERS))
    colours, places = rng.sample(DRAWING_COLOURS, count), rng.sample(PLACES, count)
    objects = [_invented(colour, place, rng) for colour, place in zip(colours, places, strict=True)]
    return Scene(ground=rng.choice(tuple(GROUNDS)), ground_rgb=(0, 0, 0), objects=tuple(objects))


def _invented(colour: str, place: str, rng: random.Random) -> Placed:
    nothing = np.zeros((0, 0, 4), dtype=np.uint8)
    drawing = Drawing(code="", name="", kind=rng.choice(KINDS), colour=colour, pixels=nothing)
    return Placed(drawing, left=0, top=0, side=0, size=rng.choice(tuple(SIZES)), place=place)


_WRITERS: tuple[Callable[[Sequence[str], random.Random], Document], ...] = (
    _name_phrase,
    _kind_question,
    _notes,
    _notes,
    _notes,
    _reading,
    _reading,
    _reading_choice,
)
