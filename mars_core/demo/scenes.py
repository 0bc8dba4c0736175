"""Scenes: one to three drawings at random places and sizes on a coloured ground, and their pictures."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from mars_core.demo.drawings import Drawing

IMAGE_SIZE = 64
"""Side of a picture in pixels."""

PLACES: tuple[str, ...] = (
    "top left",
    "top",
    "top right",
    "left",
    "centre",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
"""The nine cells of the picture, row by row."""

SIZES: dict[str, tuple[int, int]] = {"small": (15, 18), "large": (26, 30)}
"""Words for a drawing's size and the range of its side in pixels."""

GROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (38, 38, 42),
    "blue": (40, 92, 200),
    "brown": (122, 82, 48),
    "green": (44, 142, 62),
    "grey": (136, 136, 138),
    "orange": (244, 146, 38),
    "pink": (246, 172, 200),
    "purple": (118, 66, 158),
    "red": (198, 42, 44),
    "white": (246, 246, 244),
    "yellow": (246, 222, 62),
}
"""Words for the colours of the ground and their RGB values, each then varied a little."""

_COLOUR_JITTER = 14
_MAX_OVERLAP = 0.12


@dataclass(frozen=True)
class Placed:
    """A drawing in a scene. left, top, side: its square in pixels; size, place: the words for them."""

    drawing: Drawing
    left: int
    top: int
    side: int
    size: str
    place: str

    @property
    def colour(self) -> str:
        """The word for the drawing's main colour."""
        if self.drawing.colour is None:
            raise ValueError(f"drawing {self.drawing.name!r} has no main colour")
        return self.drawing.colour

    @property
    def kind(self) -> str:
        """The word for what the drawing shows."""
        if self.drawing.kind is None:
            raise ValueError(f"drawing {self.drawing.name!r} has no kind")
        return self.drawing.kind


@dataclass(frozen=True)
class Scene:
    """What a picture shows. ground: word for the ground's colour; ground_rgb: its value; objects: in reading order."""

    ground: str
    ground_rgb: tuple[int, int, int]
    objects: tuple[Placed, ...]


def by_colour(drawings: Sequence[Drawing]) -> dict[str, list[Drawing]]:
    """Group drawings by their main colour, so that scenes can draw every colour equally often."""
    groups: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        if drawing.colour is not None:
            groups[drawing.colour].append(drawing)
    return dict(sorted(groups.items()))


def sample_scene(groups: dict[str, list[Drawing]], rng: random.Random) -> Scene:
    """Draw a scene whose drawings differ in colour, stand in different cells, and hardly overlap."""
    n_objects = rng.choice((1, 2, 2, 3, 3))
    colours = rng.sample(sorted(groups), n_objects)
    ground = rng.choice([word for word in GROUNDS if word not in colours])
    while True:
        places = rng.sample(range(len(PLACES)), n_objects)
        objects = [
            _place(rng.choice(groups[colour]), place, rng)
            for colour, place in zip(colours, sorted(places), strict=True)
        ]
        if not _crowded(objects):
            return Scene(ground=ground, ground_rgb=_jitter(GROUNDS[ground], rng), objects=tuple(objects))


def render_scene(scene: Scene) -> Image.Image:
    """Paint a scene: RGB, IMAGE_SIZE x IMAGE_SIZE."""
    picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), scene.ground_rgb)
    for placed in scene.objects:
        drawing = Image.fromarray(placed.drawing.pixels).resize((placed.side, placed.side), Image.Resampling.BOX)
        picture.paste(drawing, (placed.left, placed.top), drawing)
    return picture


def _place(drawing: Drawing, place: int, rng: random.Random) -> Placed:
    size = rng.choice(sorted(SIZES))
    side = rng.randint(*SIZES[size])
    row, column = divmod(place, 3)
    return Placed(
        drawing=drawing,
        left=_offset(column, side, rng),
        top=_offset(row, side, rng),
        side=side,
        size=size,
        place=PLACES[place],
    )


def _offset(cell: int, side: int, rng: random.Random) -> int:
    """First pixel of a drawing whose middle lies in this third of the picture and which stays inside it."""
    third = IMAGE_SIZE / 3
    low = max(0, round(cell * third - side / 2))
    high = min(IMAGE_SIZE - side, round((cell + 1) * third - side / 2))
    return rng.randint(low, max(low, high))


def _crowded(objects: list[Placed]) -> bool:
    return any(
        _overlap(a, b) > _MAX_OVERLAP * min(a.side, b.side) ** 2
        for i, a in enumerate(objects)
        for b in objects[:i]
    )


def _overlap(a: Placed, b: Placed) -> int:
    """Shared area of two squares in square pixels."""
    width = min(a.left + a.side, b.left + b.side) - max(a.left, b.left)
    height = min(a.top + a.side, b.top + b.side) - max(a.top, b.top)
    return max(0, width) * max(0, height)


def _jitter(rgb: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, c + rng.randint(-_COLOUR_JITTER, _COLOUR_JITTER))) for c in rgb)
    return red, green, blue
