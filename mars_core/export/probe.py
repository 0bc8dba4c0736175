"""A small batch with a picture, made on the spot, on which two forms of one model are compared."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mars_core.data.collate import collate
from mars_core.data.encode import encode_sample
from mars_core.data.records import BytesImage, Sample, Source, Turn
from mars_core.models.loading import Base

SIDE = 64


def probe_batch(base: Base) -> dict[str, Tensor]:
    """A question about a picture of noise, with its answer, as the model's inputs."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG")
    turns = (Turn("user", "<image>\nWhat is in the picture?"), Turn("assistant", "Nothing that has a name."))
    images = (BytesImage(encoded.getvalue(), "noise.png"),)
    sample = Sample("probe", images, turns, "probe", Source(Path("probe"), 1))
    return collate([encode_sample(sample, base.processor)], base.pad_token_id)
