"""ScienceQA: problems.json by id, pid_splits.json, and images/<split>/<id>/image.png.

The prompt is the one that lmms-eval scores with: context, question, lettered choices, and the request for
the letter; the answer is the letter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mars_core.data.readers.conversation import RowError, build_sample, question_and_answer
from mars_core.data.readers.named_splits import choose_splits
from mars_core.data.records import BadRow, PathImage, Sample, Source, Turn

REQUEST = "Answer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJ"

PROBLEMS, _SPLITS = "problems.json", "pid_splits.json"
FOLDER_FILES = (PROBLEMS, _SPLITS)
IMAGES = "images"


def recognise(path: Path) -> bool:
    """Whether this is a folder with problems.json, or that file."""
    return (path / PROBLEMS).is_file() or (path.name == PROBLEMS and path.is_file())


def read_rows(path: Path, image_folder: Path | None, split: str | None) -> Iterator[Sample | BadRow]:
    """Yield the problems of one split as samples, or the reasons why they are none."""
    file = path / PROBLEMS if path.is_dir() else path
    problems = _load(file)
    folder = image_folder or _image_folder(file.parent)
    rows = {name: row for row, name in enumerate(problems, start=1)}
    for name in _names_in_split(file.parent / _SPLITS, problems, split):
        # A name of the split that no problem has is row 0: there is no row to show.
        source = Source(file, rows.get(name, 0))
        try:
            yield _sample(name, problems.get(name), source, folder)
        except RowError as error:
            yield BadRow(source, f"problem {name}: {error}")


def turns_of(problem: Mapping[str, Any], n_images: int) -> tuple[Turn, ...]:
    """A problem as the question that asks for a letter, and the letter.

    Raises:
        RowError: question, choices or answer are missing or do not fit each other.
    """
    choices, answer = problem.get("choices"), problem.get("answer")
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise RowError(f"`choices` must be a list of 2 to {len(LETTERS)} texts, got {choices!r}")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise RowError(f"`answer` must be the number of a choice, 0 to {len(choices) - 1}, got {answer!r}")
    if not isinstance(problem.get("question"), str):
        raise RowError(f"`question` must be text, got {problem.get('question')!r}")
    hint = str(problem.get("hint") or "").strip()
    lines = [f"Context: {hint}"] if hint else []
    lines.append(problem["question"].strip())
    lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return question_and_answer("\n".join([*lines, REQUEST]), LETTERS[answer], n_images)


def _load(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}): correct it") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a JSON {type(found).__name__}: expected problems by id")
    return found


def _image_folder(folder: Path) -> Path:
    return folder / IMAGES if (folder / IMAGES).is_dir() else folder


def _names_in_split(file: Path, problems: Mapping[str, Any], split: str | None) -> list[str]:
    """Ids of a split by pid_splits.json, else by what the problems say themselves; all of them without a split."""
    splits: dict[str, list[str]] = {}
    if file.is_file():
        splits = {name: [str(pid) for pid in pids] for name, pids in _load(file).items()}
    else:
        for pid, problem in problems.items():
            if isinstance(problem, dict) and problem.get("split"):
                splits.setdefault(str(problem["split"]), []).append(pid)
    if not splits or not split:
        return list(problems)
    return [pid for name in choose_splits(file.parent, list(splits), split) for pid in splits[name]]


def _sample(name: str, problem: Any, source: Source, folder: Path) -> Sample:
    if not isinstance(problem, dict):
        raise RowError(f"expected a problem with question, choices and answer, got {problem!r}")
    images: tuple[PathImage, ...] = ()
    if problem.get("image"):
        images = (PathImage(f"{problem.get('split')}/{name}/{problem['image']}", folder),)
    return build_sample(name, images, turns_of(problem, len(images)), problem.get("subject"), source)
