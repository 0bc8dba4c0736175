"""The shape of a sample: all that its cost depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mars_core.data.encode import IGNORE, Encoded


@dataclass(frozen=True)
class SampleShape:
    """Sizes of one sample as the model gets it.

    tokens: of the LLM, image tokens included. answers: tokens that the loss is taken on. pictures: patches of each
    picture (of each tile, where pictures are cut into tiles), over which the ME's attention runs.
    """

    tokens: int
    answers: int
    pictures: tuple[int, ...]

    @property
    def patches(self) -> int:
        """Patches of all pictures."""
        return sum(self.pictures)


def shape_of(encoded: Encoded, patch_size: int | None) -> SampleShape:
    """The shape of an encoded sample.

    patch_size: pixels along a patch, where the processor leaves the cutting to the model.
    """
    answers = int((encoded.labels[1:] != IGNORE).sum())
    return SampleShape(len(encoded), answers, pictures_of(encoded.image_inputs, patch_size))


def pictures_of(inputs: Mapping[str, Tensor], patch_size: int | None) -> tuple[int, ...]:
    """Patches of each picture or tile among a processor's outputs.

    Raises:
        ValueError: the model cuts the patches, and its patch size is unknown.
    """
    if "image_grid_thw" in inputs:  # Qwen: pictures already cut into rows of patches
        return tuple(int(frames * height * width) for frames, height, width in inputs["image_grid_thw"].tolist())
    if "pixel_values" not in inputs:
        return ()
    if patch_size is None:
        raise ValueError(
            "the model's configuration names no vision_config.patch_size, so patches cannot be counted: measure on the "
            "machine itself, `mars calibrate STUDY --dry-run` there"
        )
    pixels = inputs["pixel_values"].flatten(0, -4)
    tiles = int(
        pixels.flatten(1).any(dim=1).sum()
    )  # tiles of zeros fill up pictures with fewer tiles; models drop them
    height, width = pixels.shape[-2:]
    return ((height // patch_size) * (width // patch_size),) * tiles


def patch_size_of(config: Any) -> int | None:
    """Pixels along a patch, as a model's configuration says; None if it does not."""
    size = getattr(getattr(config, "vision_config", None), "patch_size", None)
    return int(size[0] if isinstance(size, (list, tuple)) else size) if size is not None else None
