"""What was measured of a module's layers before ranks are shared out; a row per layer in Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa

from mars_core.layerwise.places import Place

SCHEMA = pa.schema(
    [
        pa.field("module", pa.string(), nullable=False),
        pa.field("layer", pa.string(), nullable=False),
        pa.field("block", pa.int64(), nullable=False),
        pa.field("component", pa.string(), nullable=False),
        pa.field("in_features", pa.int64(), nullable=False),
        pa.field("out_features", pa.int64(), nullable=False),
        pa.field("norm_a", pa.float64()),
        pa.field("norm_b", pa.float64()),
        pa.field("fisher", pa.float64()),
        pa.field("importance", pa.float64()),
        pa.field("explained_variance", pa.list_(pa.float64())),
        pa.field("triplets", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class ProbedLayer:
    """A layer and what is known of it; None where it was not measured.

    norm_a, norm_b: mean gradient norm of its LoRA's A and B over a short run. fisher: mean squared gradient of one
    parameter of A and B there (the diagonal of the empirical Fisher information). importance: mean of |W * dL/dW| over
    its weight W, of the base model (GoRA, Eq. 5). explained_variance: shares of the variance of its input, the largest
    first (EVA). triplets: importance of each singular triplet at the end of an AdaLoRA run.
    """

    place: Place
    norm_a: float | None = None
    norm_b: float | None = None
    fisher: float | None = None
    importance: float | None = None
    explained_variance: tuple[float, ...] | None = None
    triplets: tuple[float, ...] | None = None

    @property
    def norm(self) -> float:
        """Average gradient norm of the component: Eq. 1 of HyDRA over its parameters A and B.

        Raises:
            ValueError: it was not recorded.
        """
        return float(_known(self, "norm_a") + _known(self, "norm_b")) / 2


@dataclass(frozen=True)
class Probe:
    """The layers of one module (`me` or `llm`)."""

    module: str
    layers: tuple[ProbedLayer, ...]

    columns: ClassVar[tuple[str, ...]] = ("norm_a", "norm_b", "fisher", "importance", "explained_variance", "triplets")

    @property
    def places(self) -> tuple[Place, ...]:
        """The layers themselves."""
        return tuple(one.place for one in self.layers)

    @property
    def blocks(self) -> int:
        """How many blocks there are: N_l in HyDRA."""
        return len({place.block for place in self.places})

    def block_norms(self) -> list[float]:
        """Average gradient norm of each block (Eq. 1 of HyDRA): over the A and B of all its components."""
        norms: dict[int, list[float]] = {}
        for one in self.layers:
            norms.setdefault(one.place.block, []).append(one.norm)
        return [sum(norms[block]) / len(norms[block]) for block in sorted(norms)]

    def component_norms(self) -> dict[str, float]:
        """Average gradient norm of each component over the blocks (Table I of HyDRA)."""
        norms: dict[str, list[float]] = {}
        for one in self.layers:
            norms.setdefault(one.place.component, []).append(one.norm)
        return {name: sum(own) / len(own) for name, own in norms.items()}

    def values(self, column: str) -> dict[str, Any]:
        """A column by layer.

        Raises:
            ValueError: it was not measured.
        """
        return {one.place.layer: _known(one, column) for one in self.layers}

    def with_values(self, **columns: Mapping[str, Any]) -> Probe:
        """The same with more columns, each by layer; a layer that a column does not name keeps what it has."""
        layers = []
        for one in self.layers:
            own = {name: values[one.place.layer] for name, values in columns.items() if one.place.layer in values}
            layers.append(replace(one, **own))
        return replace(self, layers=tuple(layers))


def _known(layer: ProbedLayer, column: str) -> Any:
    value = getattr(layer, column)
    if value is None:
        raise ValueError(
            f"the probe holds no {column} of layer {layer.place.layer}: record it first (`mars refine` does)"
        )
    return value


def probe_table(probes: Sequence[Probe]) -> pa.Table:
    """A row per layer, columns of `SCHEMA`."""
    rows = []
    for probe in probes:
        for one in probe.layers:
            own = {name: getattr(one, name) for name in Probe.columns}
            rows.append({"module": probe.module} | one.place._asdict() | own)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def read_probes(table: pa.Table) -> dict[str, Probe]:
    """The probe of each module in a table that `probe_table` wrote."""
    layers: dict[str, list[ProbedLayer]] = {}
    for row in table.to_pylist():
        own: dict[str, Any] = {
            name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in Probe.columns
        }
        place = Place(**{name: row[name] for name in Place._fields})
        layers.setdefault(row["module"], []).append(ProbedLayer(place, **own))
    return {module: Probe(module, tuple(own)) for module, own in layers.items()}


def mean_of_runs(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Columns `norm_a`, `norm_b` and `fisher` of several runs (rows by `layer`), averaged over them, by column."""
    means = rows.groupby("layer")[["norm_a", "norm_b", "fisher"]].mean()
    return {str(name): {str(layer): float(value) for layer, value in means[name].items()} for name in means.columns}
