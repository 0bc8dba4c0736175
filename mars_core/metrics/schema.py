"""Schema of the checkpoint metrics, one row per (run_id, step), validated on write and on read.

Version 2 added `objective`, the metric that the search minimises, and `val_objective`, its value: null where the
objective is perplexity (that is val_perplexity) and where the metric had no value. Tables of version 1 are read as
tables whose objective is perplexity.

Version 3 added the peak learning rates of a run's modules, and clipped_share, the share of its steps up to this one
whose gradient was clipped. They are null in tables of before, whose runs all had the recipe's rates.

Units: losses in nats per answer token, steps are optimizer steps, sizes are samples, time in seconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

SCHEMA_VERSION = 3
PEAKS = ("peak_lr_me", "peak_lr_projector", "peak_lr_llm")
PERPLEXITY = "perplexity"

SCHEMA = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("revision", pa.int32(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("pack_id", pa.string(), nullable=False),
        pa.field("r_me", pa.int32(), nullable=False),
        pa.field("r_llm", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("data_seed", pa.int64(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("samples_seen", pa.int64(), nullable=False),
        pa.field("unique_samples", pa.int64(), nullable=False),
        pa.field("train_loss", pa.float64(), nullable=False),
        pa.field("val_loss", pa.float64(), nullable=False),
        pa.field("val_perplexity", pa.float64(), nullable=False),
        pa.field("val_accuracy", pa.float64(), nullable=False),
        pa.field("objective", pa.string(), nullable=False),
        pa.field("val_objective", pa.float64()),
        pa.field("lr", pa.float64(), nullable=False),
        pa.field("peak_lr_me", pa.float64()),
        pa.field("peak_lr_projector", pa.float64()),
        pa.field("peak_lr_llm", pa.float64()),
        pa.field("grad_norm_me", pa.float64(), nullable=False),
        pa.field("grad_norm_llm", pa.float64(), nullable=False),
        pa.field("clipped_share", pa.float64()),
        pa.field("wall_seconds", pa.float64(), nullable=False),
        pa.field("peak_memory_bytes", pa.int64(), nullable=False),
        pa.field("device", pa.string(), nullable=False),
        pa.field("recipe_hash", pa.string(), nullable=False),
        pa.field("data_hash", pa.string(), nullable=False),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("code_version", pa.string(), nullable=False),
    ]
)
_REQUIRED = [field.name for field in SCHEMA if not field.nullable]


def to_table(rows: pd.DataFrame) -> pa.Table:
    """Return checkpoint rows as an Arrow table of this schema.

    Raises:
        ValueError: the rows break the contract.
    """
    validate(rows)
    return _typed(rows)


def from_table(table: pa.Table) -> pd.DataFrame:
    """Return an Arrow table as validated checkpoint rows.

    Raises:
        ValueError: the table breaks the contract.
    """
    rows = _as_newest(table.to_pandas())
    _check_form(rows)
    _check_ranges(rows if table.schema.equals(SCHEMA) else _typed(rows).to_pandas())
    return rows


def _as_newest(rows: pd.DataFrame) -> pd.DataFrame:
    version = set(rows["schema_version"]) if "schema_version" in rows.columns else set()
    if version not in ({1}, {2}):
        return rows
    added: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "clipped_share": np.nan, **dict.fromkeys(PEAKS, np.nan)}
    if version == {1}:
        added |= {"objective": PERPLEXITY, "val_objective": np.nan}
    newer = rows.assign(**added)
    return newer[[name for name in SCHEMA.names if name in newer]]


def validate(rows: pd.DataFrame) -> None:
    """Check checkpoint rows against the contract.

    Raises:
        ValueError: a column is missing, a (run_id, step) occurs twice, a value is missing, of the wrong type or out of
            range; the message names the column and the first rows.
    """
    _check_form(rows)
    _check_ranges(_typed(rows).to_pandas())


def _check_form(rows: pd.DataFrame) -> None:
    missing = [name for name in SCHEMA.names if name not in rows.columns]
    if missing:
        raise ValueError(f"checkpoint metrics lack the columns {missing}: they need {SCHEMA.names}")
    versions = set(rows["schema_version"].tolist())
    if versions - {SCHEMA_VERSION}:
        raise ValueError(
            f"checkpoint metrics have schema version {sorted(versions, key=str)}, this code reads {SCHEMA_VERSION}: "
            "calibrate again or use the version of MARS that wrote them"
        )
    _refuse(rows, np.any([pd.isna(rows[name].to_numpy()) for name in _REQUIRED], axis=0), "a missing value")


def _check_ranges(rows: pd.DataFrame) -> None:
    # In NumPy: a study has a table for each run, and pandas takes its time for each column.
    value = {name: rows[name].to_numpy() for name in rows.columns}
    if len(set(zip(value["run_id"], value["step"], strict=True))) < len(rows):
        _refuse(rows, rows.duplicated(["run_id", "step"]).to_numpy(), "a (run_id, step) that occurs twice")
    _refuse(rows, value["step"] < 1, "a step below 1")
    ranks = np.stack([value["r_me"], value["r_llm"]])
    _refuse(rows, (ranks < 0).any(axis=0) | (ranks == 0).all(axis=0), "a rank below 0, or both ranks 0")
    _refuse(rows, value["unique_samples"] > value["samples_seen"], "more unique samples than samples seen")
    loss = value["val_loss"]
    _refuse(rows, ~np.isfinite(loss) | (loss < 0), "a val_loss that is not 0 or more")
    with np.errstate(divide="ignore", invalid="ignore"):
        same = np.abs(np.log(value["val_perplexity"]) - loss) <= 1e-6
    _refuse(rows, ~same, "a val_perplexity other than exp(val_loss)")
    measured = value["val_objective"]
    _refuse(rows, measured < 0, "a val_objective below 0")
    unneeded = ~np.isnan(measured) & (value["objective"] == PERPLEXITY)
    _refuse(rows, unneeded, "a val_objective though the objective is perplexity")
    peaks = np.stack([value[name] for name in PEAKS])
    _refuse(rows, ((peaks <= 0) | (peaks == np.inf)).any(axis=0), "a peak learning rate that is not above 0")
    shares = value["clipped_share"]
    _refuse(rows, (shares < 0) | (shares > 1), "a clipped_share that is not between 0 and 1")


def _typed(rows: pd.DataFrame) -> pa.Table:
    try:
        return pa.Table.from_pandas(rows[SCHEMA.names], schema=SCHEMA, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"checkpoint metrics have values of the wrong type: {'; '.join(map(str, error.args))}"
        ) from error


def _refuse(rows: pd.DataFrame, bad: NDArray[np.bool_], what: str) -> None:
    if bad.any():
        first = rows.loc[bad, ["run_id", "step"]].head(3).to_dict("records")
        raise ValueError(f"{int(bad.sum())} rows of the checkpoint metrics have {what}, first: {first}")
