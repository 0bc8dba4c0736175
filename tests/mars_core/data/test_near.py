from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from mars_core.data.image_fingerprints import ImageFingerprint, fingerprint_of
from mars_core.data.near import BITS, CELL, near_duplicates, near_labels
from mars_core.data.near import _difference_hash as difference_hash
from mars_core.data.records import BytesImage
from mars_core.data.splits import split_samples


def picture(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 255, (9, 9, 3)).astype(np.uint8)).resize((200, 150), Image.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = (int(value) for value in random.integers(0, 150, 2))
        draw.ellipse([x, y, x + 40, y + 30], fill=tuple(int(value) for value in random.integers(0, 255, 3)))
    return image


def encoded(image: Image.Image, name: str, kind: str = "PNG", **options) -> BytesImage:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return BytesImage(buffer.getvalue(), name)


CHANGES = {
    "encoded again": lambda image, name: encoded(image, name, "JPEG", quality=60),
    "smaller": lambda image, name: encoded(image.resize((100, 75)), name),
    "brighter": lambda image, name: encoded(ImageEnhance.Brightness(image).enhance(1.04), name),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_other_pictures_are_not(change):
    images = []
    for seed in range(25):
        images += [encoded(picture(seed), f"{seed}"), CHANGES[change](picture(seed), f"{seed}")]
    labels = near_labels({image: fingerprint_of(image) for image in images})
    for one, other in combinations(images, 2):
        assert (labels[one] == labels[other]) == (one.name == other.name)


def test_other_colours_and_one_changed_part_are_other_pictures():
    one = picture(1)
    red, green, blue = one.split()
    marked = one.copy()
    ImageDraw.Draw(marked).rectangle([20, 20, 60, 60], fill=(255, 255, 255))
    images = [encoded(one, "a"), encoded(Image.merge("RGB", (blue, green, red)), "b"), encoded(marked, "c")]
    assert len(set(near_labels({image: fingerprint_of(image) for image in images}).values())) == 3


def test_images_of_one_colour_are_left_alone():
    images = [encoded(Image.new("RGB", (9, 9), (shade, 9, 9)), str(shade)) for shade in range(30)]
    assert len(set(near_labels({image: fingerprint_of(image) for image in images}).values())) == 30


def test_no_pair_is_missed():
    """The oracle compares all pairs."""
    random = np.random.default_rng(3)
    base = random.integers(0, 200, (40, 432))
    fingerprints = {}
    for number in range(160):
        cells = (base[number % 40] + random.integers(0, 2 * CELL // 3, 432)).astype(np.uint8)
        fingerprints[BytesImage(b"", str(number))] = ImageFingerprint((1, 1), f"{number:03d}", cells.tobytes())
    names = list(fingerprints)
    cells = np.stack([np.frombuffer(fingerprints[name].thumbnail, np.uint8) for name in names])
    hashes = difference_hash(cells.reshape(-1, 12, 12, 3))
    group = list(range(len(names)))
    near = 0
    for one, other in combinations(range(len(names)), 2):
        alike = np.abs(cells[one].astype(int) - cells[other].astype(int)).max() <= CELL
        if (hashes[one] != hashes[other]).sum() <= BITS and alike:
            near += 1
            old, new = group[other], group[one]
            group = [new if value == old else value for value in group]
    labels = near_labels(fingerprints)
    assert near > 20
    for one, other in combinations(range(len(names)), 2):
        assert (labels[names[one]] == labels[names[other]]) == (group[one] == group[other])


def test_progress_is_told_up_to_the_last_image():
    """Half of them coloured shapes, half on white paper, as charts are; some have hardly any structure."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[:12, :12]
    fingerprints = {}
    for number in range(1000):
        cells = np.empty((12, 12, 3))
        cells[:] = 255 if number % 2 else random.uniform(0, 255, 3)
        for _ in range(5):
            across, down, radius = random.uniform(0, 12), random.uniform(0, 12), random.uniform(1, 6)
            cells[(x - across) ** 2 + (y - down) ** 2 < radius**2] = random.uniform(0, 255, 3)
        fingerprints[BytesImage(b"", str(number))] = ImageFingerprint(
            (1, 1), f"{number:05d}", cells.astype(np.uint8).tobytes()
        )
    compared = []
    labels = near_labels(fingerprints, progress=compared.append)
    assert len(set(labels.values())) == len(fingerprints)
    assert compared == sorted(compared)
    assert compared[-1] == len(fingerprints)


def test_near_duplicates_stay_in_one_split_and_are_named_across_given_ones(sample_of):
    pairs = [
        (encoded(picture(seed), f"{seed}.png"), CHANGES["smaller"](picture(seed), f"{seed}.jpg")) for seed in range(12)
    ]
    samples = [sample_of("<image>?", "A.", images=(image,), row=row) for row, image in enumerate(sum(pairs, ()), 1)]
    fingerprints = {image: fingerprint_of(image) for pair in pairs for image in pair}
    labels = near_labels(fingerprints)
    splits = split_samples(samples, seed=0, validation_size=4, test_size=4, hashes=labels)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    assert near_duplicates(parts, fingerprints, labels) == ()
    given = {"train": samples[0::2], "test": [*samples[1:4:2], samples[4]]}
    found = near_duplicates(given, fingerprints, labels)
    assert [(str(one.images["train"]), str(one.images["test"])) for one in found] == [
        ("0.png", "0.jpg"),
        ("1.png", "1.jpg"),
    ]
    assert found[0].shown_by["test"].source.row == 2
