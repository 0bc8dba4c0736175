"""Pictures and conversations of one task, and their encoding. Written as users' own data are: PNG and LLaVA-style JSON.

`caption`, `attribute` and `choice` are the demo's scenes. `detail` asks for a small mark on a drawing, a few pixels
wide: words and colours of the scene do not tell it.
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
from numpy.typing import NDArray
from PIL import Image

from mars_core.data.encode import Encoded, encode_sample
from mars_core.data.readers import read_samples
from mars_core.demo.data import llava_record, split_drawings
from mars_core.demo.drawings import Drawing, load_drawings
from mars_core.demo.questions import ask, sample_turns
from mars_core.demo.scenes import Placed, Scene, by_colour, render_scene, sample_scene
from mars_core.rankbench.cells import Task

SIZES = {"train": 2048, "validation": 192, "test": 384}
QUESTIONS = 3
"""Turns of a sample of `attribute`."""
_MARKS = {
    "cross": ("#.....#", ".#...#.", "..#.#..", "...#...", "..#.#..", ".#...#.", "#.....#"),
    "plus": ("...#...", "...#...", "...#...", "#######", "...#...", "...#...", "...#..."),
    "ring": (".#####.", "#.....#", "#.....#", "#.....#", "#.....#", "#.....#", ".#####."),
    "bar": (".......", ".......", "#######", "#######", "#######", ".......", "......."),
    "post": ("..###..", "..###..", "..###..", "..###..", "..###..", "..###..", "..###.."),
    "dot": (".......", "..###..", ".#####.", ".#####.", ".#####.", "..###..", "......."),
}
MARKS: dict[str, NDArray[np.bool_]] = {
    name: np.array([[cell == "#" for cell in row] for row in rows]) for name, rows in _MARKS.items()
}
Sample = tuple[Image.Image, list[tuple[str, str]]]


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
            picture, turns = _SAMPLES[task](groups, rng)
            name = f"{split}-{index:05d}"
            picture.save(images / f"{name}.png", format="PNG")
            records.append(llava_record(name, task, turns))
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


def _demo_task(task: str) -> Callable[[dict[str, list[Drawing]], random.Random], Sample]:
    def sample(groups: dict[str, list[Drawing]], rng: random.Random) -> Sample:
        scene = sample_scene(groups, rng)
        return render_scene(scene), sample_turns(task, scene, rng)

    return sample


def _attributes(groups: dict[str, list[Drawing]], rng: random.Random) -> Sample:
    scene = sample_scene(groups, rng)
    return render_scene(scene), [(asked.text, asked.answer) for asked in ask(scene, rng)[:QUESTIONS]]


def _detail(groups: dict[str, list[Drawing]], rng: random.Random) -> Sample:
    scene = sample_scene(groups, rng)
    marks = [rng.choice(sorted(MARKS)) for _ in scene.objects]
    turns = [(f"Which mark is on the {o.colour} thing?", mark) for o, mark in zip(scene.objects, marks, strict=True)]
    return _marked(scene, marks), turns


def _marked(scene: Scene, marks: list[str]) -> Image.Image:
    pixels = np.array(render_scene(scene))
    for placed, mark in zip(scene.objects, marks, strict=True):
        _paint(pixels, placed, MARKS[mark])
    return Image.fromarray(pixels)


def _paint(pixels: NDArray[np.uint8], placed: Placed, mark: NDArray[np.bool_]) -> None:
    """A black mark on a white label in the middle of a drawing."""
    side = len(mark)
    top, left = placed.top + (placed.side - side) // 2, placed.left + (placed.side - side) // 2
    pixels[top - 1 : top + side + 1, left - 1 : left + side + 1] = 255
    pixels[top : top + side, left : left + side][mark] = 0


_SAMPLES: dict[Task, Callable[[dict[str, list[Drawing]], random.Random], Sample]] = {
    "caption": _demo_task("caption"),
    "attribute": _attributes,
    "choice": _demo_task("choice"),
    "detail": _detail,
}
