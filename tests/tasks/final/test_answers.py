"""A ScienceQA folder through generation and marking, with questions with and without picture and hint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tasks.final.answers
from mars_core.demo import demo_backbone_path
from mars_core.evaluation.choices import given_letter
from tasks.final.answers import answers_path, asked_questions, generate_answers, write_answers
from tasks.inputs.opened import Inputs
from tasks.settings.data import DataConfig
from tasks.settings.final import EvaluationConfig
from tasks.settings.study import StudyConfig
from tasks.storage.folder import Revision
from tasks.study.opened import Study

SUBJECTS = ("natural science", "social science", "language science")


def write_scienceqa(folder: Path, count: int = 24) -> None:
    """Problems in ScienceQA's own layout: every second has a picture, every third a hint; options from 2 to 4."""
    random = np.random.default_rng(0)
    problems, splits = {}, {"train": [], "val": [], "test": []}
    for number in range(1, count + 1):
        split = ("train", "val", "test")[number % 3]
        splits[split].append(str(number))
        picture = "image.png" if number % 2 else None
        if picture:
            place = folder / "images" / split / str(number)
            place.mkdir(parents=True)
            Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(place / picture)
        problems[str(number)] = {
            "question": f"Which is number {number}?",
            "choices": ["red", "green", "blue", "white"][: 2 + number % 3],
            "answer": number % 2,
            "hint": "Look at it." if number % 4 == 0 else "",
            "image": picture,
            "subject": SUBJECTS[number % 2],
            "grade": f"grade{number % 12 + 1}",
            "split": split,
        }
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps(splits))


@pytest.fixture
def config(tmp_path):
    write_scienceqa(tmp_path / "sqa")
    folder = str(tmp_path / "sqa")
    data = DataConfig(train=folder, validation=folder, test=folder, validation_split="val")
    return StudyConfig(study=str(tmp_path / "study"), model=str(demo_backbone_path()), data=data, device="cpu")


def test_scienceqa_is_scored_over_full_and_image_split_and_by_subgroup(config):
    """Counts from the problems as they were written; test problems are 2, 5, 8, ... 23."""
    revision, asked, base = Revision(Path(config.study), 1), asked_questions(Inputs(config)), Inputs(config).base_model
    found = generate_answers(Study(config, revision), base, base.model, "base", None, asked).to_json()
    rows = pd.read_parquet(answers_path(revision, "base")).set_index("sample_id")
    numbers = range(2, 24, 3)
    assert sorted(map(int, rows.index)) == list(numbers)
    assert (
        rows.correct
        == [
            given_letter(p, "ABCD"[: 2 + int(n) % 3]) == a
            for n, p, a in zip(rows.index, rows.prediction, rows.answer, strict=True)
        ]
    ).all()
    assert found["overall"]["n"] == found["multiple_choice"]["n"] == 8
    assert found["with_image"]["n"] == sum(n % 2 for n in numbers)
    counts = {name: score["n"] for name, score in found["scienceqa"].items()}
    lower = sum(n % 12 + 1 <= 6 for n in numbers)
    hinted = [n for n in numbers if n % 4 == 0]
    assert counts == {
        "NAT": 4, "SOC": 4, "TXT": len(hinted), "IMG": 4, "NO": 4 - len(hinted), "G1-6": lower, "G7-12": 8 - lower,
    }  # fmt: skip


def test_answers_of_other_weights_are_not_taken_up(config, tmp_path, monkeypatch):
    """A full-rank checkpoint may be several files; the first part is stored, then the call is stopped."""
    asked, base, calls = asked_questions(Inputs(config)), Inputs(config).base_model, []
    generate = tasks.final.answers.greedy_tokens
    monkeypatch.setattr(tasks.final.answers, "PART_ANSWERS", 4)
    weights, path = tmp_path / "model", tmp_path / "answers.parquet"
    weights.mkdir()
    for number in (1, 2):
        (weights / f"model-0000{number}-of-00002.safetensors").write_bytes(b"weights")

    def answer(stop_after):
        calls.clear()

        def counted(model, prompts, decoding):
            if len(calls) >= stop_after:
                raise KeyboardInterrupt
            calls.extend(prompts)
            return generate(model, prompts, decoding)

        monkeypatch.setattr(tasks.final.answers, "greedy_tokens", counted)
        found = write_answers(path, Inputs(config), base, base.model, "full-rank", weights, asked)
        return found.overall.n

    with pytest.raises(KeyboardInterrupt):
        answer(stop_after=4)
    assert list(tmp_path.glob("parts-*"))
    (weights / "model-00002-of-00002.safetensors").write_bytes(b"others")
    assert answer(stop_after=100) == len(calls) == 8  # all anew
    assert not list(tmp_path.glob("parts-*"))


def test_long_answers_are_counted_and_nothing_is_asked_at_0(config):
    none = config.model_copy(update={"evaluation": EvaluationConfig(answer_tokens=0)})
    assert asked_questions(Inputs(none)).questions == ()
    short = config.model_copy(update={"evaluation": EvaluationConfig(answer_tokens=1)})
    assert (len(asked_questions(Inputs(short)).questions), asked_questions(Inputs(short)).n_long) == (
        0,
        8,
    )  # a letter and its end are 2
    revision, base = Revision(Path(config.study), 1), Inputs(config).base_model
    assert (
        generate_answers(Study(none, revision), base, base.model, "base", None, asked_questions(Inputs(none))) is None
    )
