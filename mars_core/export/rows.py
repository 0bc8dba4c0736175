"""Samples as rows of the files that other fine-tuning tools read, so that these train the tokens that MARS trains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mars_core.data.chat import chat_messages
from mars_core.data.images import content_hash, image_bytes, is_plain, load_image, resolve
from mars_core.data.lengths import TokenCounter
from mars_core.data.records import IMAGE_MARKER, ImageRef, PathImage, Sample, Turn
from mars_core.export.chat_facts import ChatFacts, chat_facts

IMAGES = "images"


class RowWriter:
    """Writes samples as rows. Images that tools would not find, or not read as MARS does, become files in `folder`."""

    def __init__(self, processor: Any, folder: Path, named: Path | None = None) -> None:
        """named: the folder's name in the rows, where it is another one."""
        self._processor = processor
        self._folder, self._named = folder, named or folder

    @cached_property
    def facts(self) -> ChatFacts:
        """How the model's chat template writes a conversation."""
        return chat_facts(self._processor)

    def marked(self, sample: Sample) -> dict[str, Any]:
        """Messages with `<image>` where an image stands, and the images' paths beside them (LLaMA-Factory, ms-swift).

        What the model's own template puts between image and text stands in the text: those tools' templates put
        nothing there.
        """
        messages = [{"role": turn.role, "content": self._content(turn), **_untrained(turn)} for turn in sample.turns]
        return {"messages": messages, "images": self._files(sample)}

    def blocks(self, sample: Sample) -> dict[str, Any]:
        """Messages of typed blocks, each image block with its path (Axolotl)."""
        files = iter(self._files(sample))
        messages = chat_messages(tuple(sample.turns))
        for message in messages:
            for block in message["content"]:
                if block["type"] == "image":
                    block["path"] = next(files)
        return {"messages": messages}

    def encoded(self, sample: Sample) -> dict[str, Any]:
        """The text as the chat template makes it, and where its answers stand among its tokens (TRL, Unsloth)."""
        counted = self._count.count(sample)
        spans = [list(span) for span in counted.spans]
        return {
            "text": counted.chat.text,
            "images": self._files(sample),
            "answers": json.dumps(spans),
            "tokens": counted.tokens,
        }

    @cached_property
    def _count(self) -> TokenCounter:
        return TokenCounter(self._processor)

    def _content(self, turn: Turn) -> str:
        if IMAGE_MARKER not in turn.text:
            return turn.text
        pieces = [piece.strip("\r\n") for piece in turn.text.split(IMAGE_MARKER)]
        marker = IMAGE_MARKER + self.facts.after_image
        if self.facts.images_first:
            texts = self.facts.between_texts.join(piece for piece in pieces if piece.strip())
            return IMAGE_MARKER * (len(pieces) - 1) + self.facts.after_image + texts
        return marker.join(piece if piece.strip() else "" for piece in pieces)

    def _files(self, sample: Sample) -> list[str]:
        if sample.sounds:
            raise ValueError(
                f"{sample.source}: exports to training tools hold images and text, and this row has a sound: take the "
                "adapter itself (`mars export STUDY --merged DIR`)"
            )
        return [str(self._file(image)) for image in sample.images]

    def _file(self, image: ImageRef) -> Path:
        plain = is_plain(image)
        if plain and isinstance(image, PathImage):
            return resolve(image)
        suffix = f".{plain.lower()}" if plain else ".png"
        name = f"{content_hash(image)[:24]}{suffix}"
        file = self._folder / IMAGES / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            if plain:
                file.write_bytes(image_bytes(image))
            else:
                load_image(image).save(file)
        return self._named / IMAGES / name


def _untrained(turn: Turn) -> Mapping[str, bool]:
    """ms-swift's key."""
    return {} if turn.trained else {"loss": False}
