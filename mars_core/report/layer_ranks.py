"""Rows of the report on layer-wise ranks, formatted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mars_core.report import formatting as f
from mars_core.report.data import ReportData

Row = dict[str, Any]
WASTEFUL = 0.5
"""Below this mean share of ranks used, the report says that less rank would have done."""
FULL = 0.85
"""Above it, the report says that more rank may help."""


def shared_rows(data: ReportData) -> list[Row]:
    """One row per way and module: the uniform rank, the ranks given, and what they take."""
    rows = []
    for own in data.layer_ranks.get("shared", []):
        for module, shared in own["modules"].items():
            ranks = [row["rank"] for row in own["rows"] if row["module"] == module]
            rows.append(
                {
                    "name": own["name"],
                    "title": own["title"],
                    "module": module,
                    "uniform": shared["rank"],
                    "ranks": f"{min(ranks)} to {max(ranks)}",
                    "spent": f"{shared['spent']:,}",
                    "share": f.percent(shared["spent"] / shared["budget"], 2),
                }
            )
    return rows


def use_rows(data: ReportData) -> list[Row]:
    """One row per adapter, module and block: its ranks, the mean stable rank, and the share of its ranks in use."""
    rows = []
    for own in data.layer_ranks.get("spectra", []):
        blocks: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
        for layer in own["rows"]:
            if layer["block"] is not None:
                blocks[layer["module"], int(layer["block"])].append(layer)
        for (module, block), layers in blocks.items():
            ranks = [layer["rank"] for layer in layers]
            rows.append(
                {
                    "name": own["name"],
                    "module": module,
                    "block": block + 1,
                    "ranks": f"{min(ranks)} to {max(ranks)}" if min(ranks) < max(ranks) else str(ranks[0]),
                    "stable": f.fixed(_mean(layers, "stable_rank"), 1),
                    "used": f.percent(_mean(layers, "utilisation"), 0),
                }
            )
    return rows


def use_sentences(data: ReportData) -> list[str]:
    """What each module's use of its ranks says about them."""
    sentences = []
    for own in data.layer_ranks.get("spectra", []):
        for module in dict.fromkeys(layer["module"] for layer in own["rows"]):
            layers = [layer for layer in own["rows"] if layer["module"] == module]
            used = _mean(layers, "utilisation")
            said = "" if WASTEFUL <= used <= FULL else _verdict(used)
            sentences.append(f"{own['name']}: {module} uses {used:.0%} of its ranks{said}.")
    return sentences


def _verdict(used: float) -> str:
    return ", so less rank may have done" if used < WASTEFUL else ", so more rank may help"


def _mean(layers: Sequence[Mapping[str, Any]], column: str) -> float:
    return float(sum(layer[column] for layer in layers) / len(layers))
