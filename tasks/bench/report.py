"""Write RankBench's page."""

from __future__ import annotations

from pathlib import Path

from mars_core.rankbench.cells import cell_named
from mars_core.rankbench.page import render_page
from mars_core.rankbench.truth import truth_of
from mars_core.rankbench.verdicts import is_whole
from tasks.bench.replay import Replayed
from tasks.storage.files import replacing


def write_page(replayed: Replayed, out: Path) -> Path:
    """Write the page of a replay and give its path."""
    truths = {
        name: truth_of(rows, "constant")
        for name, rows in replayed.rows.items()
        if is_whole(cell_named(name), rows, "constant")
    }
    page = render_page(replayed.cells, replayed.records, truths)
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out
