"""Tables in the docs that a command writes, between two HTML comments that name it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_table(text: str, name: str, table: str) -> str:
    """The text with `table` between the comments of `name`.

    Raises:
        ValueError: the comments are not there.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"there is no place for the table: put {begin} and {end} around it")
    return f"{before}{begin}\n{table}\n{end}{after}"
