"""What RankBench's pictures show: one drawing on a coloured ground; and the questions that pre-training asks."""

from __future__ import annotations

import random
from collections.abc import Mapping

from mars_core.demo.drawings import Drawing
from mars_core.demo.scenes import IMAGE_SIZE, Placed, Scene, sample_scene

Groups = Mapping[str, list[Drawing]]
Turns = list[tuple[str, str]]
LINES = ("one", "two", "three", "four")
"""Words for the rows and columns of a grid of four by four over a picture."""


def sample_alone(groups: Groups, rng: random.Random) -> Scene:
    """A scene of one drawing."""
    while len((scene := sample_scene(dict(groups), rng)).objects) > 1:
        pass
    return scene


def row_and_column(placed: Placed) -> tuple[str, str]:
    """Words for where the middle of a drawing lies in the grid, top to bottom and left to right."""
    cell = IMAGE_SIZE // len(LINES)
    return LINES[(placed.top + placed.side // 2) // cell], LINES[(placed.left + placed.side // 2) // cell]


def ask_all(scene: Scene) -> Turns:
    """Every question that pre-training asks about a scene."""
    (placed,) = scene.objects
    row, column = row_and_column(placed)
    return [
        ("Where is the thing?", placed.place),
        ("How large is the thing?", placed.size),
        ("What colour is the thing?", placed.colour),
        ("What colour is the ground?", scene.ground),
        ("Which row?", row),
        ("Which column?", column),
    ]


def list_all(scene: Scene) -> Turns:
    """All of them as one question."""
    return [("List all.", " ".join(answer for _, answer in ask_all(scene)))]
