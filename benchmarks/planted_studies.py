"""How good the chosen pair is, and how true what is said of it, on calibrations whose truth is known.

A planted study has a known true loss surface and the metrics of a calibration of it, with noise, with or without a
learning-rate schedule. The product's rules and rivals choose a pair from the metrics; the truth says what that costs at
the target, and whether promises and intervals hold. See `planted/` for the parts.

    python benchmarks/planted_studies.py                        # writes benchmarks/results/planted_studies.json
    python benchmarks/planted_studies.py --only "best observed,Eq. 1"
    python benchmarks/planted_studies.py --smoke                # one study per shape, writes nothing

Every scored study is a line in benchmarks/results/planted_studies/, so an interrupted run goes on where it was; lines
of other code are not read. With `--only` the other rules stay in the record as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from planted.rules import RULES, Rule
from planted.score import Score, known_rules, score_study, summarise
from planted.shapes import SHAPES
from planted.study import make_study
from planted.table import print_record

from mars_core import __version__

HERE = Path(__file__).parent
RECORD = HERE / "results" / "planted_studies.json"
LINES = HERE / "results" / "planted_studies"
PARTS = ("search", "surface", "fitting", "laws", "convergence")
CODE = (HERE / "planted", *(HERE.parent / "mars_core" / part for part in PARTS))
PRESENTATION = ("table.py",)

Task = tuple[tuple[str, ...], str, int]  # rules, shape, number


def code_hash() -> str:
    """Hash of the code that a score depends on."""
    return hash_of(CODE)


def hash_of(folders: Sequence[Path]) -> str:
    """Hash of the code in some folders, what only prints left out."""
    files = sorted(path for folder in folders for path in folder.rglob("*.py") if path.name not in PRESENTATION)
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def score_task(task: Task) -> dict[str, list[Score]]:
    """Some rules' scores on one study, with what the summary groups by; rules of the product share its fits."""
    rules, shape, number = task
    study = make_study(number, shape)
    about = {"shape": shape, "number": number, "scheduled": study.scheduled}
    return {rule: [about | score for score in score_study(study, RULES[rule])] for rule in rules}


def studies(per_shape: int) -> list[tuple[str, int]]:
    """Shape and number of all studies; every second one of a shape is under a schedule."""
    return [(shape, number) for number in range(per_shape) for shape in SHAPES]


def read_lines(path: Path, code: str) -> dict[tuple[str, int], list[Score]]:
    """Scores of an earlier run of the same code, by shape and number; a line cut off in writing is passed over."""
    if not path.is_file():
        return {}
    found = [_parsed(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["shape"], line["number"]): line["scores"] for line in found if line.get("code") == code}


def _parsed(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except json.JSONDecodeError:
        return {}


def scores_of(rules: Sequence[str], per_shape: int, processes: int, folder: Path) -> dict[str, list[Score]]:
    """The rules' scores on all studies, those of an interrupted run among them."""
    code, wanted = code_hash(), studies(per_shape)
    paths = {rule: folder / f"{rule.replace(' ', '-')}.jsonl" for rule in rules}
    done = {rule: read_lines(path, code) for rule, path in paths.items()}
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(tuple(rule for rule in rules if study not in done[rule]), *study) for study in wanted]
    tasks = [task for task in tasks if task[0]]
    for (_, shape, number), scores in zip(tasks, _scored(tasks, processes), strict=True):
        for rule, own in scores.items():
            done[rule][shape, number] = own
            line = {"code": code, "shape": shape, "number": number, "scores": own}
            with paths[rule].open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(line))  # first the end of the line before, which may have been cut off
    return {rule: [score for study in wanted for score in done[rule][study]] for rule in rules}


def _scored(tasks: list[Task], processes: int) -> Iterator[dict[str, list[Score]]]:
    if processes == 1:
        yield from map(score_task, tasks)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(score_task, tasks)


def origin(settings: argparse.Namespace) -> dict[str, Any]:
    """Command, versions and date of a measurement."""
    only = f' --only "{settings.only}"' if settings.only else ""
    return {
        "command": f"python benchmarks/planted_studies.py --per-shape {settings.per_shape}{only}",
        "versions": {
            "mars": __version__,
            "Python": platform.python_version(),
            "NumPy": np.__version__,
            "SciPy": scipy.__version__,
        },
        "machine": platform.machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def with_rules(record: Mapping[str, Any], measured: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """The record with newly measured rules, in the order of RULES; each rule carries the origin of its figures."""
    rules = {**record.get("rules", {}), **{name: {"origin": made, **of} for name, of in measured.items()}}
    return {**record, "shapes": list(SHAPES), "rules": {name: rules[name] for name in RULES if name in rules}}


def measure(rules: Mapping[str, Rule], settings: argparse.Namespace) -> dict[str, Any]:
    """Figures of each rule."""
    scores = scores_of(list(rules), settings.per_shape, settings.processes, settings.lines)
    return {name: summarise(scores[name], rule.states) for name, rule in rules.items()}


def smoke(rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Figures of each rule on one study per shape, at once and without lines."""
    found = [score_task((tuple(rules), shape, i)) for i, shape in enumerate(SHAPES)]
    scores = {name: [score for study in found for score in study[name]] for name in rules}
    return {name: summarise(scores[name], rule.states) for name, rule in rules.items()}


def main() -> None:
    """Score the rules, write the record and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-shape", type=int, default=40, help="studies per shape, half of them with a schedule")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", metavar="RULE,...", help=f"some of: {', '.join(RULES)}".replace("%", "%%"))
    parser.add_argument("--smoke", action="store_true", help="one study per shape; writes nothing")
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--lines", type=Path, default=LINES, help="folder of the scored studies")
    settings = parser.parse_args()
    try:
        rules = known_rules(settings.only)
    except ValueError as error:
        parser.error(str(error))
    if settings.smoke:
        print_record({"rules": smoke(rules)})
        return
    record = json.loads(settings.out.read_text(encoding="utf-8")) if settings.out.is_file() else {}
    record = with_rules(record, measure(rules, settings), origin(settings))
    settings.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print_record(record)


if __name__ == "__main__":
    main()
