"""The table of docs/bad-input.md: every case in it is made, and the message shown is the one printed there.

`…` in the table stands for what depends on where the files are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app

PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"


def rows(study: Path) -> list[dict[str, Any]]:
    return json.loads((study.parent / "data" / "train.json").read_text())


def write_rows(study: Path, changed: list[dict[str, Any]]) -> None:
    (study.parent / "data" / "train.json").write_text(json.dumps(changed))


def spoil_row(**changes: Any) -> Callable[[Path], None]:
    """Change the third training row."""

    def spoil(study: Path) -> None:
        changed = rows(study)
        changed[2] |= changes
        write_rows(study, changed)

    return spoil


def settings(**sections: Any) -> Callable[[Path], None]:
    """Change the study file; None takes a key out."""

    def spoil(study: Path) -> None:
        values = yaml.safe_load(study.read_text())
        for name, value in sections.items():
            values[name] = values[name] | value if isinstance(value, dict) and name in values else value
        study.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))

    return spoil


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def image_of(study: Path) -> Path:
    return study.parent / "data" / "images" / rows(study)[2]["image"]


def missing_image(study: Path) -> None:
    image_of(study).unlink()


def corrupt_image(study: Path) -> None:
    image_of(study).write_bytes(image_of(study).read_bytes()[:60])


def no_conversations(study: Path) -> None:
    write_rows(study, [{"question": "a", "reply": "b"}])


def shared_image(study: Path) -> None:
    (study.parent / "data" / "test.json").write_text(json.dumps(rows(study)[:8]))


def unknown_model(study: Path) -> None:
    folder = study.parent / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    settings(model=str(folder))(study)


def not_a_checkpoint(study: Path) -> None:
    settings(model=str(study.parent / "data"))(study)


def not_yaml(study: Path) -> None:
    study.write_text("study: [runs\nmodel: x\n")


RUN = ("run", "{study}")
CASES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a missing image": (missing_image, RUN),
    "a corrupt image": (corrupt_image, RUN),
    "more markers than images": (spoil_row(conversations=talk("<image><image> What is it?", "a cat")), RUN),
    "an image path that leaves the folder": (spoil_row(image="../../secret.png"), RUN),
    "an empty answer": (spoil_row(conversations=talk("<image>\nWhat is it?", "")), RUN),
    "two questions in a row": (spoil_row(conversations=talk("<image>\nWhat is it?", "a cat")[:1] * 2), RUN),
    "a placeholder of the model in a question": (
        spoil_row(conversations=talk("<image>\nWhat does <video> do?", "a cat")),
        RUN,
    ),
    "half a character": (spoil_row(conversations=talk("<image>\nWhat is \ud83d?", "a cat")), RUN),
    "a row with a video": (spoil_row(videos=["a.mp4"]), RUN),
    "no answer to train on": (
        spoil_row(conversations=[talk("<image>\nWhat is it?", "a cat")[0], talk("", "a cat")[1] | {"weight": 0}]),
        RUN,
    ),
    "rows of an unknown form": (no_conversations, RUN),
    "an unknown format": (settings(data={"format": "coco"}), RUN),
    "no such file": (settings(data={"train": "data/none.json"}), RUN),
    "a folder of several datasets": (settings(data={"train": "data"}), RUN),
    "no rows": (lambda study: write_rows(study, []), RUN),
    "every sample too long": (settings(recipe={"max_tokens": 16}), RUN),
    "too few samples": (settings(calibration={"smallest_size": 128, "samples": 1024}), RUN),
    "one image in two splits": (shared_image, RUN),
    "an unknown key": (settings(recipe={"learning_rat": 1e-4}), RUN),
    "a key in the wrong section": (settings(epochs=3), RUN),
    "a missing key": (settings(model=None), RUN),
    "a value out of range": (settings(recipe={"learning_rate": 0}), RUN),
    "one rank alone": (settings(calibration={"ranks": [8]}), RUN),
    "rank 0 and one other": (settings(calibration={"ranks": [0, 8]}), RUN),
    "ranks of one module alone": (settings(calibration={"ranks": {"me": [8, 16]}}), RUN),
    "one learning rate to calibrate at": (settings(calibration={"learning_rates": [1e-4]}), RUN),
    "a learning rate of 2": (settings(calibration={"learning_rates": [1e-4, 2]}), RUN),
    "several learning rates for the paper's rule": (
        settings(calibration={"learning_rates": "auto"}, search={"law": "paper"}),
        RUN,
    ),
    "a limit of forgetting without upstream tasks": (settings(search={"max_forgetting": 5}), RUN),
    "what was forgotten without upstream tasks": (lambda study: None, ("forgetting", "{study}")),
    "a rank above a layer's width": (settings(calibration={"ranks": [2, 4096]}), RUN),
    "a micro-batch that does not divide the batch": (settings(micro_batch_size=3), RUN),
    "weight decay without AdamW": (settings(recipe={"weight_decay": 0.1}), RUN),
    "layers that are not there": (settings(recipe={"targets": {"llm": "q_project"}}), RUN),
    "shares that exceed the schedule": (
        settings(recipe={"schedule": "warmup_stable_decay", "warmup_ratio": 0.3, "decay_ratio": 0.8}),
        RUN,
    ),
    "no YAML": (not_yaml, RUN),
    "no study file": (lambda study: study.unlink(), RUN),
    "a folder that is no checkpoint": (not_a_checkpoint, RUN),
    "a model type that MARS does not know": (unknown_model, RUN),
    "a stage before its inputs": (lambda study: None, ("fit", "{study}")),
    "a GPU that is not in the planner's table": (
        lambda study: None,
        ("calibrate", "{study}", "--dry-run", "--on", "tpu"),
    ),
    "rates for baselines without a search": (
        lambda study: None,
        ("compare", "{study}", "--with", "uniform-16", "--rates", "1e-4,2e-4"),
    ),
}


def table() -> dict[str, str]:
    """What is wrong and the message, as the page has it."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| .* \| `", line)]
    cells = [re.match(r"\| (.*?) \| `+ ?(.*?) ?`+ \|$", line) for line in lines]
    return {cell.group(1): cell.group(2).replace("\\|", "|") for cell in cells if cell}


def message(study: Path, arguments: tuple[str, ...]) -> str:
    result = CliRunner().invoke(app, [argument.replace("{study}", str(study)) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.partition("error:")[2].split())


def test_the_page_has_every_case():
    assert list(table()) == list(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_message_is_the_one_on_the_page(study, case):
    spoil, arguments = CASES[case]
    spoil(study)
    shown = message(study, arguments)
    expected = ".*".join(map(re.escape, " ".join(table()[case].split()).split("…")))
    assert re.fullmatch(expected, shown), shown
    if arguments == RUN:
        assert not (study.parent / "study" / "revisions").exists()
