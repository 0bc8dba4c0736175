"""Read, check and split a study's data; feed it to training in the order that all runs of a pack share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mars_core.data.check import DataReport, check_samples
from mars_core.data.collate import collate
from mars_core.data.dataset import EncodedDataset
from mars_core.data.hashing import data_hash
from mars_core.data.image_fingerprints import content_of, distinct_images
from mars_core.data.lengths import Lengths
from mars_core.data.near import near_duplicates
from mars_core.data.readers import read_rows, read_samples
from mars_core.data.records import BadRow, ImageRef, Sample
from mars_core.data.shared import SharedImage, shared_images
from mars_core.data.sounds import sound_hashes
from mars_core.data.splits import TEST_SIZE, Splits, join_splits, split_samples
from mars_core.data.subsets import nested_order
from mars_core.evaluation.answer_loss import IGNORE
from mars_core.metrics.identity import content_hash
from mars_core.models.loading import Base
from tasks.inputs.image_cache import fingerprint_all, remembered_fingerprints
from tasks.inputs.near_cache import find_near_labels
from tasks.inputs.remote import local_data
from tasks.running.progress import progress_bar
from tasks.settings.data import DataConfig

SPLIT_SEED = 0
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class StudyData:
    """A study's samples in three splits, with the hash of their contents.

    hashes: hash of each split by name. digests: of each sample (what it says and shows), by split.
    """

    splits: Splits
    data_hash: str
    hashes: Mapping[str, str]
    digests: Mapping[str, tuple[str, ...]]

    @property
    def calibration_hash(self) -> str:
        """Hash of what calibration reads: training and validation data, never the test split."""
        return content_hash([self.hashes["train"], self.hashes["validation"]])

    @property
    def parts(self) -> dict[str, tuple[Sample, ...]]:
        """Samples by split."""
        return parts_of(self.splits)

    def summary(self) -> dict[str, Any]:
        """Counts by split and task type, as JSON values."""
        return {
            "data_hash": self.data_hash,
            **{name: len(samples) for name, samples in self.parts.items()},
            "tasks": dict(Counter(sample.task for sample in self.splits.train)),
            "notes": list(self.splits.notes),
        }


def load_data(data: DataConfig) -> StudyData:
    """Read the files of a study and split them.

    Raises:
        ValueError: rows that make no sample, images in two splits, or too few samples.
    """
    data = local_data(data)
    given = {part: _read(data, part) for part in PARTS if getattr(data, part)}
    every = [sample for samples in given.values() for sample in samples]
    fingerprints = fingerprint_all(distinct_images(every))
    heard = sound_hashes(every)
    hashes = content_of(fingerprints) | heard
    together = find_near_labels(fingerprints) | heard if data.near_duplicates == "together" else hashes
    splits = _split(given, data, hashes, together)
    parts = parts_of(splits)
    notes = (
        *splits.notes,
        *_shared_note("the same", shared_images(parts, hashes)),
        *_shared_note("nearly the same", near_duplicates(parts, fingerprints, together)),
    )
    # Split by split, so that a sample that moves from one to another changes the hash.
    of_parts = {name: data_hash(part, hashes) for name, part in parts.items()}
    digests = {name: tuple(data_hash([sample], hashes)[:16] for sample in part) for name, part in parts.items()}
    return StudyData(replace(splits, notes=notes), content_hash(list(of_parts.values())), of_parts, digests)


def parts_of(splits: Splits) -> dict[str, tuple[Sample, ...]]:
    """Samples by split: train, validation, test."""
    return {part: getattr(splits, part) for part in PARTS}


def _read(data: DataConfig, part: str) -> list[Sample]:
    return read_samples(getattr(data, part), data.images, data.format, getattr(data, f"{part}_split"))


def _split(
    given: Mapping[str, list[Sample]],
    data: DataConfig,
    hashes: Mapping[ImageRef, str],
    together: Mapping[ImageRef, str],
) -> Splits:
    train, validation, test = given["train"], given.get("validation"), given.get("test")
    test_size = data.test_samples or TEST_SIZE
    if validation is None and test is None:
        sizes = {"validation_size": data.validation_samples, "test_size": test_size}
        return split_samples(train, seed=SPLIT_SEED, hashes=together, **sizes)
    _require_other_rows(given)
    notes: tuple[str, ...] = ()
    if validation is None or test is None:
        size = test_size if test is None else data.validation_samples
        parts = split_samples(train, seed=SPLIT_SEED, validation_size=size, test_size=0, hashes=together)
        train, notes = list(parts.train), parts.notes
        validation, test = validation or list(parts.validation), test or list(parts.validation)
    joined = join_splits(train, validation, test, hashes if data.shared_images == "refuse" else {})
    tested, cut = _at_most(joined.test, data.test_samples) if "test" in given else (joined.test, ())
    return Splits(joined.train, joined.validation, tested, (*notes, *cut))


def _require_other_rows(given: Mapping[str, Sequence[Sample]]) -> None:
    """Rows without images are caught too, as where two parts name one folder whose splits cannot be told."""
    read_by: dict[tuple[Path, int], str] = {}
    for part, samples in given.items():
        for sample in samples:
            row = (sample.source.file, sample.source.row)
            if read_by.setdefault(row, part) != part:
                raise ValueError(
                    f"data.{read_by[row]} and data.{part} both read {sample.source}: give them other files, or other "
                    f"splits of one folder (data.{read_by[row]}_split, data.{part}_split)"
                )


def _at_most(test: tuple[Sample, ...], size: int | None) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """A given test set cut to `size`, with its task mixture; a smaller cut is part of a larger one."""
    if size is None or size >= len(test):
        return test, ()
    taken = sorted(nested_order([sample.task for sample in test], SPLIT_SEED)[:size])
    note = (
        f"{size} of the {len(test)} test samples given are scored (data.test_samples; leave it out to score them all)"
    )
    return tuple(test[index] for index in taken), (note,)


def _shared_note(how: str, found: Sequence[SharedImage]) -> tuple[str, ...]:
    if not found:
        return ()
    images = "1 image is" if len(found) == 1 else f"{len(found)} images are"
    return (f"{images} {how} in more than one split, such as {_places(found[0])}; scores may be too good",)


def _places(shared: SharedImage) -> str:
    return " and ".join(
        f"{shared.images[split]} in {split} ({sample.source})" for split, sample in shared.shown_by.items()
    )


def check_data(
    data: DataConfig,
    *,
    decode: bool = True,
    measure: Callable[[Sample], Lengths] | None = None,
    max_tokens: int | None = None,
) -> DataReport:
    """Check every row of a study's data in one pass, and with `decode` every image to its last pixel.

    Images that stand, exactly or nearly, in two of the given files or folders are noted with their rows.
    """
    data = local_data(data)
    parts = {part: list(_rows(data, part)) for part in PARTS if getattr(data, part)}
    rows = [row for found in parts.values() for row in found]
    with progress_bar("checking the data", len(rows)) as advance, remembered_fingerprints() as look:
        report = check_samples(rows, decode=decode, look=look, measure=measure, max_tokens=max_tokens, progress=advance)
    return replace(report, notes=(*report.notes, *_shared_notes(parts, report)))


def _rows(data: DataConfig, part: str) -> Iterator[Sample | BadRow]:
    return read_rows(getattr(data, part), data.images, data.format, getattr(data, f"{part}_split"))


def _shared_notes(parts: Mapping[str, Sequence[Sample | BadRow]], report: DataReport) -> Iterator[str]:
    samples = {part: [row for row in rows if isinstance(row, Sample)] for part, rows in parts.items()}
    for shared in shared_images(samples, report.hashes):
        yield f"same image in two splits: {_places(shared)}"
    for shared in near_duplicates(samples, report.fingerprints, find_near_labels(report.fingerprints)):
        yield f"nearly the same image in two splits: {_places(shared)}"


def step_batches(
    dataset: EncodedDataset, base: Base, batch_size: int, micro_batch_size: int | None, done: int
) -> Iterator[list[dict[str, Tensor]]]:
    """The batches of each optimizer step after `done` steps, in the dataset's order, on the model's device.

    A step sees `batch_size` samples, `micro_batch_size` at a time.
    """
    device = next(base.model.parameters()).device
    micro = micro_batch_size or batch_size
    for start in range(done * batch_size, len(dataset), batch_size):
        stop = min(start + batch_size, len(dataset))
        items = [dataset[index] for index in range(start, stop)]
        parts = [items[first : first + micro] for first in range(0, len(items), micro)]
        yield [to_device(collate(part, base.pad_token_id), device) for part in parts]


def scored_batches(
    dataset: EncodedDataset,
    base: Base,
    batch_size: int,
    *,
    device: torch.device | None = None,
    share: tuple[int, int] = (0, 1),
) -> Callable[[], Iterable[tuple[dict[str, Tensor], list[str]]]]:
    """A function that gives the batches of a fixed set with the task type of each row.

    device: where batches go (default: where the model lies). share: this process's number and how many there are; each
    takes every so many-th batch. All get equally many, since sharded models are scored in step: where they do not come
    out even, a process gets a batch again, without its answers.
    """
    device = device or next(base.model.parameters()).device
    starts = range(0, len(dataset), batch_size)
    number, processes = share

    def batches() -> Iterator[tuple[dict[str, Tensor], list[str]]]:
        for turn in range(number, math.ceil(len(starts) / processes) * processes, processes):
            start = starts[turn % len(starts)]
            items = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
            batch = collate(items, base.pad_token_id)
            if turn >= len(starts):
                batch["labels"] = torch.full_like(batch["labels"], IGNORE)
            yield to_device(batch, device), [item.sample.task for item in items]

    return batches


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch's tensors."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
