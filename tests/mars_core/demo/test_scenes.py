import random

import numpy as np
import pytest

from mars_core.demo.drawings import Drawing
from mars_core.demo.questions import ask, caption, choice_prompt
from mars_core.demo.scenes import GROUNDS, IMAGE_SIZE, PLACES, SIZES, by_colour, render_scene, sample_scene

RED, BLUE = (255, 0, 0), (0, 0, 255)


def square(colour, rgb):
    pixels = np.full((72, 72, 4), 255, dtype=np.uint8)
    pixels[..., :3] = rgb
    return Drawing(code=colour, name=colour, kind="animal", colour=colour, pixels=pixels)


@pytest.fixture(params=range(20))
def scene(request):
    groups = by_colour([square("red", RED), square("blue", BLUE), square("grey", (99, 99, 99))])
    return sample_scene(groups, random.Random(request.param))


def test_words_agree_with_the_pixels(scene):
    picture = np.asarray(render_scene(scene))
    for placed in scene.objects:
        middle = (placed.top + placed.side // 2, placed.left + placed.side // 2)
        assert tuple(picture[middle]) == tuple(placed.drawing.pixels[0, 0, :3])
        row, column = (2 * pixel // IMAGE_SIZE for pixel in middle)
        assert placed.place == PLACES[2 * row + column]
        low, high = SIZES[placed.size]
        assert low <= placed.side <= high


def test_the_ground_has_its_word_and_no_drawing_shares_it(scene):
    assert scene.ground not in {placed.colour for placed in scene.objects}
    assert np.abs(np.subtract(scene.ground_rgb, GROUNDS[scene.ground])).max() <= 14


def test_every_answer_is_one_of_its_options(scene):
    for question in ask(scene, random.Random(0)):
        assert question.answer in question.options
        prompt, letter = choice_prompt(question, random.Random(0))
        assert f"{letter}. {question.answer}\n" in prompt


def test_the_caption_tells_everything(scene):
    text = caption(scene).lower()
    for placed in scene.objects:
        assert f"a {placed.size} {placed.colour} {placed.kind} at the {placed.place}" in text
    assert text.endswith(f"on a {scene.ground} ground.")
