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

PLACES: tuple[str, ...] = ("top left", "top right", "bottom left", "bottom right")
"""The four quarters of the picture, row by row."""

SIZES: dict[str, tuple[int, int]] = {"small": (15, 19), "large": (27, 31)}
"""Words for a drawing's size and the range of its side in pixels."""

GROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (38, 38, 42),
    "blue": (40, 92, 200),
    "green": (44, 142, 62),
    "pink": (246, 172, 200),
    "purple": (118, 66, 158),
    "red": (198, 42, 44),
    "white": (246, 246, 244),
    "yellow": (246, 222, 62),
}
"""Words for the colours of the ground and their RGB values, each then varied a little."""

_COLOUR_JITTER = 14


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
    """Draw a scene whose drawings differ in colour and stand in different quarters."""
    n_objects = rng.choice((1, 1, 2, 2, 3))
    colours = rng.sample(sorted(groups), n_objects)
    ground = rng.choice([word for word in GROUNDS if word not in colours])
    places = sorted(rng.sample(range(len(PLACES)), n_objects))
    objects = tuple(
        _place(rng.choice(groups[colour]), place, rng) for colour, place in zip(colours, places, strict=True)
    )
    return Scene(ground=ground, ground_rgb=_jitter(GROUNDS[ground], rng), objects=objects)


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
    half = IMAGE_SIZE // 2
    row, column = divmod(place, 2)
    return Placed(
        drawing=drawing,
        left=column * half + rng.randint(0, half - side),
        top=row * half + rng.randint(0, half - side),
        side=side,
        size=size,
        place=PLACES[place],
    )


def _jitter(rgb: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, c + rng.randint(-_COLOUR_JITTER, _COLOUR_JITTER))) for c in rgb)
    return red, green, blue
