"""Imported runs as Parquet: the checkpoint-metrics contract, as far as an import knows its columns."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from mars_core.importing.rows import METRICS, PEAKS
from mars_core.metrics.schema import SCHEMA, SCHEMA_VERSION

OPTIONAL = ("lr", *PEAKS)


def to_imported_table(metrics: pd.DataFrame) -> pa.Table:
    """Metrics of imported runs under the contract's names, types and units.

    What the runs do not say (gradients, time, device, hashes) is left out rather than made up.
    """
    names = ["schema_version", *METRICS, *(name for name in OPTIONAL if name in metrics.columns)]
    schema = pa.schema([SCHEMA.field(name) for name in names])
    return pa.Table.from_pandas(metrics.assign(schema_version=SCHEMA_VERSION), schema=schema, preserve_index=False)
