"""Marks, accuracy by group and ScienceQA's subgroups."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mars_core.data.readers import read_samples
from mars_core.evaluation.generation.accuracy import summary
from mars_core.evaluation.generation.marking import SCHEMA, mark
from mars_core.evaluation.generation.questions import Question
from mars_core.evaluation.generation.scienceqa import subgroups

PROBLEMS = {
    "1": {"subject": "natural science", "grade": "grade2", "hint": "Read.", "image": "image.png"},
    "2": {"subject": "social science", "grade": "grade11", "hint": "", "image": None},
    "3": {"subject": "language science", "grade": "grade6", "hint": "Read.", "image": None},
    "4": {"subject": "natural science", "grade": "grade7", "hint": "", "image": "image.png"},
}
SUBGROUPS = {
    "1": ("NAT", "TXT", "IMG", "G1-6"),
    "2": ("SOC", "NO", "G7-12"),
    "3": ("LAN", "TXT", "G1-6"),
    "4": ("NAT", "IMG", "G7-12"),
}


def whole(problem):
    return problem | {"question": "Which?", "choices": ["yes", "no"], "answer": 1, "split": "test"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "problems.json").write_text(json.dumps({name: whole(p) for name, p in PROBLEMS.items()}))
    return tmp_path


def question_of(sample):
    asked, answer = sample.turns
    return Question(sample, 0, asked.text, answer.text, "AB", 10)


def test_subgroups_of_a_scienceqa_folder(folder):
    samples = read_samples(str(folder), None, None, None)
    assert {sample.id: subgroups(sample) for sample in samples} == SUBGROUPS


def test_subgroups_of_a_parquet_file_come_from_its_columns(tmp_path):
    rows = [whole(p) | {"id": name, "image": None} for name, p in PROBLEMS.items()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    samples = read_samples(str(tmp_path / "test.parquet"), None, None, None)
    without_images = {name: tuple(g for g in groups if g != "IMG") for name, groups in SUBGROUPS.items()}
    without_images["4"] = ("NAT", "NO", "G7-12")
    assert {sample.id: subgroups(sample) for sample in samples} == without_images


def test_other_samples_have_no_subgroups(samples):
    assert {subgroups(sample) for sample in samples} == {()}


def test_accuracy_of_full_and_image_split_and_of_every_group(folder):
    """Counts by hand: problems 1 and 3 are answered right, 2 wrong, 4 without a letter."""
    predictions = {"1": "B", "2": "A.", "3": "The answer is B.", "4": "both"}
    samples = read_samples(str(folder), None, None, None)
    rows = [mark(question_of(sample), predictions[sample.id], subgroups(sample)) for sample in samples]
    table = pa.Table.from_pylist(rows, schema=SCHEMA).to_pandas()
    found = summary(table, 3).to_json()
    counts = {name: (score["correct"], score["n"]) for name, score in found["scienceqa"].items()}
    assert counts == {
        "NAT": (1, 2), "SOC": (0, 1), "LAN": (1, 1), "TXT": (2, 2), "IMG": (1, 2), "NO": (0, 1),
        "G1-6": (2, 2), "G7-12": (0, 2),
    }  # fmt: skip
    assert (found["overall"]["correct"], found["overall"]["n"]) == (2, 4)
    assert (found["with_image"]["correct"], found["with_image"]["n"]) == (1, 2)
    assert {task: score["n"] for task, score in found["by_task"].items()} == {
        "language science": 1, "natural science": 2, "social science": 1,
    }  # fmt: skip
    assert (found["methods"], found["too_long"]) == ({"letter": 4}, 3)
    assert json.loads(json.dumps(found)) == found


def test_the_interval_is_wilsons():
    """By his formula, z = 1.959964: it never leaves [0, 1], unlike the normal approximation."""
    n, right, z = 20, 19, 1.959964
    rows = pd.DataFrame({"correct": [True] * right + [False], "has_image": False, "method": "text", "task": "t"})
    rows["groups"] = [[] for _ in range(n)]
    p, low, high = right / n, *summary(rows, 0).overall.interval
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # z has seven digits here
    assert (low, high) == pytest.approx(((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)), abs=1e-6)


def test_other_questions_are_marked_by_normalised_text(samples):
    question = Question(samples[0], 0, "What colour?", "red", "", 10)
    assert mark(question, " Red. ", ())["correct"]
    assert not mark(question, "dark red", ())["correct"]
    assert mark(question, "A", ())["letter"] is None
