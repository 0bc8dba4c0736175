"""A table of runs read and checked in one pass: every bad row with its reason, then checkpoint metrics and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mars_core.importing.cells import empty, not_negative, positive, present, truth, whole
from mars_core.importing.names import COLUMNS

LARGEST_RANK = 4096
SHOWN = 20
TIMES = ("t", "t_me", "t_llm")
PEAKS = ("peak_lr_me", "peak_lr_llm")
METRICS = ["run_id", "r_me", "r_llm", "seed", "step", "samples_seen", "unique_samples", "val_loss", "val_perplexity"]


@dataclass(frozen=True)
class Sizes:
    """How steps become dataset sizes: samples per step (None: from the table), and the size of the dataset if known."""

    batch_size: int | None = None
    dataset_size: int | None = None


@dataclass(frozen=True)
class Problem:
    """A row (or a run, where the source has runs) that cannot be used, and why."""

    where: str
    reason: str


class BadRows(ValueError):  # noqa: N818 - reads as the fact it states
    """Rows that cannot be used; `problems` has all of them, the message the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        shown = "".join(f"\n  {problem.where}: {problem.reason}" for problem in problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        super().__init__(
            f"{len(problems)} bad rows:{shown}{more}\nCorrect them, or leave them out with --skip-bad-rows"
        )


@dataclass(frozen=True, eq=False)
class ImportedRuns:
    """Checked runs.

    Attributes:
        metrics: one row per run and step with columns `METRICS`, and where every row has them lr and `PEAKS`, in the
            order of seed, pair and step.
        times: the given convergence times: those columns of `METRICS`, `t`, `t_me`, `t_llm` and `censored`; may be
            empty.
        parameters: trainable parameters by pair, where the table has them.
        notes: what was assumed or left out.
    """

    metrics: pd.DataFrame
    times: pd.DataFrame
    parameters: dict[tuple[int, int], int]
    notes: tuple[str, ...]


@dataclass
class _Findings:
    """Gathers reasons against rows, in the order they are found: `bad` marks the rows."""

    where: pd.Series
    bad: pd.Series = field(init=False)
    found: list[tuple[int, Problem]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bad = pd.Series(False, index=self.where.index)

    @property
    def problems(self) -> list[Problem]:
        """All problems in the order of the rows; a run that is wrong in every row is named once."""
        return list(dict.fromkeys(problem for _, problem in sorted(self.found, key=lambda item: item[0])))

    def about(self, cells: pd.Series) -> _Sayer:
        return _Sayer(self, cells)


@dataclass(frozen=True)
class _Sayer:
    findings: _Findings
    cells: pd.Series

    def __call__(self, mask: pd.Series, reason: str) -> None:
        found = self.findings
        found.bad |= mask
        for index in mask.index[mask]:
            text = reason.replace("{value}", _shown(self.cells.loc[index]))
            found.found.append((int(index), Problem(str(found.where.loc[index]), text)))


def _shown(cell: object) -> str:
    return repr(cell) if isinstance(cell, str) else str(cell)


def read_runs(
    raw: pd.DataFrame,
    sizes: Sizes,
    *,
    where: Sequence[str] | None = None,
    skip_bad: bool = False,
    given: Sequence[str] | None = None,
) -> ImportedRuns:
    """Check a table of runs and bring it into the form that the laws are fitted to.

    Args:
        raw: columns of `names.COLUMNS` (r_me, r_llm and loss at least; and D, or step with a batch size).
        sizes: how steps become dataset sizes.
        where: what each row is called in messages; default `row N`, the first row under the header being 1.
        skip_bad: leave bad rows out, with a note on each, rather than refuse the table.
        given: the columns that the caller's own table has, for messages; default those of `raw`.

    Raises:
        ValueError: a column is missing, or no row is left.
        BadRows: some rows cannot be used and `skip_bad` is not set.
    """
    _require_columns(raw, sizes, list(raw.columns) if given is None else list(given))
    if raw.empty:
        raise ValueError("the table is empty: it has columns but no rows")
    raw = raw.reset_index(drop=True)
    names = [f"row {n}" for n in range(1, len(raw) + 1)] if where is None else list(where)
    raw, blank = _without_blank_losses(raw)
    findings = _Findings(pd.Series(names, dtype=object).loc[raw.index])
    table, assumed = _columns(raw, sizes, findings)
    _check_runs(table, findings)
    problems = findings.problems
    if problems and not skip_bad:
        raise BadRows(problems)
    skipped = [f"left out: {problem.where}: {problem.reason}" for problem in problems]
    usable, left_out = _usable(table[~findings.bad])
    if usable.empty:
        raise ValueError("no usable row is left: " + "; ".join([*skipped, *left_out]))
    usable = usable.sort_values(["seed", "r_me", "r_llm", "run_id", "step"], ignore_index=True)
    return ImportedRuns(_metrics(usable), _times(usable), _parameters(usable), (*blank, *assumed, *skipped, *left_out))


def _without_blank_losses(raw: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows whose loss is blank, as between evaluations in an export of W&B, are no measurements: one note on all."""
    texts = raw["loss"].map(lambda cell: isinstance(cell, str) and not cell.strip())
    count = int(texts.sum())
    if count in (0, len(raw)):
        return raw, []
    return raw[~texts], [f"{count} rows without a loss are left out, as exports have them between evaluations"]


def _require_columns(raw: pd.DataFrame, sizes: Sizes, given: list[str]) -> None:
    missing = [f"{name} ({COLUMNS[name]})" for name in ("r_me", "r_llm", "loss") if name not in raw]
    if missing:
        raise ValueError(
            f"the table lacks {', '.join(missing)}; it has {given}: name your columns with --r-me, --r-llm and --loss"
        )
    for name, value in (("--batch-size", sizes.batch_size), ("--dataset-size", sizes.dataset_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more")
    has_batch = sizes.batch_size is not None or "batch_size" in raw
    if "D" not in raw and not ("step" in raw and has_batch):
        raise ValueError(
            "there is no dataset size: give a column of samples seen with --size, or one of steps with --step and "
            f"the samples per step with --batch-size; the table has {given}"
        )


def _columns(raw: pd.DataFrame, sizes: Sizes, findings: _Findings) -> tuple[pd.DataFrame, list[str]]:
    """All columns as numbers, and what had to be assumed."""
    table = pd.DataFrame(index=raw.index)
    for name in ("r_me", "r_llm"):
        table[name] = _required(raw[name], 0, findings)
        findings.about(raw[name])(table[name] > LARGEST_RANK, f"{name} is {{value}}, above {LARGEST_RANK}")
    table["loss"] = positive(raw["loss"], findings.about(raw["loss"]))
    present(raw["loss"], findings.about(raw["loss"]))
    table["seed"] = _required(raw["seed"], 0, findings) if "seed" in raw else 0.0
    notes = [*_sizes(raw, sizes, table, findings), *_rates(raw, table, findings), *_peaks(raw, table, findings)]
    for name in TIMES:
        table[name] = positive(raw[name], findings.about(raw[name])) if name in raw else np.nan
    table["censored"] = truth(raw["censored"], findings.about(raw["censored"])) if "censored" in raw else False
    counts = "trainable_parameters"
    table[counts] = whole(raw[counts], 1, findings.about(raw[counts])) if counts in raw else np.nan
    if "run_id" in raw:
        findings.about(raw["run_id"])(empty(raw["run_id"]), "run_id is empty")
        table["run_id"] = raw["run_id"].astype(str)
    else:
        table["run_id"] = _run_names(table)
    return table, notes


def _required(cells: pd.Series, smallest: int, findings: _Findings) -> pd.Series:
    values = whole(cells, smallest, findings.about(cells))
    present(cells, findings.about(cells))
    return values


def _sizes(raw: pd.DataFrame, sizes: Sizes, table: pd.DataFrame, findings: _Findings) -> list[str]:
    """Fill in step, samples_seen and D; returns what was assumed."""
    batch: pd.Series | int | None = sizes.batch_size
    if batch is None and "batch_size" in raw:
        batch = _required(raw["batch_size"], 1, findings)
    if "step" in raw:
        table["step"] = _required(raw["step"], 0, findings)
    if "D" in raw:
        table["D"] = _required(raw["D"], 0, findings)
    notes = []
    if "step" not in table:
        table["step"] = table["D"] / batch if batch is not None else table["D"]
        table["step"] = table["step"].round().clip(lower=1)
        if batch is None:
            notes.append(
                "no steps and no batch size: convergence is counted in samples, which leaves the balance of the "
                "ranks as it is"
            )
    table["samples_seen"] = table["step"] * batch if batch is not None else table.get("D", table["step"])
    if "D" not in table:
        table["D"] = table["samples_seen"]
    if sizes.dataset_size is not None:
        table["D"] = table["D"].clip(upper=sizes.dataset_size)
    table["samples_seen"] = table[["samples_seen", "D"]].max(axis=1)
    return notes


def _rates(raw: pd.DataFrame, table: pd.DataFrame, findings: _Findings) -> list[str]:
    """Fill in lr, where every row has one; the warm-up of runs can only be told by it."""
    if "lr" not in raw:
        return []
    rates = not_negative(raw["lr"], findings.about(raw["lr"]))
    unknown = int(rates[~findings.bad].isna().sum())
    if unknown:
        return [f"{unknown} rows have no learning rate: the learning rates are not used"]
    table["lr"] = rates
    return []


def _peaks(raw: pd.DataFrame, table: pd.DataFrame, findings: _Findings) -> list[str]:
    """Fill in the peak rates of both modules, where every row has them."""
    found = {name: "peak_lr" if name not in raw else name for name in PEAKS}
    if any(source not in raw for source in found.values()):
        named = [name for name in PEAKS if name in raw]
        return [f"{named[0]} stands alone: without the other module's rate it is not used"] if named else []
    peaks = pd.DataFrame({name: positive(raw[source], findings.about(raw[source])) for name, source in found.items()})
    for name, other, rank in ((*PEAKS, "r_me"), (*PEAKS[::-1], "r_llm")):  # without an adapter a rate is no rate
        peaks[name] = peaks[name].where((table[rank] > 0) | peaks[name].notna(), peaks[other])
    unknown = int(peaks[~findings.bad].isna().any(axis=1).sum())
    if unknown:
        return [f"{unknown} rows have no peak learning rate: peak learning rates are not used"]
    table[list(PEAKS)] = peaks
    return []


def _run_names(table: pd.DataFrame) -> pd.Series:
    parts = table[["r_me", "r_llm", "seed"]].map(lambda value: f"{value:g}")
    names = "me" + parts["r_me"] + "-llm" + parts["r_llm"] + "-seed" + parts["seed"]
    if PEAKS[0] not in table:
        return names
    rates = table[list(PEAKS)].map(lambda value: f"{value:g}")
    return names + "-lr" + rates[PEAKS[0]] + "-" + rates[PEAKS[1]]


def _check_runs(table: pd.DataFrame, findings: _Findings) -> None:
    """A run has one pair, one seed and one peak rate, and one row per step."""
    good = table[~findings.bad]
    names = ["r_me", "r_llm", "seed", *(name for name in PEAKS if name in table)]
    for run, rows in good.groupby("run_id", sort=False):
        other = (rows[names] != rows[names].iloc[0]).any(axis=1).reindex(table.index, fill_value=False)
        findings.about(table["run_id"])(
            other, f"run {run} changes its ({', '.join(names)}): give every run its own run_id"
        )
    again = table[~findings.bad].duplicated(["run_id", "step"]).reindex(table.index, fill_value=False)
    findings.about(table["run_id"])(
        again, "an earlier row has the same run and size: tell repeated runs apart by a run_id or seed column"
    )


def _usable(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows that can be compared, and a note on the others."""
    notes = []
    untrained = (table["r_me"] == 0) & (table["r_llm"] == 0)
    if untrained.any():
        runs = table.loc[untrained, "run_id"].nunique()
        notes.append(f"{runs} runs with rank 0 in both modules are left out: they have no adapter")
    no_adapter = ~untrained & ((table["r_me"] == 0) | (table["r_llm"] == 0))
    if no_adapter.any():
        runs = table.loc[no_adapter, "run_id"].nunique()
        notes.append(f"{runs} runs with a rank of 0 are compared by what was measured: rank 0 has no power law")
    before = ~untrained & ((table["D"] == 0) | (table["step"] == 0))
    if before.any():
        notes.append(f"{int(before.sum())} rows before the first step are left out: size 0 has no power law")
    return table[~untrained & ~before], notes


def _metrics(table: pd.DataFrame) -> pd.DataFrame:
    metrics = table.rename(columns={"D": "unique_samples", "loss": "val_loss"})
    with np.errstate(over="ignore"):
        metrics["val_perplexity"] = np.exp(metrics["val_loss"])
    whole_numbers = ["r_me", "r_llm", "seed", "step", "samples_seen", "unique_samples"]
    known = [*METRICS, *(name for name in ("lr", *PEAKS) if name in metrics.columns)]
    return metrics[known].astype(dict.fromkeys(whole_numbers, np.int64))


def _times(table: pd.DataFrame) -> pd.DataFrame:
    given = table[table[list(TIMES)].notna().any(axis=1)]
    return given[["run_id", "r_me", "r_llm", "seed", "step", "D", *TIMES, "censored"]].reset_index(drop=True)


def _parameters(table: pd.DataFrame) -> dict[tuple[int, int], int]:
    counted = table.dropna(subset=["trainable_parameters"]).drop_duplicates(["r_me", "r_llm"])
    rows = counted[["r_me", "r_llm", "trainable_parameters"]].itertuples(index=False)
    return {(int(r_me), int(r_llm)): int(count) for r_me, r_llm, count in rows}
