"""What is asked about a scene: short captions, attribute questions, conversations and multiple choice."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mars_core.demo.drawings import DRAWING_COLOURS
from mars_core.demo.kinds import KINDS
from mars_core.demo.scenes import GROUNDS, PLACES, SIZES, Placed, Scene

LETTER_PROMPT = "Answer with the option's letter from the given choices directly."

TASKS: tuple[tuple[str, float], ...] = (
    ("caption", 0.15),
    ("attribute", 0.25),
    ("conversation", 0.40),
    ("choice", 0.20),
)
"""Task types and their shares of the samples."""

NUMBERS: tuple[str, ...] = ("one", "two", "three")


@dataclass(frozen=True)
class Question:
    """A question with a short answer. options: all the words that could stand as its answer."""

    text: str
    answer: str
    options: tuple[str, ...]


def sample_turns(task: str, scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """The (prompt, answer) turns of one sample of this task type."""
    return _TURNS[task](scene, rng)


def caption(scene: Scene) -> str:
    """A one-sentence description that names every drawing's size, colour, kind and place."""
    parts = [f"a {o.size} {o.colour} {o.kind} at the {o.place}" for o in scene.objects]
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"{listed[0].upper()}{listed[1:]} on a {scene.ground} ground."


def ask(scene: Scene, rng: random.Random) -> list[Question]:
    """One question of each sort about the scene, in random order; those about one thing draw it at random."""
    asked = [
        Question("What colour is the ground?", scene.ground, tuple(GROUNDS)),
        Question("How many things are there?", NUMBERS[len(scene.objects) - 1], NUMBERS),
        *(about(rng.choice(scene.objects)) for about in (_where, _how_large, _what_kind, _what_colour)),
    ]
    rng.shuffle(asked)
    return asked


def choice_prompt(question: Question, rng: random.Random) -> tuple[str, str]:
    """The question as multiple choice with up to four options, scored as in ScienceQA: (prompt, letter)."""
    wrong = [option for option in question.options if option != question.answer]
    options = [question.answer, *rng.sample(wrong, min(3, len(wrong)))]
    rng.shuffle(options)
    letters = "ABCD"[: len(options)]
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)]
    return "\n".join([question.text, *lines, LETTER_PROMPT]), letters[options.index(question.answer)]


def _where(placed: Placed) -> Question:
    return Question(f"Where is the {placed.colour} thing?", placed.place, PLACES)


def _how_large(placed: Placed) -> Question:
    return Question(f"How large is the {placed.colour} thing?", placed.size, tuple(SIZES))


def _what_kind(placed: Placed) -> Question:
    return Question(f"What kind of thing is at the {placed.place}?", placed.kind, KINDS)


def _what_colour(placed: Placed) -> Question:
    return Question(f"What colour is the thing at the {placed.place}?", placed.colour, DRAWING_COLOURS)


def _caption_turns(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    prompt = rng.choice(("Describe the picture.", "What is in the picture?", "Write a short caption."))
    return [(prompt, caption(scene))]


def _attribute_turns(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    question = ask(scene, rng)[0]
    return [(question.text, question.answer)]


def _conversation_turns(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    asked = ask(scene, rng)[: rng.randint(4, 6)]
    return [(question.text, question.answer) for question in asked]


def _choice_turns(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    return [choice_prompt(ask(scene, rng)[0], rng)]


_TURNS: dict[str, Callable[[Scene, random.Random], list[tuple[str, str]]]] = {
    "caption": _caption_turns,
    "attribute": _attribute_turns,
    "conversation": _conversation_turns,
    "choice": _choice_turns,
}
