"""Near-duplicate images: the same picture encoded again, resized, or slightly brighter.

symbol   meaning                                                             shape
n        images of different content                                         ()
T        RGB thumbnails                                                      (n, 12, 12, 3)
H        difference hash: is a cell brighter than its right, lower one       (n, 264) bits

Two images are near duplicates when their hashes differ in at most `bits` bits and no cell of their
thumbnails by more than `CELL` in any channel: the hash finds candidates, the cells tell apart what has one
layout but other colours or one changed part. Images of hardly any structure (one colour) are left out: they
all resemble each other. By the pigeonhole principle such hashes agree in at least one of bits + 1 bands, so
that only images that share a band are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mars_core.data.looks import THUMBNAIL_SIDE, Look
from mars_core.data.records import ImageRef, Sample
from mars_core.data.shared import SharedImage, shared_images

BITS = 13
CELL = 20
# A brighter neighbour by less than this is noise of the encoder, not part of the picture.
_NOISE = 4

_Bytes = npt.NDArray[np.uint8]


def near_labels(looks: Mapping[ImageRef, Look], bits: int = BITS) -> dict[ImageRef, str]:
    """A label for each image, equal for images that are near duplicates, also through others.

    The label is the content hash of one of them, so that it serves where content hashes are asked for.

    Args:
        looks: what is known of each image.
        bits: most bits in which the hashes of near duplicates differ.
    """
    thumbnails = {look.content: look.thumbnail for look in looks.values()}
    contents = sorted(thumbnails)
    if not contents:
        return {}
    side = (len(contents), THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
    cells = np.frombuffer(b"".join(thumbnails[content] for content in contents), dtype=np.uint8).reshape(side)
    groups = _Groups(len(contents))
    for one, others in _pairs(_difference_hash(cells), cells.reshape(len(contents), -1), bits):
        for other in others:
            groups.join(one, int(other))
    label = {content: contents[groups.root(number)] for number, content in enumerate(contents)}
    return {image: label[look.content] for image, look in looks.items()}


def near_duplicates(
    splits: Mapping[str, Sequence[Sample]], looks: Mapping[ImageRef, Look], labels: Mapping[ImageRef, str]
) -> tuple[SharedImage, ...]:
    """Images that stand in more than one split nearly, but not exactly, alike."""
    exact = {image: look.content for image, look in looks.items()}
    return tuple(
        found for found in shared_images(splits, labels) if len({exact[image] for image in found.images.values()}) > 1
    )


def _difference_hash(cells: _Bytes) -> _Bytes:
    grey = cells.astype(np.int32) @ np.array([77, 150, 29], dtype=np.int32) // 256
    right = grey[:, :, :-1] - grey[:, :, 1:] > _NOISE
    below = grey[:, :-1, :] - grey[:, 1:, :] > _NOISE
    return np.concatenate([right.reshape(len(cells), -1), below.reshape(len(cells), -1)], axis=1).view(np.uint8)


def _pairs(hashes: _Bytes, cells: _Bytes, bits: int) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """(an image, later images that are its near duplicates), found band by band."""
    packed = np.packbits(hashes, axis=1)
    structured = np.flatnonzero(hashes.sum(axis=1, dtype=np.int64) > bits)
    # Neighbouring cells are alike: bands of scattered bits tell more images apart.
    scattered = np.random.default_rng(0).permutation(hashes.shape[1])
    for number, band in enumerate(np.array_split(scattered, bits + 1)):
        for found in _buckets(np.packbits(hashes[structured][:, band], axis=1)):
            members = structured[found]
            # Images of one hash share every band: the first has compared them.
            if number and (packed[members] == packed[members[0]]).all():
                continue
            for place, one in enumerate(members[:-1]):
                rest = members[place + 1 :]
                rest = rest[np.bitwise_count(packed[rest] ^ packed[one]).sum(axis=1, dtype=np.int64) <= bits]
                apart = np.abs(cells[rest].astype(np.int16) - cells[one].astype(np.int16))
                yield int(one), rest[apart.max(axis=1, initial=0) <= CELL]


def _buckets(keys: _Bytes) -> Iterator[npt.NDArray[np.intp]]:
    """Indices of the rows that are equal, two or more at a time."""
    _, bucket, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(bucket.ravel(), kind="stable")
    for members in np.split(order, np.cumsum(counts)[:-1]):
        if len(members) > 1:
            yield members


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
