"""Markdown: tables, and text of others that must not become markup."""

import re
from collections.abc import Sequence

# An underscore within a word, as in learning_rate, is no markup.
_MARKUP = re.compile(r"[\\`*\[\]!#~]|(?<!\w)_|_(?!\w)")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def plain(text: object) -> str:
    """Text that somebody else wrote, so that Markdown shows it letter for letter: no markup, link, picture or HTML."""
    escaped = "".join(_HTML.get(letter, letter) for letter in " ".join(str(text).split()))
    return _MARKUP.sub(lambda match: "\\" + match[0], escaped)


def code(text: object) -> str:
    """The same between backticks, which it cannot end."""
    return "`" + " ".join(str(text).split()).replace("`", "'") + "`"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that no content of a cell can break; markup in cells is the caller's (`plain` for others' text)."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    # A name may be the user's own text: it must not end the cell, nor begin a tag.
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").replace(">", "&gt;")
