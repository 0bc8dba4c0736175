"""ShareGPT as LLaMA-Factory reads it: records {conversations: [{from, value}], images, system}."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mars_core.data.readers.conversation import RowError, image_paths, parse_conversation
from mars_core.data.readers.json_rows import Parts, first_keys, read_json_rows
from mars_core.data.records import BadRow, Sample

_MESSAGES = ("conversations", "messages")


def recognise(path: Path) -> bool:
    """Whether the first records have `conversations`, and `images` or `system` rather than `image`."""
    keys = first_keys(path)
    return "conversations" in keys and "image" not in keys and bool({"images", "system"} & keys)


def read_rows(path: Path, image_folder: Path | None, split: str | None) -> Iterator[Sample | BadRow]:
    """Yield every record as a sample, or the reason why it is none."""
    return read_json_rows(path, image_folder or path.parent, _parse)


def _parse(record: Mapping[str, Any], image_folder: Path) -> Parts:
    column = next((name for name in _MESSAGES if name in record), None)
    if column is None:
        raise RowError(f"no `conversations` or `messages`, only {', '.join(map(repr, record)) or 'nothing'}")
    conversation = parse_conversation(record[column], record.get("system"))
    return image_paths(record.get("images"), "images", image_folder), conversation.turns
