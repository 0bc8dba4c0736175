"""What one look at an image tells: its size, which file it is a copy of, and what it resembles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from PIL import Image

from mars_core.data.images import frame_count, image_bytes, load_image
from mars_core.data.records import BytesImage, ImageRef, Sample

THUMBNAIL_SIDE = 12


@dataclass(frozen=True, slots=True)
class ImageFingerprint:
    """One decoded image.

    size: upright (width, height). content: SHA-256 of its encoded bytes. thumbnail: 12 x 12 pixels in RGB. frames: of
    an animation or a document of several pages; only the first is used.
    """

    size: tuple[int, int]
    content: str
    thumbnail: bytes
    frames: int = 1


def fingerprint_of(image: ImageRef) -> ImageFingerprint:
    """Read and decode an image once.

    Raises:
        ValueError: the image cannot be found or decoded.
    """
    data = image_bytes(image)
    held = BytesImage(data, str(image))
    picture = load_image(held)
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    thumbnail = picture.resize(side, Image.Resampling.BOX)
    return ImageFingerprint(picture.size, hashlib.sha256(data).hexdigest(), thumbnail.tobytes(), frame_count(held))


def distinct_images(samples: Iterable[Sample]) -> Iterator[ImageRef]:
    """Every image of the samples once, in order of first appearance."""
    return iter(dict.fromkeys(image for sample in samples for image in sample.images))


def content_of(fingerprints: Mapping[ImageRef, ImageFingerprint]) -> dict[ImageRef, str]:
    """Content hash of each image."""
    return {image: look.content for image, look in fingerprints.items()}
