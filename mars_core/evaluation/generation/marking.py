"""A generated answer marked right or wrong, and the columns that are kept of it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from mars_core.evaluation.choices import given_letter
from mars_core.evaluation.generation.normalise import normalised
from mars_core.evaluation.generation.questions import Question

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("answer_number", pa.int32(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("has_image", pa.bool_(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("prediction", pa.string(), nullable=False),
        pa.field("letter", pa.string()),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("groups", pa.list_(pa.string()), nullable=False),
    ]
)
"""One row per generated answer. letter: the option that the prediction gives, null if none or not multiple choice.
groups: ScienceQA's subgroups, empty for other data."""


def mark(question: Question, prediction: str, groups: tuple[str, ...]) -> dict[str, Any]:
    """A row of `SCHEMA`: by the option's letter for multiple choice, else by exact match after normalisation."""
    letter = given_letter(prediction, question.letters) if question.letters else None
    if question.letters:
        correct = letter == question.expected
    else:
        correct = normalised(prediction) == normalised(question.expected)
    return {
        "sample_id": question.sample.id,
        "answer_number": question.number,
        "task": question.sample.task,
        "has_image": bool(question.sample.images),
        "method": question.method,
        "question": question.text,
        "prediction": prediction,
        "letter": letter,
        "answer": question.expected,
        "correct": correct,
        "groups": list(groups),
    }
