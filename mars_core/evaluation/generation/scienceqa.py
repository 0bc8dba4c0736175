"""ScienceQA's subgroups (Lu et al. 2022, table 3): subject, context modality, grade.

NAT, SOC, LAN: natural, social, language science. TXT: the question comes with a text, IMG: with an image (a question
may have both), NO: with neither. G1-6, G7-12: school grades.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mars_core.data.readers.scienceqa import PROBLEMS, REQUEST
from mars_core.data.records import DatasetFile, Sample
from mars_core.data.tables import column_names, iterate

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
GROUPS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12")
LAST_LOWER_GRADE = 6

_CONTEXT = re.compile(r"^(?:<image>\s*)*Context: \S")


def subgroups(sample: Sample) -> tuple[str, ...]:
    """The subgroups of a ScienceQA sample, as far as its row says; none for any other sample."""
    subject = SUBJECTS.get(sample.task.strip().lower())
    question = tuple(sample.turns)[-2].text
    if subject is None or not question.rstrip().endswith(REQUEST):
        return ()
    context = [name for name, holds in (("TXT", _CONTEXT.match(question)), ("IMG", sample.images)) if holds]
    grade = _grade_group(_grade(sample))
    return tuple(name for name in (subject, *(context or ["NO"]), grade) if name)


def _grade_group(grade: Any) -> str | None:
    match = re.search(r"\d+", str(grade))
    return None if match is None else "G1-6" if int(match[0]) <= LAST_LOWER_GRADE else "G7-12"


def _grade(sample: Sample) -> Any:
    file = sample.source.file
    if file.name == PROBLEMS:
        return _grades_of_problems(file).get(sample.id)
    grades = _grades_of_table(file)
    return grades[sample.source.row - 1] if sample.source.row <= len(grades) else None


@lru_cache(maxsize=4)
def _grades_of_problems(file: Path) -> dict[str, Any]:
    problems = json.loads(file.read_text(encoding="utf-8-sig"))
    return {str(name): problem.get("grade") for name, problem in problems.items() if isinstance(problem, dict)}


@lru_cache(maxsize=4)
def _grades_of_table(file: Path) -> Sequence[Any]:
    if file.suffix not in (".parquet", ".arrow"):
        return ()
    table = DatasetFile.opened(file)
    if "grade" not in column_names(table):
        return ()
    return [values["grade"] for _, _, values in iterate(table, ["grade"])]
