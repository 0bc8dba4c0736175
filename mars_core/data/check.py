"""Checking a dataset before anything expensive: every bad row in one pass, and what the data are like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mars_core.data.conversation_rules import broken_rules
from mars_core.data.image_fingerprints import ImageFingerprint, fingerprint_of
from mars_core.data.images import content_hash, image_size
from mars_core.data.lengths import Lengths
from mars_core.data.records import BadRow, ImageRef, PathSound, Sample, Source, bad_rows_message
from mars_core.data.sounds import load_sound

_ANY_RATE = 16_000  # samples a second; whether a sound can be read does not depend on it


@dataclass(frozen=True)
class Spread:
    """Percentiles of a whole number over the dataset."""

    smallest: int
    median: int
    p90: int
    p99: int
    largest: int

    @classmethod
    def of(cls, values: Iterable[int]) -> Spread | None:
        """The spread of some numbers; None without any."""
        numbers = np.fromiter(values, dtype=np.int64)
        if not len(numbers):
            return None
        return cls(*(int(v) for v in np.percentile(numbers, [0, 50, 90, 99, 100], method="inverted_cdf")))


@dataclass(frozen=True)
class ImageStatistics:
    """Sizes in pixels over the distinct images that can be read."""

    count: int
    width: Spread
    height: Spread


@dataclass(frozen=True)
class TokenStatistics:
    """Tokens of a sample: all, those that its images take, those of its answers and their ends.

    too_long: how many samples have more than the limit; they are dropped, never cut.
    """

    sample: Spread
    images: Spread
    answers: Spread
    too_long: int


@dataclass(frozen=True)
class DataReport:
    """What a pass over a dataset found.

    rows: how many were looked at. problems: every reason why a row is bad. tasks: samples by task type.
    images_per_sample: samples by number of images. exchanges: questions with their answers in a sample.
    images: None without readable images. tokens: None where they were not counted. notes: what is allowed but
    worth a look. fingerprints: what was seen of the images that were decoded. sounds: content
    hash of each that could be read.
    """

    rows: int
    problems: tuple[BadRow, ...]
    tasks: Mapping[str, int]
    images_per_sample: Mapping[int, int]
    exchanges: Spread | None
    images: ImageStatistics | None
    tokens: TokenStatistics | None
    notes: tuple[str, ...]
    fingerprints: Mapping[ImageRef, ImageFingerprint]
    sounds: Mapping[ImageRef, str]

    @property
    def hashes(self) -> dict[ImageRef, str]:
        """Content hash of the images that were decoded, and of the sounds."""
        return {image: look.content for image, look in self.fingerprints.items()} | dict(self.sounds)

    def raise_if_bad(self) -> None:
        """Raise ValueError if the dataset is empty or has bad rows, with the first few and the remedy."""
        if not self.rows:
            raise ValueError("the dataset is empty: expected at least one row with a question and an answer")
        if self.problems:
            raise ValueError(
                f"{bad_rows_message(self.problems)}\ncorrect or remove these rows; `mars data check` lists them all"
            )


def check_samples(
    rows: Iterable[Sample | BadRow],
    *,
    decode: bool = True,
    look: Callable[[ImageRef], ImageFingerprint] = fingerprint_of,
    measure: Callable[[Sample], Lengths] | None = None,
    max_tokens: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> DataReport:
    """Look at every row once, and at every image once however many rows show it.

    Args:
        rows: what `read_rows` or `read_samples` gave.
        decode: decode the images, which finds truncated files and gives content hashes; without, only
            their headers are read.
        look: how an image is decoded, for callers that remember earlier looks.
        measure: counts a good sample's tokens; None to count none.
        max_tokens: the limit that too long samples are counted by.
        progress: called with the number of rows checked.
    """
    found = _Findings()
    for done, row in enumerate(rows, start=1):
        bad = [row] if isinstance(row, BadRow) else list(_problems(row, found, look if decode else None))
        if isinstance(row, Sample):
            found.count(row, None if bad else measure)
        found.problems += bad
        if progress is not None:
            progress(done)
        found.rows = done
    return found.report(max_tokens)


@dataclass
class _Findings:
    """What a pass gathers; per row only numbers, so that a large dataset stays in its file."""

    rows: int = 0
    problems: list[BadRow] = field(default_factory=list)
    tasks: Counter[str] = field(default_factory=Counter)
    n_images: Counter[int] = field(default_factory=Counter)
    exchanges: list[int] = field(default_factory=list)
    lengths: list[Lengths] = field(default_factory=list)
    ids: dict[str, Sample] = field(default_factory=dict)
    repeated: dict[str, Sample] = field(default_factory=dict)
    fingerprints: dict[ImageRef, ImageFingerprint] = field(default_factory=dict)
    sizes: dict[ImageRef, tuple[int, int]] = field(default_factory=dict)
    errors: dict[ImageRef, str] = field(default_factory=dict)
    sounds: dict[ImageRef, str] = field(default_factory=dict)
    controls: list[tuple[Source, str]] = field(default_factory=list)
    several_frames: list[tuple[Source, ImageRef]] = field(default_factory=list)

    def count(self, sample: Sample, measure: Callable[[Sample], Lengths] | None) -> None:
        self.tasks[sample.task] += 1
        self.n_images[len(sample.images)] += 1
        self.exchanges.append(len(sample.answers))
        if self.ids.setdefault(sample.id, sample) is not sample:
            self.repeated.setdefault(sample.id, sample)
        if measure is not None:
            self._measure(sample, measure)

    def _measure(self, sample: Sample, measure: Callable[[Sample], Lengths]) -> None:
        try:
            lengths = measure(sample)
            self.lengths.append(lengths)
            if lengths.control is not None:
                self.controls.append((sample.source, lengths.control))
        except ValueError as error:
            self.problems.append(BadRow(sample.source, str(error).removeprefix(f"{sample.source}: ")))

    def report(self, max_tokens: int | None) -> DataReport:
        return DataReport(
            rows=self.rows,
            problems=tuple(self.problems),
            tasks=dict(self.tasks.most_common()),
            images_per_sample=dict(sorted(self.n_images.items())),
            exchanges=Spread.of(self.exchanges),
            images=_image_statistics(list(self.sizes.values())),
            tokens=_token_statistics(self.lengths, max_tokens),
            notes=tuple(self._notes()),
            fingerprints=self.fingerprints,
            sounds=self.sounds,
        )

    def _notes(self) -> Iterator[str]:
        """Ids name rows in messages only, and published datasets repeat them (LLaVA-158K does): no problem."""
        for name, second in list(self.repeated.items())[:1]:
            places = f"{self.ids[name].source} and {second.source}"
            yield f"{len(self.repeated)} ids stand on more than one row, such as {name!r} ({places})"
        for source, image in self.several_frames[:1]:
            count = self.fingerprints[image].frames
            yield (
                f"{_counted(len(self.several_frames), 'image has', 'images have')} more than one frame or page, such "
                f"as {str(image)!r} with {count} ({source}): only the first is used"
            )
        for source, control in self.controls[:1]:
            yield (
                f"{_counted(len(self.controls), 'row has', 'rows have')} a control token of the model in the text, "
                f"such as {control!r} ({source}): the model reads it as the template's own; write it in another "
                "way where it is only quoted"
            )


def _problems(
    sample: Sample, found: _Findings, look: Callable[[ImageRef], ImageFingerprint] | None
) -> Iterator[BadRow]:
    for reason in broken_rules(sample):
        yield BadRow(sample.source, reason)
    for image in dict.fromkeys(sample.images):
        if image not in found.sizes and image not in found.errors:
            _look(image, found, look)
            if image in found.fingerprints and found.fingerprints[image].frames > 1:
                found.several_frames.append((sample.source, image))
        if image in found.errors:
            yield BadRow(sample.source, found.errors[image])
    for sound in dict.fromkeys(sample.sounds):
        if sound not in found.sounds and sound not in found.errors:
            _listen(sound, found)
        if sound in found.errors:
            yield BadRow(sample.source, found.errors[sound])


def _listen(sound: PathSound, found: _Findings) -> None:
    try:
        load_sound(sound, _ANY_RATE)
        found.sounds[sound] = content_hash(sound)
    except ValueError as error:
        found.errors[sound] = str(error)


def _look(image: ImageRef, found: _Findings, look: Callable[[ImageRef], ImageFingerprint] | None) -> None:
    try:
        if look is None:
            found.sizes[image] = image_size(image)
        else:
            found.fingerprints[image] = look(image)
            found.sizes[image] = found.fingerprints[image].size
    except ValueError as error:
        found.errors[image] = str(error)


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _image_statistics(sizes: list[tuple[int, int]]) -> ImageStatistics | None:
    width, height = (Spread.of(size[side] for size in sizes) for side in (0, 1))
    return ImageStatistics(len(sizes), width, height) if width and height else None


def _token_statistics(lengths: list[Lengths], max_tokens: int | None) -> TokenStatistics | None:
    parts = [Spread.of(getattr(length, name) for length in lengths) for name in ("tokens", "images", "answers")]
    sample, images, answers = parts
    if not (sample and images and answers):
        return None
    too_long = sum(length.tokens > max_tokens for length in lengths) if max_tokens is not None else 0
    return TokenStatistics(sample, images, answers, too_long)
