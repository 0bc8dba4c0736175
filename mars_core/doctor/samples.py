"""Pictures of one colour with a question each: training samples that need no data set."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from mars_core.data.collate import collate
from mars_core.data.encode import Encoded, encode_sample
from mars_core.data.records import IMAGE_MARKER, BytesImage, Sample, Source, Turn
from mars_core.models.loading import Base

SIDE = 64
COLOURS = {
    "red": (210, 47, 39),
    "green": (92, 158, 49),
    "blue": (30, 80, 160),
    "yellow": (252, 234, 43),
    "white": (255, 255, 255),
    "black": (10, 10, 10),
}
SHAPES = ("square", "circle")


def coloured_samples(count: int) -> list[Sample]:
    """So many samples, the same in every call: a square or a circle on grey, and what it is."""
    chosen = random.Random("doctor")
    return [_sample(number, chosen) for number in range(count)]


def _sample(number: int, chosen: random.Random) -> Sample:
    colour, shape = chosen.choice(list(COLOURS)), chosen.choice(SHAPES)
    left, top = chosen.randrange(4, 24), chosen.randrange(4, 24)
    box = (left, top, left + chosen.randrange(20, 36), top + chosen.randrange(20, 36))
    picture = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    draw = ImageDraw.Draw(picture)
    (draw.rectangle if shape == "square" else draw.ellipse)(box, fill=COLOURS[colour])
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    name = f"doctor-{number}"
    turns = (Turn("user", f"{IMAGE_MARKER}\nWhat is drawn here?"), Turn("assistant", f"a {colour} {shape}"))
    return Sample(name, (BytesImage(encoded.getvalue(), name),), turns, "colour", Source(Path(name), number + 1))


def encoded_samples(base: Base, count: int) -> list[Encoded]:
    """The samples as inputs of a model."""
    return [encode_sample(sample, base.processor) for sample in coloured_samples(count)]


def batch_of(base: Base, samples: Sequence[Encoded]) -> dict[str, Tensor]:
    """One batch, where the model lies and in its dtype."""
    return placed(collate(samples, base.pad_token_id), base.model)


def placed(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A batch on a model's device, numbers with a point in the dtype of its first unquantized weights."""
    device = next(model.parameters()).device
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return {
        name: value.to(device=device, dtype=dtype if torch.is_floating_point(value) else value.dtype)
        for name, value in batch.items()
    }
