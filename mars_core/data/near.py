"""Near-duplicate images: the same picture encoded again, resized, or slightly brighter.

symbol   meaning                                                             shape
n        images of different content                                         ()
T        RGB thumbnails                                                      (n, 12, 12, 3)
H        difference hash: is a cell brighter than its right, lower one       (n, 264) bits
Q        sums of the cells of each quarter of T                              (n, 12)

Two images are near duplicates when their hashes differ in at most `bits` bits and no cell of their
thumbnails by more than `CELL` in any channel: the hash tells apart what has other edges, the cells what has one
layout but other colours or one changed part. Images of hardly any structure (one colour) are left out: they
all resemble each other. The sums over a quarter, 36 cells, of such images differ by 36 * `CELL` at most, so that only
images with such sums are compared; a k-d tree finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from mars_core.data.image_fingerprints import THUMBNAIL_SIDE, ImageFingerprint
from mars_core.data.records import ImageRef, Sample
from mars_core.data.shared import SharedImage, shared_images

BITS = 13
CELL = 20
# A brighter neighbour by less than this is noise of the encoder, not part of the picture.
_NOISE = 4
_QUARTER = THUMBNAIL_SIDE // 2
_AT_ONCE = 256  # images looked up together: bounds the memory where many resemble each other

_Bytes = npt.NDArray[np.uint8]


def near_labels(
    fingerprints: Mapping[ImageRef, ImageFingerprint],
    bits: int = BITS,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[ImageRef, str]:
    """A label for each image, equal for images that are near duplicates, also through others.

    The label is the content hash of one of them, so that it serves where content hashes are asked for.

    Args:
        looks: what is known of each image.
        bits: most bits in which the hashes of near duplicates differ.
        progress: called with the number of different images compared so far, of as many as there are contents.
    """
    thumbnails = {look.content: look.thumbnail for look in fingerprints.values()}
    contents = sorted(thumbnails)
    if not contents:
        return {}
    side = (len(contents), THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
    cells = np.frombuffer(b"".join(thumbnails[content] for content in contents), dtype=np.uint8).reshape(side)
    groups = _Groups(len(contents))
    for one, others in _pairs(cells, bits, progress):
        for other in others:
            groups.join(one, int(other))
    label = {content: contents[groups.root(number)] for number, content in enumerate(contents)}
    return {image: label[look.content] for image, look in fingerprints.items()}


def near_duplicates(
    splits: Mapping[str, Sequence[Sample]],
    fingerprints: Mapping[ImageRef, ImageFingerprint],
    labels: Mapping[ImageRef, str],
) -> tuple[SharedImage, ...]:
    """Images that stand in more than one split nearly, but not exactly, alike."""
    exact = {image: look.content for image, look in fingerprints.items()}
    return tuple(
        found for found in shared_images(splits, labels) if len({exact[image] for image in found.images.values()}) > 1
    )


def _difference_hash(cells: _Bytes) -> _Bytes:
    grey = cells.astype(np.int32) @ np.array([77, 150, 29], dtype=np.int32) // 256
    right = grey[:, :, :-1] - grey[:, :, 1:] > _NOISE
    below = grey[:, :-1, :] - grey[:, 1:, :] > _NOISE
    return np.concatenate([right.reshape(len(cells), -1), below.reshape(len(cells), -1)], axis=1).view(np.uint8)


def _pairs(cells: _Bytes, bits: int, progress: Callable[[int], object]) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """(an image, later images that are its near duplicates)."""
    hashes = _difference_hash(cells)
    packed, flat = np.packbits(hashes, axis=1), cells.reshape(len(cells), -1)
    structured = np.flatnonzero(hashes.sum(axis=1, dtype=np.int64) > bits)
    if not len(structured):
        return
    sums = _quarter_sums(cells[structured])
    tree = cKDTree(sums)
    for start in range(0, len(structured), _AT_ONCE):
        found = tree.query_ball_point(sums[start : start + _AT_ONCE], _QUARTER**2 * CELL, p=np.inf, workers=-1)
        for place, others in enumerate(found, start):
            rest = np.asarray(others, dtype=np.intp)
            if len(rest) > 1:  # every image finds itself
                one, rest = structured[place], structured[rest[rest > place]]
                rest = rest[np.bitwise_count(packed[rest] ^ packed[one]).sum(axis=1, dtype=np.int64) <= bits]
                apart = np.abs(flat[rest].astype(np.int16) - flat[one].astype(np.int16))
                yield int(one), rest[apart.max(axis=1, initial=0) <= CELL]
        progress(len(cells) - len(structured) + min(start + _AT_ONCE, len(structured)))


def _quarter_sums(cells: _Bytes) -> npt.NDArray[np.float64]:
    quarters = cells.reshape(-1, 2, _QUARTER, 2, _QUARTER, 3)
    sums: npt.NDArray[np.float64] = quarters.sum(axis=(2, 4), dtype=np.float64).reshape(len(cells), -1)
    return sums


@dataclass
class _Groups:
    """Disjoint sets of numbers; the root of a set is its smallest number."""

    n: int

    def __post_init__(self) -> None:
        self._parent = list(range(self.n))

    def root(self, number: int) -> int:
        parent = self._parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low
