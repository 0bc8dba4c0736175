"""LLaVA JSON: records {id, image, conversations: [{from: human or gpt, value}], task}."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mars_core.data.readers.conversation import RowError, image_paths, parse_conversation
from mars_core.data.readers.json_records import is_list
from mars_core.data.readers.json_rows import Parts, first_keys, read_json_rows
from mars_core.data.records import BadRow, Sample


def recognise(path: Path) -> bool:
    """Whether the first records have `conversations`, or the file is a list that no other format claims."""
    return path.is_file() and ("conversations" in first_keys(path) or is_list(path))


def read_rows(path: Path, image_folder: Path | None, split: str | None) -> Iterator[Sample | BadRow]:
    """Yield every record as a sample, or the reason why it is none."""
    return read_json_rows(path, image_folder or path.parent, _parse)


def _parse(record: Mapping[str, Any], image_folder: Path) -> Parts:
    if "conversations" not in record:
        raise RowError(f"no `conversations`, only {', '.join(map(repr, record)) or 'nothing'}")
    conversation = parse_conversation(record["conversations"], record.get("system"))
    return image_paths(record.get("image"), "image", image_folder), conversation.turns
