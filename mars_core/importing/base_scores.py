"""What an LLM could do before it saw an image: the inputs of P_base (MLLM-SFT paper, Eq. 2 and appendix B.4).

From a table with columns `model`, `nli`, `commonsense`, `reasoning` (points, 0 to 100), or from result files of
lm-evaluation-harness, one model per file: `results` has `task -> {"acc,none": 0.71, ...}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mars_core.importing.csv_form import read_numbers
from mars_core.laws.base_terms import BASE_SCORES

TASKS: Mapping[str, tuple[str, ...]] = {
    "nli": ("copa", "rte"),
    "commonsense": ("winogrande", "openbookqa"),
    "reasoning": ("mmlu", "sciq", "arc_easy"),
}
"""The paper's benchmarks by kind, under the harness's task names (appendix B.4)."""

MODEL = "model"
POINTS = 100.0


def read_base_scores(paths: Sequence[Path]) -> pd.DataFrame:
    """Columns model, nli, commonsense, reasoning (points), one row per model.

    Args:
        paths: tables (.csv, .parquet) and result files of lm-evaluation-harness (.json).

    Raises:
        ValueError: a file cannot be read, lacks a score, or a model stands twice.
    """
    rows = pd.concat([_read(path) for path in paths], ignore_index=True)
    twice = sorted(rows[MODEL][rows[MODEL].duplicated()].unique())
    if twice:
        raise ValueError(f"base scores name models twice: {', '.join(twice)}; keep one row or file per model")
    return rows


def with_base_scores(points: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Add the base scores to every row of a table, by its column `model`.

    Raises:
        ValueError: the table has no column `model`, has scores already, or a model has no scores.
    """
    if MODEL not in points:
        raise ValueError(
            f"the table needs a column {MODEL!r} that says whose base scores a row has; it has {list(points.columns)}"
        )
    present = [column for column in BASE_SCORES if column in points]
    if present:
        raise ValueError(f"the table has {', '.join(present)} already: leave out --base, or drop these columns")
    names = points[MODEL].astype(str)
    missing = sorted(set(names) - set(scores[MODEL]))
    if missing:
        raise ValueError(f"no base scores of {', '.join(missing)}: the files have {', '.join(sorted(scores[MODEL]))}")
    return points.assign(**{MODEL: names}).merge(scores, on=MODEL, how="left", validate="many_to_one")


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"no file {path}: give a table (.csv, .parquet) or a result of lm-evaluation-harness (.json)")
    if path.suffix.lower() == ".json":
        return pd.DataFrame([_of_harness(path)])
    readers: dict[str, Any] = {".parquet": pd.read_parquet, ".csv": read_numbers}
    if path.suffix.lower() not in readers:
        raise ValueError(f"cannot read base scores from {path.name}: expected .csv, .parquet or .json")
    table: pd.DataFrame = readers[path.suffix.lower()](path)
    missing = [column for column in (MODEL, *BASE_SCORES) if column not in table]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it has {list(table.columns)}")
    table = table[[MODEL, *BASE_SCORES]].assign(**{MODEL: table[MODEL].astype(str)})
    _require_points(path, table)
    return table


def _require_points(path: Path, table: pd.DataFrame) -> None:
    for column in BASE_SCORES:
        values = pd.to_numeric(table[column], errors="coerce")
        if not ((values > 0) & (values <= POINTS)).all():
            raise ValueError(f"{path}: {column} must hold points above 0 and up to 100, got {table[column].tolist()}")
        if (values <= 1).all():
            raise ValueError(
                f"{path}: {column} looks like shares (largest {values.max():g}), expected points: multiply by 100"
            )


def _of_harness(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    results = stored.get("results") if isinstance(stored, dict) else None
    if not isinstance(results, dict):
        raise ValueError(f"{path} is no result of lm-evaluation-harness: it has no `results`")
    return {MODEL: _model_of(path, stored)} | {kind: _mean(path, results, names) for kind, names in TASKS.items()}


def _model_of(path: Path, stored: Mapping[str, Any]) -> str:
    """`model_name` of newer results, `pretrained=` of the model arguments of older ones, else the file's name."""
    if name := stored.get("model_name"):
        return str(name)
    config = stored.get("config") or {}
    arguments = config.get("model_args") or ""
    if isinstance(arguments, Mapping):
        return str(arguments.get("pretrained", path.stem))
    for part in str(arguments).split(","):
        key, _, value = part.partition("=")
        if key.strip() == "pretrained":
            return value.strip()
    return path.stem


def _mean(path: Path, results: Mapping[str, Any], names: Sequence[str]) -> float:
    found = [_accuracy(results[name]) for name in names if name in results]
    scores = [score for score in found if score is not None]
    if not scores:
        raise ValueError(
            f"{path} has none of the tasks {', '.join(names)} with an accuracy; it has {', '.join(results)}: run the "
            "harness with these tasks, or give a table"
        )
    return POINTS * sum(scores) / len(scores)


def _accuracy(result: Any) -> float | None:
    """`acc,none` (harness 0.4), else `acc` (before)."""
    if not isinstance(result, Mapping):
        return None
    value = result.get("acc,none", result.get("acc"))
    return float(value) if isinstance(value, int | float) else None
