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
from PIL import Image
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


def half_a_file(study: Path) -> None:
    path = study.parent / "data" / "train.json"
    path.write_bytes(path.read_bytes()[:500])


def other_encoding(study: Path) -> None:
    (study.parent / "data" / "train.json").write_bytes('["Größe"]'.encode("latin-1"))


def no_parquet(study: Path) -> None:
    (study.parent / "data" / "train.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    settings(data={"train": "data/train.parquet"})(study)


def bomb(study: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(image_of(study))


def study_text(text: str) -> Callable[[Path], None]:
    return lambda study: study.write_text(text) and None


def table_beside(text: str) -> Callable[[Path], None]:
    """A table with the study file's name and `.csv`."""

    def spoil(study: Path) -> None:
        Path(f"{study}.csv").write_text(text)

    return spoil


def study_is_a_file(study: Path) -> None:
    (study.parent / "study").write_text("not a folder")


def damaged_revision(study: Path) -> None:
    folder = study.parent / "study" / "revisions" / "001"
    folder.mkdir(parents=True)
    (folder / "revision.json").write_text('{"model": ')


def nothing(study: Path) -> None:
    pass


RUN = ("run", "{study}")
LAWS = ("laws", "fit", "--law", "performance", "--data", "{study}.csv")
IMPORT = ("import", "{study}.csv", "--out", "{study}.out")
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
    "a row that is none": (lambda study: write_rows(study, [1, "two"]), RUN),
    "half a JSON file": (half_a_file, RUN),
    "a file that is not UTF-8": (other_encoding, RUN),
    "a Parquet file that is none": (no_parquet, RUN),
    "an image folder that is not there": (settings(data={"images": "data/none"}), RUN),
    "an image of too many pixels": (bomb, RUN),
    "a file URL for an image": (spoil_row(image="file:///etc/hostname"), RUN),
    "an answer that is no text": (spoil_row(conversations=talk("<image>\nWhat is it?", 7)), RUN),
    "an unknown speaker": (spoil_row(conversations=[{"from": "robot", "value": "hello"}]), RUN),
    "a password in a URL": (settings(study="s3://me:secret@bucket/study"), RUN),
    "a signature in a URL": (settings(data={"train": "https://host/train.json?sig=secret"}), RUN),
    "a URL that nothing opens": (settings(study="floppy://a/study"), RUN),
    "a URL for a model": (settings(model="https://me:secret@host/model"), RUN),
    "a list in place of a study": (study_text("- one\n- two\n"), RUN),
    "YAML that would make an object": (study_text("study: !!python/object/apply:os.getcwd []\n"), RUN),
    "no ranks": (settings(calibration={"ranks": []}), RUN),
    "fewer samples than the smallest size": (settings(calibration={"samples": 8, "smallest_size": 64}), RUN),
    "a dropout above 1": (settings(recipe={"lora_dropout": 1.5}), RUN),
    "an unknown schedule": (settings(recipe={"schedule": "zigzag"}), RUN),
    "an unknown objective": (settings(search={"objective": "beauty"}), RUN),
    "an unknown device": (settings(device="abacus"), RUN),
    "a text for a number": (settings(recipe={"batch_size": "many"}), RUN),
    "a study folder that is a file": (study_is_a_file, RUN),
    "a revision that is half a JSON": (damaged_revision, ("fit", "{study}")),
    "a report before its inputs": (nothing, ("report", "{study}")),
    "a final run before its inputs": (nothing, ("finetune", "{study}")),
    "no table for a law": (nothing, LAWS),
    "a table that is none": (table_beside('a,b\n1,2\n1,2,3\n"'), LAWS),
    "an empty table": (table_beside(""), LAWS),
    "a table without a law's columns": (table_beside("r_me,D\n1,2\n"), LAWS),
    "a loss below 0": (table_beside("r_me,r_llm,D,loss\n2,2,64,-1\n2,4,128,2\n4,2,256,1\n"), LAWS),
    "fewer points than coefficients": (table_beside("r_me,r_llm,D,loss\n2,2,64,1\n2,4,128,2\n4,2,256,1\n"), LAWS),
    "an unknown law": (table_beside("a\n1\n"), ("laws", "fit", "--law", "gravity", "--data", "{study}.csv")),
    "no runs to import": (nothing, IMPORT),
    "runs without a loss": (table_beside("r_me,r_llm,D\n2,2,64\n"), IMPORT),
    "runs without a size": (table_beside("r_me,r_llm,loss\n2,2,1.5\n"), IMPORT),
    "runs with bad cells": (table_beside("r_me,r_llm,D,loss\ntwo,2,64,1.5\n2,2,64,nan\n"), IMPORT),
    "an unknown baseline": (nothing, ("compare", "{study}", "--with", "wishful-16")),
    "a model that is not there": (nothing, ("model", "inspect", "{study}.none")),
    "ranks that are no numbers": (nothing, ("model", "inspect", "{study}", "--ranks", "eight,16")),
    "data to check that are not there": (nothing, ("data", "check", "{study}.none")),
    "an export to nowhere": (nothing, ("export", "{study}")),
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
