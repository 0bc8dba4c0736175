"""Messages as OpenAI, TRL and ms-swift write them: records {messages: [{role, content}], images}.

Content is text, or blocks of type text and image. An image block names its path itself, or stands for the
next one of `images`. Where no message says where the images belong, they stand before the first question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mars_core.data.readers.conversation import RowError, image_paths, parse_conversation, with_markers
from mars_core.data.readers.json_rows import Parts, first_keys, read_json_rows
from mars_core.data.records import BadRow, Sample

_IMAGES = ("images", "image")


def recognise(path: Path) -> bool:
    """Whether the first records have `messages`."""
    return "messages" in first_keys(path)


def read_rows(path: Path, image_folder: Path | None, split: str | None) -> Iterator[Sample | BadRow]:
    """Yield every record as a sample, or the reason why it is none."""
    return read_json_rows(path, image_folder or path.parent, _parse)


def _parse(record: Mapping[str, Any], image_folder: Path) -> Parts:
    if "messages" not in record:
        raise RowError(f"no `messages`, only {', '.join(map(repr, record)) or 'nothing'}")
    conversation = parse_conversation(record["messages"], record.get("system"))
    column = next((name for name in _IMAGES if record.get(name)), "images")
    beside = image_paths(record.get(column), column, image_folder)
    inside = image_paths(list(conversation.paths), "content", image_folder)
    if beside and inside:
        raise RowError(f"images are named both in `{column}` and in content blocks: name each in one place")
    return beside or inside, with_markers(conversation.turns, len(beside))
