"""What the demo's backbone could do before any fine-tune, as data: to read a text, and to tell how a drawing looks.

    folder/
      reading.json      text alone: notes or a story, and questions about them, as its LLM was pre-trained on
      looks.json        grey drawings that the demo never shows: shade, shape and extent, as its projector was
      images/*.png      64 x 64 pixels
      manifest.json     what the data were made from; same arguments, same bytes

Texts and views are drawn anew, so none is one that the parts were trained on, but their kind is the same.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mars_core.demo.data import write_records
from mars_core.demo.drawings import draw_unasked, openmoji_version
from mars_core.demo.pretrain import describe_looks, grey_views
from mars_core.demo.text import Document, asked_about, sample_reading

_FORMAT_VERSION = 1  # raise when the same arguments would give other data
_ROLES = {"user": "human", "assistant": "gpt"}


@dataclass(frozen=True)
class UpstreamData:
    """Where the built upstream data lie."""

    folder: Path

    @property
    def reading(self) -> Path:
        """Questions about texts."""
        return self.folder / "reading.json"

    @property
    def looks(self) -> Path:
        """Questions about grey drawings."""
        return self.folder / "looks.json"

    @property
    def images(self) -> Path:
        """Folder of the pictures."""
        return self.folder / "images"


def build_upstream_data(folder: Path, *, n_samples: int = 200, seed: int = 0) -> UpstreamData:
    """Build the upstream data in `folder`, or return at once when the same data are already there.

    Raises:
        ValueError: fewer than two samples are asked for, or `folder` holds something else.
    """
    if n_samples < 2:
        raise ValueError(f"n_samples must be at least 2, got {n_samples}")
    manifest = {"n": n_samples, "seed": seed, "openmoji": openmoji_version(), "format_version": _FORMAT_VERSION}
    data, path = UpstreamData(folder), folder / "manifest.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == manifest:
        return data
    if folder.is_dir() and any(folder.iterdir()) and not path.is_file():
        raise ValueError(f"{folder} holds other files; give an empty or new folder for the upstream data")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new = UpstreamData(Path(temporary) / "data")
        new.images.mkdir(parents=True)
        write_records(new.reading, _reading_records(n_samples, seed))
        write_records(new.looks, _looks_records(new, n_samples, seed))
        write_records(new.folder / "manifest.json", manifest)
        if folder.exists():
            shutil.rmtree(folder)
        new.folder.rename(folder)
    return data


def _reading_records(n: int, seed: int) -> list[dict[str, Any]]:
    documents = sample_reading(n, random.Random(f"upstream-reading-{seed}"))
    return [_record(f"reading-{number:05d}", "reading", document) for number, document in enumerate(documents)]


def _looks_records(data: UpstreamData, n: int, seed: int) -> list[dict[str, Any]]:
    """Records, with their pictures written beside them."""
    rng = random.Random(f"upstream-looks-{seed}")
    views = grey_views(draw_unasked(n, rng), torch.Generator().manual_seed(seed + 1))
    levels = np.round(255 * views[:, 0].clamp(0, 1).numpy()).astype(np.uint8)
    seen = torch.from_numpy(levels.astype(np.float32) / 255)  # what the file shows, not what was drawn
    records = []
    for number, (looks, picture) in enumerate(zip(describe_looks(seen), levels, strict=True)):
        record = _record(f"looks-{number:05d}", "looks", asked_about(looks, "<image>", rng))
        name = f"looks-{number:05d}.png"
        Image.fromarray(np.repeat(picture[:, :, None], 3, axis=2)).save(data.images / name, format="PNG")
        records.append(record | {"image": name})
    return records


def _record(name: str, task: str, document: Document) -> dict[str, Any]:
    turns = [{"from": _ROLES[message["role"]], "value": message["content"]} for message in document]
    return {"id": name, "task": task, "conversations": turns}
