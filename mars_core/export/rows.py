"""Samples as rows of the conversation files that other fine-tuning tools read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mars_core.data.chat import chat_messages
from mars_core.data.images import resolve
from mars_core.data.records import ImageRef, PathImage, Sample


def image_files(samples: Iterable[Sample]) -> bool:
    """Whether every image is a file of its own; images inside Parquet or Arrow tables are not."""
    return all(isinstance(image, PathImage) for sample in samples for image in sample.images)


def marked_row(sample: Sample) -> dict[str, Any]:
    """Messages with `<image>` where an image stands, and the images' paths beside them (LLaMA-Factory, ms-swift)."""
    messages = [{"role": turn.role, "content": turn.text} for turn in sample.turns]
    return {"messages": messages, "images": [str(_file(image)) for image in sample.images]}


def block_row(sample: Sample) -> dict[str, Any]:
    """Messages of typed blocks, each image block with its path (Axolotl)."""
    images = iter(sample.images)
    messages = chat_messages(tuple(sample.turns))
    for message in messages:
        for block in message["content"]:
            if block["type"] == "image":
                block["path"] = str(_file(next(images)))
    return {"messages": messages}


def _file(image: ImageRef) -> Path:
    if not isinstance(image, PathImage):
        raise ValueError(
            f"image {image} lies inside a table file, and other tools take paths: write it as a file first"
        )
    return resolve(image)
