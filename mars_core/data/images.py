"""Reading images: safe paths, bytes, sizes and pixels."""

from __future__ import annotations

import hashlib
import io
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image, ImageOps

from mars_core.data.pixels import in_rgb
from mars_core.data.records import BytesImage, ImageRef, PathImage, Sample, StoredImage
from mars_core.data.tables import stored_bytes

# What PIL raises on files that are no images, are cut short or are broken inside.
_UNREADABLE = (
    OSError,
    RuntimeError,  # a loop of links
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    MemoryError,
)

MOST_PIXELS = 2 * 89_478_485
"""Of an image: PIL's own limit, which another library may have taken off. Decoded, that is half a gigabyte."""

_HASHED_AT_ONCE = 4096  # images waiting in the pool's queue

_ORIENTATION = 0x0112
_SIDEWAYS = frozenset({5, 6, 7, 8})


class ImagePathError(ValueError):
    """An image path that leads to no image of the image folder."""


def resolve(image: PathImage) -> Path:
    """Return the file of `image`, which must lie in its image folder, also after following links.

    Raises:
        ImagePathError: the path is absolute, leaves the image folder, or no such file exists.
    """
    named = PurePosixPath(image.path.replace("\\", "/"))
    if named.is_absolute() or PureWindowsPath(image.path).drive:
        raise ImagePathError(
            f"{image.kind} path {image.path!r} is absolute: give {image.kind} paths relative to the image folder"
        )
    folder = image.folder.resolve()
    file = _as_stored(folder, named).resolve()
    if not file.is_relative_to(folder):
        raise ImagePathError(
            f"{image.kind} path {image.path!r} leads outside the image folder {image.folder}: "
            f"copy the {image.kind} into the folder, or name the folder that holds all {image.kind}s"
        )
    if not file.is_file():
        raise ImagePathError(
            f"missing {image.kind} {image.path!r} in the image folder {image.folder}: add the file or remove the row"
        )
    return file


def _as_stored(folder: Path, named: PurePosixPath) -> Path:
    """The file under its name or, where there is none, under the other way to write the name's accents in Unicode.

    Programs for macOS write é as e and an accent (NFD), most others as one character (NFC).
    """
    forms = (str(named), *(unicodedata.normalize(form, str(named)) for form in ("NFC", "NFD")))
    return next((folder / form for form in forms if (folder / form).exists()), folder / named)


def image_bytes(image: ImageRef) -> bytes:
    """The encoded bytes of an image.

    Raises:
        ValueError: the image cannot be found or read.
    """
    with _reading(image):
        return resolve(image).read_bytes() if isinstance(image, PathImage) else _bytes_inside(image)


def image_size(image: ImageRef) -> tuple[int, int]:
    """(width, height) in pixels as seen upright, from the header alone.

    Raises:
        ValueError: the image cannot be found or read.
    """
    with _reading(image), _opened(image) as opened:
        width, height = opened.size
        return (height, width) if _lies_sideways(opened) else (width, height)


def load_image(image: ImageRef) -> Image.Image:
    """Decode an image upright, in RGB: the first frame or page, transparency over white, deep grey scaled.

    Raises:
        ValueError: the image cannot be found or decoded.
    """
    with _reading(image), _opened(image) as opened:
        return in_rgb(ImageOps.exif_transpose(opened))


def frame_count(image: ImageRef) -> int:
    """Frames of an animation or pages of a document; 1 of any other image, a camera's with a preview inside too.

    Raises:
        ValueError: the image cannot be found or read.
    """
    with _reading(image), _opened(image) as opened:
        return 1 if opened.format == "MPO" else int(getattr(opened, "n_frames", 1))


def is_plain(image: ImageRef) -> str | None:
    """The image's file format where any program reads the pixels that `load_image` gives; None where it may not.

    Transparency, deep grey, a camera's orientation and further frames are read in more than one way.

    Raises:
        ValueError: the image cannot be found or read.
    """
    with _reading(image), _opened(image) as opened:
        plain = opened.mode in ("RGB", "L", "P", "1") and not opened.has_transparency_data
        upright = opened.format == "PNG" or opened.getexif().get(_ORIENTATION, 1) == 1
        single = getattr(opened, "n_frames", 1) == 1
        return opened.format if plain and upright and single else None


def content_hash(image: ImageRef) -> str:
    """SHA-256 of the encoded bytes: equal for files that are copies of one another."""
    return hashlib.sha256(image_bytes(image)).hexdigest()


def content_hashes(samples: Iterable[Sample]) -> dict[ImageRef, str]:
    """Content hash of every image and sound of `samples`; a file named often is read once, many are read at a time."""
    images = list(dict.fromkeys(image for sample in samples for image in sample.media))
    hashes: dict[ImageRef, str] = {}
    with ThreadPoolExecutor() as pool:  # reading and hashing both let other threads run
        for start in range(0, len(images), _HASHED_AT_ONCE):
            batch = images[start : start + _HASHED_AT_ONCE]
            hashes.update(zip(batch, pool.map(content_hash, batch), strict=True))
    return hashes


@contextmanager
def _opened(image: ImageRef) -> Iterator[Image.Image]:
    """An image with its header read, unless it says that its pixels are too many to be decoded."""
    with Image.open(_source(image)) as opened:
        width, height = opened.size
        if width * height > MOST_PIXELS:
            raise Image.DecompressionBombError(f"{width} x {height} pixels, expected at most {MOST_PIXELS:,} in all")
        yield opened


def _source(image: ImageRef) -> Path | io.BytesIO:
    return resolve(image) if isinstance(image, PathImage) else io.BytesIO(_bytes_inside(image))


def _bytes_inside(image: BytesImage | StoredImage) -> bytes:
    return image.data if isinstance(image, BytesImage) else stored_bytes(image)


def _lies_sideways(opened: Image.Image) -> bool:
    # PIL would decode a whole PNG in search of EXIF data behind its pixels, where nearly none have any.
    if opened.format == "PNG" and "exif" not in opened.info:
        return False
    return opened.getexif().get(_ORIENTATION) in _SIDEWAYS


@contextmanager
def _reading(image: ImageRef) -> Iterator[None]:
    try:
        yield
    except ImagePathError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"image {str(image)!r} is too large to be read ({error}): make it smaller") from error
    except _UNREADABLE as error:
        why = str(error) or type(error).__name__
        raise ValueError(f"unreadable image {str(image)!r} ({why}): replace the file or remove the row") from error
