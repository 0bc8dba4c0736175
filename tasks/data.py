"""Read, check and split a study's data; feed it to training in the order that all runs of a pack share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mars_core.data.check import DataReport, check_samples
from mars_core.data.collate import collate
from mars_core.data.dataset import EncodedDataset
from mars_core.data.hashing import data_hash
from mars_core.data.images import content_hashes
from mars_core.data.lengths import TokenCounter
from mars_core.data.readers import read_rows, read_samples
from mars_core.data.records import Sample
from mars_core.data.splits import Splits, join_splits, split_samples
from mars_core.data.subsets import nested_order
from mars_core.metrics.identity import content_hash
from mars_core.models.loading import Base
from tasks.config import DataConfig, StudyConfig
from tasks.progress import progress_bar
from tasks.resources import base_processor, model_fingerprint
from tasks.storage.data import local_data
from tasks.storage.location import working_folder
from tasks.store import read_json, write_json

SPLIT_SEED = 0


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


@lru_cache(maxsize=1)
def load_data(data: DataConfig) -> StudyData:
    """Read the files of a study and split them.

    Raises:
        ValueError: rows that make no sample, images in two splits, or too few samples.
    """
    data = local_data(data)
    train = read_samples(data.train, data.images)
    validation = read_samples(data.validation, data.images) if data.validation else None
    test = read_samples(data.test, data.images) if data.test else None
    splits = _split(train, validation, test, data)
    parts = parts_of(splits)
    images = content_hashes([sample for part in parts.values() for sample in part])
    # Split by split, so that a sample that moves from one to another changes the hash.
    hashes = {name: data_hash(part, images) for name, part in parts.items()}
    digests = {name: tuple(data_hash([sample], images)[:16] for sample in part) for name, part in parts.items()}
    return StudyData(splits, content_hash(list(hashes.values())), hashes, digests)


def parts_of(splits: Splits) -> dict[str, tuple[Sample, ...]]:
    """Samples by split: train, validation, test."""
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def _split(train: list[Sample], validation: list[Sample] | None, test: list[Sample] | None, data: DataConfig) -> Splits:
    if validation is None and test is None:
        sizes = {"validation_size": data.validation_samples, "test_size": data.test_samples}
        return split_samples(train, seed=SPLIT_SEED, **sizes)
    notes: tuple[str, ...] = ()
    if validation is None or test is None:
        size = data.test_samples if test is None else data.validation_samples
        parts = split_samples(train, seed=SPLIT_SEED, validation_size=size, test_size=0)
        train, notes = list(parts.train), parts.notes
        validation, test = validation or list(parts.validation), test or list(parts.validation)
    joined = join_splits(train, validation, test)
    return Splits(joined.train, joined.validation, joined.test, notes)


def forget_data() -> None:
    """Read the files again when they are next asked for: they may have changed since this process read them."""
    for remembered in (load_data, calibration_set, validation_set, training_set, usable_samples):
        remembered.cache_clear()


def check_data(data: DataConfig, *, decode: bool = True) -> DataReport:
    """Check every row of a study's files in one pass, and with `decode` every image to its last pixel."""
    data = local_data(data)
    files = [file for file in (data.train, data.validation, data.test) if file]
    rows = [row for file in files for row in read_rows(file, data.images)]
    with progress_bar("checking the data", len(rows)) as advance:
        return check_samples(rows, decode=decode, progress=lambda done, _: advance(done))


@lru_cache(maxsize=1)
def calibration_set(config: StudyConfig) -> EncodedDataset:
    """The first `calibration.samples` usable training samples of the nested order.

    Every prefix of the order keeps the mixture of task types.
    """
    usable = usable_samples(config, "train")
    order = nested_order([sample.task for sample in usable], config.calibration.data_seed)
    return _encoded(config, [usable[index] for index in order[: config.calibration.samples]])


@lru_cache(maxsize=1)
def validation_set(config: StudyConfig) -> EncodedDataset:
    """The calibration validation set."""
    return _encoded(config, usable_samples(config, "validation"))


@lru_cache(maxsize=1)
def training_set(config: StudyConfig) -> EncodedDataset:
    """The whole training set."""
    return _encoded(config, usable_samples(config, "train"))


def test_set(config: StudyConfig) -> EncodedDataset:
    """The test set; only the evaluation reads it."""
    return _encoded(config, usable_samples(config, "test"))


def dropped_samples(config: StudyConfig, split: str) -> int:
    """How many samples of a split are longer than `recipe.max_tokens`."""
    return len(getattr(load_data(config.data).splits, split)) - len(usable_samples(config, split))


@lru_cache(maxsize=3)
def usable_samples(config: StudyConfig, split: str) -> tuple[Sample, ...]:
    """Samples of a split (train, validation or test) that are short enough.

    Measuring takes about a millisecond a sample, so its result is kept in the study folder.

    Raises:
        ValueError: no sample is short enough.
    """
    samples: tuple[Sample, ...] = getattr(load_data(config.data).splits, split)
    kept = _measured(config, split, samples)
    if not kept:
        raise ValueError(
            f"every one of the {len(samples)} {split} samples has more than {config.recipe.max_tokens} tokens: "
            "raise recipe.max_tokens"
        )
    return tuple(samples[index] for index in kept)


def usable_digests(config: StudyConfig, split: str) -> list[str]:
    """Digest of each sample of `usable_samples`, in its order."""
    data = load_data(config.data)
    kept = {id(sample) for sample in usable_samples(config, split)}
    return [digest for sample, digest in zip(data.parts[split], data.digests[split], strict=True) if id(sample) in kept]


def _measured(config: StudyConfig, split: str, samples: Sequence[Sample]) -> list[int]:
    limit = config.recipe.max_tokens
    made_of = [load_data(config.data).data_hash, model_fingerprint(config), limit, split]
    path = working_folder(config.study) / "cache" / f"short-enough-{content_hash(made_of)}.json"
    if path.is_file():
        return [int(index) for index in read_json(path)]
    count = TokenCounter(base_processor(config))
    kept = [index for index, sample in enumerate(samples) if count(sample) <= limit]
    write_json(path, kept)
    return kept


def _encoded(config: StudyConfig, samples: Sequence[Sample]) -> EncodedDataset:
    return EncodedDataset(samples, base_processor(config))


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
    dataset: EncodedDataset, base: Base, batch_size: int
) -> Callable[[], Iterable[tuple[dict[str, Tensor], list[str]]]]:
    """A function that gives the batches of a fixed set with the task type of each row."""
    device = next(base.model.parameters()).device

    def batches() -> Iterator[tuple[dict[str, Tensor], list[str]]]:
        for start in range(0, len(dataset), batch_size):
            items = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
            yield to_device(collate(items, base.pad_token_id), device), [item.sample.task for item in items]

    return batches


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch's tensors."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
