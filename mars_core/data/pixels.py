"""Decoded pictures as the 8-bit RGB that models are shown: what they look like, whatever way they are stored."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Grey pictures of 16 bits, 32 bits and floats. PIL's own conversion cuts at 255 what lies above it.
_DEEP = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I", "F"})


def in_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB: transparent pixels over white, as serving programs show them; deep grey scaled to 8 bits.

    Raises:
        ValueError: a picture of floats has no finite pixel, or PIL knows no way to RGB.
    """
    if picture.mode in _DEEP:
        return Image.fromarray(_eight_bits(np.asarray(picture))).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(levels: np.ndarray) -> np.ndarray:
    """Grey levels from 0 to 255.

    Whole numbers up to 255 stay as they are, and floats from 0 to 1 are shares of white. All others have a range that
    only the picture tells (12 bits of an X-ray in 16, heights in metres): its smallest value is black, its largest
    white.
    """
    whole = np.issubdtype(levels.dtype, np.integer)
    wide = levels.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    if not finite.size:
        raise ValueError("no pixel of it is a finite number")
    low, high = float(finite.min()), float(finite.max())
    white = 255.0 if whole else 1.0
    bottom, top = (0.0, white) if low >= 0 and high <= white else (low, high)
    if bottom == top:  # one level all over
        bottom = min(0.0, low)
        top = max(high, bottom + 1)
    known = np.nan_to_num(wide, nan=bottom, posinf=high, neginf=low)
    grey: np.ndarray = np.rint((known - bottom) * (255 / (top - bottom))).astype(np.uint8)
    return grey
