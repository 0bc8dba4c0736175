"""Read and validate the caller's table of points: one message per mistake, naming rows and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_core.laws.law import Floats, Law

Bools = NDArray[np.bool_]
Integers = NDArray[np.intp]

DEFAULT_GROUP = "run_id"
KEY_COLUMNS = ("run_id", "seed", "data_seed")


@dataclass(frozen=True)
class Table:
    """Validated points of one fit.

    Attributes:
        inputs: the law's input columns, (n_points,) each, all positive.
        y: targets, (n_points,), positive; a censored point's is the lower limit of its true value.
        censored: True where the target is only a lower limit.
        groups: which run each point belongs to, 0..n_groups-1; the bootstrap resamples these.
        grouped_by: the column the groups come from, "row" where every point is its own.
        reached_at: step at which each point's size is reached (law C's trivial rival), None elsewhere.
    """

    inputs: Mapping[str, Floats]
    y: Floats
    censored: Bools
    groups: Integers
    grouped_by: str
    reached_at: Floats | None

    @property
    def n_points(self) -> int:
        """Number of points."""
        return len(self.y)

    @property
    def n_groups(self) -> int:
        """Number of runs (or rows) that the bootstrap resamples."""
        return int(self.groups.max()) + 1

    def subset(self, rows: Bools) -> Table:
        """The points where `rows` is True, with groups renumbered."""
        return Table(
            inputs={column: values[rows] for column, values in self.inputs.items()},
            y=self.y[rows],
            censored=self.censored[rows],
            groups=np.unique(self.groups[rows], return_inverse=True)[1].reshape(-1),
            grouped_by=self.grouped_by,
            reached_at=None if self.reached_at is None else self.reached_at[rows],
        )


def read_table(law: Law, points: Any, group: str | None) -> Table:
    """Validate `points` (a DataFrame or a mapping of columns) for `law`.

    Raises:
        ValueError: a column is missing, a value is not a positive number, a key stands twice, an input
            never varies, or there are fewer points than coefficients. The message says which rows.
    """
    _require_columns(law, points, group)
    inputs = {column: _positive(law, points, column) for column in law.inputs}
    y = _positive(law, points, law.target)
    _require_equal_lengths(law, [*inputs.values(), y])
    censored = _censored(points, len(y))
    _require_distinct_keys(law, points, inputs, group)
    _require_variation(law, inputs)
    _require_enough(law, censored)
    groups, grouped_by = _groups(points, len(y), group)
    reached_at = _positive(law, points, "S_D") if "S_D" in points else None
    return Table(inputs, y, censored, groups, grouped_by, reached_at)


def rows_text(rows: Bools) -> str:
    """`rows 3, 7, 9 (12 in all)`: where a mistake is, the first row under the header being 1."""
    found = np.flatnonzero(rows)
    listed = ", ".join(str(row + 1) for row in found[:5])
    more = f" ({len(found)} in all)" if len(found) > 5 else ""
    return f"row{'s' if len(found) > 1 else ''} {listed}{more}"


def _require_columns(law: Law, points: Any, group: str | None) -> None:
    present = [str(column) for column in points]
    needed = [*law.inputs, law.target]
    if group is not None and group != DEFAULT_GROUP:
        needed.append(group)
    missing = [column for column in needed if column not in present]
    if missing:
        raise ValueError(
            f"law {law.name} needs columns {needed}; missing: {missing}; the table has {present}: "
            f"rename or add the missing columns"
        )


def _positive(law: Law, points: Any, column: str) -> Floats:
    try:
        values = np.asarray(points[column], dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {column} must hold numbers: {error}") from error
    unusable = ~np.isfinite(values)
    if unusable.any():
        raise ValueError(
            f"column {column} is not a finite number in {rows_text(unusable)}: drop these rows, "
            "or mark a run that did not finish as censored with its last step as the target"
        )
    low = values <= 0
    if low.any():
        raise ValueError(
            f"column {column} must be positive for law {law.name}, got {values[low][0]:g} in {rows_text(low)}: "
            "drop these rows (rank 0 and size 0 have no power law; a loss is never 0 or less)"
        )
    return values


def _require_equal_lengths(law: Law, columns: list[Floats]) -> None:
    lengths = {len(values) for values in columns}
    if len(lengths) > 1:
        names = [*law.inputs, law.target]
        found = {name: len(values) for name, values in zip(names, columns, strict=True)}
        raise ValueError(f"columns must have one length, got {found}")


def _censored(points: Any, n_points: int) -> Bools:
    if "censored" not in points:
        return np.zeros(n_points, dtype=bool)
    raw = np.asarray(points["censored"])
    values = np.array([_TRUTH.get(str(value).strip().lower()) for value in raw.reshape(-1)], dtype=object)
    unknown = np.array([value is None for value in values])
    if unknown.any():
        raise ValueError(
            f"column censored must be true or false, got {raw.reshape(-1)[unknown][0]!r} in {rows_text(unknown)}"
        )
    return values.astype(bool)


_TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def _require_distinct_keys(law: Law, points: Any, inputs: Mapping[str, Floats], group: str | None) -> None:
    extra = [column for column in dict.fromkeys((*KEY_COLUMNS, group)) if column and column in points]
    keys = list(
        zip(
            *(inputs[column].tolist() for column in law.inputs),
            *(np.asarray(points[column]).tolist() for column in extra),
            strict=True,
        )
    )
    seen: dict[tuple[object, ...], int] = {}
    for row, key in enumerate(keys):
        if key in seen:
            names = [*law.inputs, *extra]
            raise ValueError(
                f"rows {seen[key] + 1} and {row + 1} have the same key "
                f"{dict(zip(names, key, strict=True))}: keep one, or add a run_id or seed column that tells "
                "repeated runs apart"
            )
        seen[key] = row


def _require_variation(law: Law, inputs: Mapping[str, Floats]) -> None:
    for column, values in inputs.items():
        distinct = np.unique(values)
        if len(distinct) < 2:
            remedy = (
                "widen calibration.ranks or fit a law without it"
                if column.startswith("r")
                else f"add points at other values of {column}"
            )
            raise ValueError(
                f"law {law.name} needs at least 2 distinct values of {column} to tell its effect, got "
                f"{len(distinct)} ({', '.join(f'{value:g}' for value in distinct)}) in {len(values)} rows: {remedy}"
            )


def _require_enough(law: Law, censored: Bools) -> None:
    n_observed = int(np.sum(~censored))
    if n_observed < law.n_params:
        raise ValueError(
            f"law {law.name} has {law.n_params} coefficients, got {n_observed} observed points "
            f"({int(censored.sum())} censored): need at least {law.n_params}, better more than "
            f"{law.n_params + 2}: add ranks, sizes or seeds"
        )


def _groups(points: Any, n_points: int, group: str | None) -> tuple[Integers, str]:
    if group is None or group not in points:
        return np.arange(n_points), "row"
    labels = [str(label) for label in np.asarray(points[group]).reshape(-1)]
    return np.unique(labels, return_inverse=True)[1].reshape(-1), group
