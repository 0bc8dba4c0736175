"""Checking a dataset before anything expensive: every bad row in one pass, and what the data are like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mars_core.data.conversation_rules import broken_rules
from mars_core.data.images import content_hash, image_bytes, image_size, load_image
from mars_core.data.records import BadRow, BytesImage, ImageRef, Sample, bad_rows_message


@dataclass(frozen=True)
class ImageStatistics:
    """Sizes in pixels over the distinct images that can be read: (smallest, median, largest)."""

    count: int
    width: tuple[int, int, int]
    height: tuple[int, int, int]


@dataclass(frozen=True)
class DataReport:
    """What a pass over a dataset found.

    rows: how many were looked at. problems: every reason why a row is bad. tasks: samples by task type.
    images_per_sample: samples by number of images. images: None without readable images. notes: what is
    allowed but worth a look. hashes: content hash of the images that were decoded.
    """

    rows: int
    problems: tuple[BadRow, ...]
    tasks: Mapping[str, int]
    images_per_sample: Mapping[int, int]
    images: ImageStatistics | None
    notes: tuple[str, ...]
    hashes: Mapping[ImageRef, str]

    def raise_if_bad(self) -> None:
        """Raise ValueError if the dataset is empty or has bad rows, with the first few and the remedy."""
        if not self.rows:
            raise ValueError("the dataset is empty: expected at least one row with a question and an answer")
        if self.problems:
            raise ValueError(
                f"{bad_rows_message(self.problems)}\ncorrect or remove these rows; `mars data check` lists them all"
            )


@dataclass(frozen=True)
class _Finding:
    """What is known of one image: its upright (width, height) and content hash, or why it is bad."""

    size: tuple[int, int] | None = None
    content: str | None = None
    error: str | None = None


def check_samples(
    rows: Sequence[Sample | BadRow],
    *,
    decode: bool = True,
    progress: Callable[[int, int], Any] | None = None,
) -> DataReport:
    """Look at every row once, and at every image once however many rows show it.

    Args:
        rows: what `read_rows` or `read_samples` gave.
        decode: decode the images, which finds truncated files and gives content hashes; without, only
            their headers are read.
        progress: called with (rows checked, rows in all).
    """
    findings: dict[ImageRef, _Finding] = {}
    problems: list[BadRow] = []
    for done, row in enumerate(rows, start=1):
        problems += [row] if isinstance(row, BadRow) else _problems(row, findings, decode)
        if progress is not None:
            progress(done, len(rows))
    samples = [row for row in rows if isinstance(row, Sample)]
    return DataReport(
        rows=len(rows),
        problems=tuple(problems),
        tasks=dict(Counter(sample.task for sample in samples).most_common()),
        images_per_sample=dict(sorted(Counter(len(sample.images) for sample in samples).items())),
        images=_statistics([finding.size for finding in findings.values() if finding.size]),
        notes=tuple(_duplicate_ids(samples)),
        hashes={image: finding.content for image, finding in findings.items() if finding.content},
    )


def _problems(sample: Sample, findings: dict[ImageRef, _Finding], decode: bool) -> Iterator[BadRow]:
    for reason in broken_rules(sample):
        yield BadRow(sample.source, reason)
    for image in dict.fromkeys(sample.images):
        if image not in findings:
            findings[image] = _look_at(image, decode)
        error = findings[image].error
        if error:
            yield BadRow(sample.source, error)


def _look_at(image: ImageRef, decode: bool) -> _Finding:
    try:
        if not decode:
            return _Finding(size=image_size(image))
        read = BytesImage(image_bytes(image), str(image))
        return _Finding(size=load_image(read).size, content=content_hash(read))
    except ValueError as error:
        return _Finding(error=str(error))


def _statistics(sizes: list[tuple[int, int]]) -> ImageStatistics | None:
    if not sizes:
        return None
    width, height = ((min(side), round(median(side)), max(side)) for side in zip(*sizes, strict=True))
    return ImageStatistics(len(sizes), width, height)


def _duplicate_ids(samples: list[Sample]) -> Iterator[str]:
    """Ids name rows in messages only, and published datasets repeat them (LLaVA-158K does): no problem."""
    rows: dict[str, list[Sample]] = {}
    for sample in samples:
        rows.setdefault(sample.id, []).append(sample)
    repeated = {name: shown for name, shown in rows.items() if len(shown) > 1}
    if repeated:
        name, shown = next(iter(repeated.items()))
        places = " and ".join(str(sample.source) for sample in shown[:2])
        yield f"{len(repeated)} ids stand on more than one row, such as {name!r} ({places})"
