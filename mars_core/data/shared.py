"""Exact duplicate images across splits, found by content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from mars_core.data.images import content_hashes
from mars_core.data.records import ImageRef, Sample


@dataclass(frozen=True)
class SharedImage:
    """One image that stands in several splits: its content hash, and per split a sample that shows it and its name."""

    content: str
    shown_by: Mapping[str, Sample]
    images: Mapping[str, ImageRef]

    def __str__(self) -> str:
        places = (f"{split} ({sample.source}, {self.images[split]})" for split, sample in self.shown_by.items())
        return f"the same image in {' and '.join(places)}"


def shared_images(
    splits: Mapping[str, Sequence[Sample]], hashes: Mapping[ImageRef, str] | None = None
) -> tuple[SharedImage, ...]:
    """Find the images that stand in more than one split, under whatever names.

    Args:
        splits: samples by name of split.
        hashes: content hashes that are already known, as `check_samples` gives them; an image that is not
            among them (it could not be read) is left out.
    """
    known = content_hashes(chain(*splits.values())) if hashes is None else hashes
    seen: dict[str, dict[str, tuple[Sample, ImageRef]]] = defaultdict(dict)
    for split, samples in splits.items():
        for sample in samples:
            for image in sample.media:
                if image in known:
                    seen[known[image]].setdefault(split, (sample, image))
    return tuple(_shared(content, places) for content, places in seen.items() if len(places) > 1)


def _shared(content: str, places: Mapping[str, tuple[Sample, ImageRef]]) -> SharedImage:
    samples = {split: sample for split, (sample, _) in places.items()}
    return SharedImage(content, samples, {split: image for split, (_, image) in places.items()})
