"""Read runs that exist already, and write what the laws fitted to them come to."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mars_core.importing import ImportedLaws, ImportedRuns, Question, Sizes, analyse, read_runs, rename_columns
from mars_core.importing.csv_form import read_texts
from mars_core.importing.stored import to_imported_table
from mars_core.report import ReportData, render_report
from tasks.running.addresses import without_password
from tasks.storage.files import replacing, write_json

RECORD = "import.json"
VERSIONED = ("mars-rank-search", "mlflow", "scipy", "numpy", "pandas")
STORE = "mlflow.db"


@dataclass(frozen=True)
class Source:
    """Where the runs are and how they call things.

    runs: a CSV or Parquet file, an MLflow tracking URI, or a folder with an MLflow database (a study folder).
    names: our name -> the caller's column or parameter. loss: column or metric of the validation loss.
    """

    runs: str
    names: Mapping[str, str]
    loss: str | None = None
    experiment: str | None = None
    filter_string: str = ""


@dataclass(frozen=True, eq=False)
class Import:
    """Imported runs with the laws and the choice made from them; `name` is what the source is called."""

    source: Source
    name: str
    runs: ImportedRuns
    result: ImportedLaws

    def summary(self) -> dict[str, Any]:
        """What a caller wants to know, as JSON values; bootstrap draws stay in laws.json."""
        metrics = self.runs.metrics
        return {
            "source": without_password(self.source.runs),
            "name": self.name,
            "runs": int(metrics["run_id"].nunique()),
            "rows": len(metrics),
            "pairs": len(metrics[["r_me", "r_llm"]].drop_duplicates()),
            "sizes": sorted({int(size) for size in metrics["unique_samples"]}),
            "laws": _without_draws(self.result.laws.to_json()),
            "choice": self.result.choice.to_json(),
        }


def import_runs(source: Source, sizes: Sizes, question: Question, *, skip_bad: bool) -> Import:
    """Read runs, check them in one pass, fit the laws and choose.

    Raises:
        ValueError: the source cannot be read, or has no usable run; `BadRows` names every bad row.
    """
    name, runs = _read(source, sizes, skip_bad)
    return Import(source, name, runs, analyse(runs, question))


def _read(source: Source, sizes: Sizes, skip_bad: bool) -> tuple[str, ImportedRuns]:
    uri = tracking_uri_of(source.runs)
    if uri is None:
        _refuse_mlflow_options(source)
        path = Path(source.runs)
        names = dict(source.names) | ({"loss": source.loss} if source.loss else {})
        table = _table(path)
        given = [str(column) for column in table.columns]
        return path.stem, read_runs(rename_columns(table, names), sizes, skip_bad=skip_bad, given=given)
    from tasks.importing.mlflow_runs import read_mlflow_runs

    metric = {"metric": source.loss} if source.loss else {}
    found = read_mlflow_runs(uri, source.experiment, source.names, filter_string=source.filter_string, **metric)
    runs = read_runs(found.rows, sizes, where=found.where, skip_bad=skip_bad)
    return found.experiment, ImportedRuns(runs.metrics, runs.times, runs.parameters, (*found.notes, *runs.notes))


def tracking_uri_of(runs: str) -> str | None:
    """The MLflow tracking URI that `runs` stands for, None for a file.

    Raises:
        ValueError: it is neither a table, nor a tracking URI, nor a folder with an MLflow database.
    """
    path = Path(runs)
    if "://" in runs or runs.startswith(("sqlite:", "databricks")):
        return runs
    if path.is_dir():
        if (path / STORE).is_file():
            return f"sqlite:///{path / STORE}"
        raise ValueError(f"the folder {path} has no {STORE}: give a table, a study folder or a tracking URI")
    if not path.is_file():
        raise ValueError(
            f"there is no file {path}: give a CSV or Parquet table, or an MLflow tracking URI such as "
            "http://127.0.0.1:5000 or sqlite:///mlflow.db"
        )
    return f"sqlite:///{path}" if path.suffix == ".db" else None


def _refuse_mlflow_options(source: Source) -> None:
    if source.experiment or source.filter_string:
        raise ValueError(f"--experiment and --filter are for MLflow, but {source.runs} is a table")


def _table(path: Path) -> pd.DataFrame:
    """A table from CSV or Parquet; CSV cells stay text, so that messages show them as they are written."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            return read_texts(path)
        if suffix == ".parquet":
            return pd.read_parquet(path)
    except (ValueError, OSError, KeyError, TypeError, pd.errors.ParserError, pa.ArrowException) as error:
        raise ValueError(f"{path} is not a readable table: {error}") from error
    raise ValueError(f"cannot read {path.name}: expected .csv or .parquet")


def write_import(done: Import, folder: Path, command: str) -> dict[str, str]:
    """Write metrics.parquet, laws.json, choice.json, report.html and, last, import.json; returns their paths.

    Raises:
        ValueError: the folder holds something other than an earlier import.
    """
    require_own_folder(folder)
    paths = {name: folder / name for name in ("metrics.parquet", "laws.json", "choice.json", "report.html", RECORD)}
    with replacing(paths["metrics.parquet"]) as temporary:
        pq.write_table(to_imported_table(done.runs.metrics), temporary)
    write_json(paths["laws.json"], done.result.laws.to_json())
    write_json(paths["choice.json"], done.result.choice.to_json())
    with replacing(paths["report.html"]) as temporary:
        temporary.write_text(render_report(_report(done, command)), encoding="utf-8")
    source = asdict(done.source) | {"runs": without_password(done.source.runs)}
    record = {"created": _now(), "command": without_password(command), "name": done.name, "source": source}
    write_json(paths[RECORD], record | {"versions": _versions()})
    return {name: str(path) for name, path in paths.items()}


def require_own_folder(folder: Path) -> None:
    """Refuse to write among files that are not an import's."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give --out a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise ValueError(f"{folder} holds other files: give --out a new folder, or that of an earlier import")


def _report(done: Import, command: str) -> ReportData:
    return ReportData(
        study=done.name,
        revision=None,
        created=_now(),
        command=without_password(command),
        versions=_versions(),
        model={},
        data={},
        recipe={},
        metrics=done.runs.metrics.assign(train_loss=float("nan")),
        laws=done.result.laws.to_json(),
        choice=done.result.choice.to_json(),
        warnings=done.result.notes,  # what was assumed of target and cost: another value may change the pair
        notes=[f"the runs were imported from {without_password(done.source.runs)}", *done.runs.notes],
    )


def _without_draws(laws: Mapping[str, Any]) -> dict[str, Any]:
    def slim(fit: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return {key: value for key, value in fit.items() if key != "draws"} if fit else None

    convergence = {module: slim(fit) for module, fit in laws["convergence"].items()}
    return {**laws, "performance": slim(laws["performance"]), "convergence": convergence}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONED} | {"python": platform.python_version()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
