"""Pictures and conversations of one task, and their encoding. Written as users' own data are: PNG and LLaVA-style JSON.

All show one drawing, none of those of pre-training, on a coloured ground. `detail` asks what pre-training asked, of
pictures whose tiles come in another order (`in_tiles`): work for the vision encoder, none for the LLM. `attribute` asks
for less of the same pictures in other words: work for both. `caption` and `choice` ask for answers of a new form about
pictures as pre-training had them: work for the LLM.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mars_core.data.encode import Encoded, encode_sample
from mars_core.data.readers import read_samples
from mars_core.demo.data import llava_record, split_drawings
from mars_core.demo.drawings import DRAWING_COLOURS, load_drawings
from mars_core.demo.questions import Question, choice_prompt
from mars_core.demo.scenes import GROUNDS, PLACES, Scene, by_colour, render_scene
from mars_core.demo.scenes import SIZES as SCENE_SIZES
from mars_core.rankbench.cells import Task
from mars_core.rankbench.world import Turns, ask_all, list_all, row_and_column, sample_alone

SIZES = {"train": 1024, "validation": 64, "test": 192}
TILE = 16


@dataclass(frozen=True)
class TaskData:
    """Encoded samples of each split; digest: of all files they were made from."""

    train: list[Encoded]
    validation: list[Encoded]
    test: list[Encoded]
    digest: str


def write_task(folder: Path, task: Task) -> None:
    """Write SPLIT.json and the pictures of a task; the same for the same package versions."""
    drawings = split_drawings(load_drawings(with_kind_only=True), seed=0)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        rng = random.Random(f"rankbench-{task}-{split}")
        groups = by_colour(drawings[split])
        records = []
        for index in range(size):
            scene = sample_alone(groups, rng)
            picture = _PICTURES[task](render_scene(scene))
            name = f"{split}-{index:05d}"
            picture.save(images / f"{name}.png", format="PNG")
            records.append(llava_record(name, task, _TURNS[task](scene, rng)))
        (folder / f"{split}.json").write_text(json.dumps(records, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_task(folder: Path, processor: Any) -> TaskData:
    """Read and encode what `write_task` wrote."""
    splits = {
        split: [
            encode_sample(sample, processor) for sample in read_samples(folder / f"{split}.json", folder / "images")
        ]
        for split in SIZES
    }
    return TaskData(splits["train"], splits["validation"], splits["test"], _digest(folder))


def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def _captions(scene: Scene, rng: random.Random) -> Turns:
    (o,) = scene.objects
    return [("Describe the picture.", f"a {o.size} {o.colour} thing at the {o.place} on a {scene.ground} ground")]


def _attributes(scene: Scene, rng: random.Random) -> Turns:
    (o,) = scene.objects
    return [("Where?", f"row {' column '.join(row_and_column(o))}, {o.place}, {o.size}")]


def _choices(scene: Scene, rng: random.Random) -> Turns:
    options = (PLACES, tuple(SCENE_SIZES), DRAWING_COLOURS, tuple(GROUNDS))
    (text, answer), words = rng.choice([*zip(ask_all(scene), options, strict=False)])
    return [choice_prompt(Question(text, answer, words), rng)]


def _detail(scene: Scene, rng: random.Random) -> Turns:
    return list_all(scene)


def in_tiles(picture: Image.Image) -> Image.Image:
    """The same picture with its tiles of `TILE` pixels in an order of their own, as of another scanner.

    What lies where is told by the vision encoder's positions alone, so they have to be learnt anew.
    """
    pixels = np.asarray(picture)
    side = len(pixels) // TILE
    order = random.Random("rankbench-tiles").sample(range(side * side), side * side)
    tiles = pixels.reshape(side, TILE, side, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)[order]
    return Image.fromarray(tiles.reshape(side, side, TILE, TILE, 3).swapaxes(1, 2).reshape(pixels.shape))


def as_it_is(picture: Image.Image) -> Image.Image:
    """The picture itself."""
    return picture


_PICTURES: dict[Task, Callable[[Image.Image], Image.Image]] = {
    "caption": as_it_is,
    "attribute": in_tiles,
    "choice": as_it_is,
    "detail": in_tiles,
}
_TURNS: dict[Task, Callable[[Scene, random.Random], Turns]] = {
    "caption": _captions,
    "attribute": _attributes,
    "choice": _choices,
    "detail": _detail,
}
