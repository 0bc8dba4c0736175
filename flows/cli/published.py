"""`mars laws published`: the MLLM-SFT paper's coefficients, and its printed numbers beside what they give."""

from __future__ import annotations

from rich.table import Table

from flows.cli.errors import one_message
from flows.cli.laws import AsJson
from flows.cli.output import console, print_json

LARGE = 0.025
"""Relative deviation from which a number does not follow from the coefficients; printed digits explain up to 2.1%."""


@one_message
def published(as_json: AsJson = False) -> None:
    """Print the coefficients of the paper on multimodal SFT, and its numbers against what they give."""
    from mars_core.laws.sft_published import PUBLISHED
    from mars_core.laws.sft_reproduced import Row, reproduce

    rows = reproduce()
    if as_json:
        presets = [
            {"name": one.name, "law": one.law, "coefficients": dict(one.coefficients), "source": one.source}
            | {"units": one.units, "r_squared": one.r_squared}
            for one in PUBLISHED.values()
        ]
        print_json({"coefficients": presets, "reproduced": [row.as_json() for row in rows]})
        return
    coefficients = Table("name", "coefficients", "R2", "source", "units")
    for one in PUBLISHED.values():
        shown = ", ".join(f"{symbol} {value:g}" for symbol, value in one.coefficients.items())
        coefficients.add_row(
            one.name, shown, "" if one.r_squared is None else f"{one.r_squared:g}", one.source, one.units
        )
    console.print(coefficients)

    def cells(row: Row) -> list[str]:
        printed = "" if row.printed is None else f"{row.printed:.6g}" + (" (derived)" if row.derived else "")
        deviation = "" if row.deviation is None else f"{row.deviation:+.2%}"
        return [row.kind, row.quantity, printed, f"{row.reproduced:.6g}", deviation, row.note]

    table = Table("part", "quantity", "printed", "reproduced", "deviation", "note")
    for row in rows:
        table.add_row(*cells(row), style="yellow" if row.deviation is not None and abs(row.deviation) > LARGE else "")
    console.print(table)
    deviations = [row.deviation for row in rows if row.deviation is not None]
    off = sum(abs(deviation) > LARGE for deviation in deviations)
    console.print(f"{off} of {len(deviations)} printed numbers are off by more than {LARGE:.0%}; see docs/sft-laws.md")
