"""Raw folders as users download them, from the first look to the report, through the command line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from mars_core.demo import demo_backbone_path
from mars_core.demo.data import split_drawings
from mars_core.demo.drawings import load_drawings
from mars_core.demo.questions import ask
from mars_core.demo.scenes import by_colour, render_scene, sample_scene
from tasks.storage.folder import Revision

SCIENCEQA = {"train": 96, "val": 16, "test": 16}
SUBJECTS = ("natural science", "language science", "social science")


def write_scienceqa(folder: Path) -> None:
    """problems.json by id, pid_splits.json, images/<split>/<id>/image.png; every third problem has no image."""
    draw = random.Random(0)
    drawings = split_drawings(load_drawings(with_kind_only=True), seed=0)
    problems, splits = {}, {}
    pid = 0
    for (split, count), shown in zip(SCIENCEQA.items(), drawings.values(), strict=True):
        splits[split] = []
        for number in range(count):
            pid += 1
            scene = sample_scene(by_colour(shown), draw)
            question = ask(scene, draw)[0]
            wrong = [option for option in question.options if option != question.answer]
            choices = [question.answer, *draw.sample(wrong, min(3, len(wrong)))]
            draw.shuffle(choices)
            pictured = number % 3 != 2
            problems[str(pid)] = {
                "question": question.text,
                "choices": choices,
                "answer": choices.index(question.answer),
                "hint": "" if pictured else f"The ground is {scene.ground}.",
                "image": "image.png" if pictured else None,
                "task": "closed choice",
                "grade": "grade2",
                "subject": SUBJECTS[number % 3],
                "topic": "pictures",
                "category": "scenes",
                "skill": "look at a picture",
                "lecture": "",
                "solution": f"It is {question.answer}.",
                "split": split,
            }
            splits[split].append(str(pid))
            if pictured:
                place = folder / "images" / split / str(pid)
                place.mkdir(parents=True)
                render_scene(scene).save(place / "image.png")
    splits["trainval"] = splits["train"] + splits["val"]
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps(splits))


def write_llava(folder: Path, demo_data: Path) -> None:
    """One JSON and a folder of images, as LLaVA-Instruct comes: no splits, no task types."""
    rows = [
        row
        for split in ("train", "validation", "test")
        for row in json.loads((demo_data / f"{split}.json").read_text())
    ]
    for row in rows:
        row.pop("task", None)
    (folder / "llava_instruct.json").write_text(json.dumps(rows))
    (folder / "images").symlink_to(demo_data / "images")


def write_study(folder: Path, data: dict[str, object]) -> Path:
    file = folder / "study.yaml"
    settings = {
        "study": "study",
        "model": str(demo_backbone_path()),
        "data": data,
        "recipe": {"learning_rate": 1e-3, "max_tokens": 512},
        "calibration": {"ranks": [2, 4], "samples": 64, "smallest_size": 8},
        "fit": {"bootstrap": 20, "starts": 8},
        "device": "cpu",
    }
    file.write_text(yaml.safe_dump(settings))
    return file


def mars(*arguments: str) -> str:
    """Run the command in a process of its own; returns what it printed."""
    command = [sys.executable, "-c", "from flows.cli.main import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_reported(folder: Path, shown: Sequence[str]) -> None:
    """Hold a finished study's report against what it was made of."""
    revision = Revision(folder / "study", 1)
    page = revision.path("report.html").read_text(encoding="utf-8")
    pair = json.loads(revision.path("choice.json").read_text())["pair"]
    scores = json.loads(revision.path("evaluation.json").read_text())
    assert set(scores["chosen"]["by_task"]) == set(shown)
    for text in (*shown, f"me{pair[0]}-llm{pair[1]}", f"{scores['chosen']['overall']['perplexity']:.3f}"):
        assert text in page
    assert (revision.path("final", f"me{pair[0]}-llm{pair[1]}", "adapter") / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_scienceqa_folder_goes_from_its_files_to_a_report(tmp_path):
    write_scienceqa(tmp_path)
    study = write_study(tmp_path, {"train": ".", "validation": ".", "test": ".", "validation_split": "val"})
    found = json.loads(mars("data", "check", "--json", str(study)))
    assert (found["rows"], found["bad"]) == (sum(SCIENCEQA.values()), [])
    assert {name: found["splits"][name] for name in ("train", "validation", "test")} == {
        "train": 96,
        "validation": 16,
        "test": 16,
    }
    assert found["images_per_sample"] == {"0": 42, "1": 86}  # of 96, 16 and 16 problems 32, 5 and 5 have no image
    mars("run", str(study))
    assert_reported(tmp_path, SUBJECTS)


@pytest.mark.slow
def test_a_llava_folder_goes_from_its_files_to_a_report(tmp_path, demo_data):
    write_llava(tmp_path, demo_data)
    data = {"train": "llava_instruct.json", "images": "images", "validation_samples": 12, "test_samples": 12}
    study = write_study(tmp_path, data)
    found = json.loads(mars("data", "check", "--json", str(study)))
    assert (found["rows"], found["bad"]) == (88, [])
    assert {name: found["splits"][name] for name in ("train", "validation", "test")} == {
        "train": 64,
        "validation": 12,
        "test": 12,
    }
    mars("run", str(study))
    scores = json.loads(Revision(tmp_path / "study", 1).path("evaluation.json").read_text())
    assert_reported(tmp_path, list(scores["chosen"]["by_task"]))
