"""What the report shows of layer-wise ranks: plain values read from the study folder."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from mars_core.records import json_safe
from tasks.refine.ranks import shared_out_in
from tasks.storage.folder import Revision


def layer_ranks_shown(revision: Revision) -> dict[str, Any]:
    """`shared`: every way that ranks were shared out, and `spectra`: every trained adapter that was looked at.

    Each has a row per layer. Empty where nothing was refined.
    """
    shared = [
        {"name": own.name, "title": own.title, "pair": list(own.pair), "modules": json_safe(own.modules)}
        | {"rows": pq.read_table(path.with_suffix(".parquet")).to_pylist()}
        for path, own in shared_out_in(revision)
    ]
    spectra = [
        {"name": path.stem, "rows": pq.read_table(path).to_pylist()}
        for path in sorted(revision.path("refine", "spectra").glob("*.parquet"))
    ]
    return {"shared": shared, "spectra": spectra} if shared or spectra else {}
