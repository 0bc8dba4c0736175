"""Three ways: train, calibration validation, test; an image never stands in two of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mars_core.data.hashing import data_hash
from mars_core.data.images import content_hashes
from mars_core.data.records import ImageRef, Sample
from mars_core.data.shared import shared_images

VALIDATION_SIZE = 500
TEST_SIZE = 500


@dataclass(frozen=True)
class Splits:
    """The three parts of a dataset; `notes` say what did not come out as asked."""

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]
    notes: tuple[str, ...] = ()


def split_samples(
    samples: Sequence[Sample],
    *,
    seed: int,
    validation_size: int = VALIDATION_SIZE,
    test_size: int = TEST_SIZE,
    hashes: Mapping[ImageRef, str] | None = None,
) -> Splits:
    """Split one dataset at random, stratified by task type, samples that share an image staying together.

    Chance is a hash of what a sample holds, so that the parts stay nearly as they were when data are added or removed:
    nothing that was trained on becomes test data, unless more is removed than validation holds.

    Args:
        samples: the whole dataset.
        seed: seed of the split; the same data and seed give the same split.
        validation_size: samples to hold out for calibration and search.
        test_size: samples to hold out for the final evaluation; 0 for none.
        hashes: content hash of every image, where it is already known.

    Raises:
        ValueError: nothing would be left to train on, or nothing can be held out.
    """
    _check_sizes(len(samples), validation_size, test_size)
    hashes = content_hashes(samples) if hashes is None else hashes
    groups = _by_chance(samples, _groups(samples, hashes), hashes, seed)
    test, rest = _hold_out(samples, groups, test_size)
    validation, train = _hold_out(samples, rest, validation_size)
    notes = (*_shortfall("validation", validation, validation_size), *_shortfall("test", test, test_size))
    return Splits(_pick(samples, train), _pick(samples, validation), _pick(samples, test), notes)


def join_splits(
    train: Sequence[Sample],
    validation: Sequence[Sample],
    test: Sequence[Sample] = (),
    hashes: Mapping[ImageRef, str] | None = None,
) -> Splits:
    """Take three given parts as they are, provided that no image stands in two of them.

    Raises:
        ValueError: train or validation is empty, or images are shared (counted, the first few shown).
    """
    parts = {"train": train, "validation": validation, "test": test}
    for name in ("train", "validation"):
        if not parts[name]:
            raise ValueError(f"the {name} data has no samples: give a file with at least one")
    shared = shared_images(parts, hashes)
    if shared:
        shown = "\n".join(f"  {image}" for image in shared[:5])
        raise ValueError(
            f"{len(shared)} images stand in more than one split, so that scores would be too good:\n{shown}\n"
            "remove their samples from all but one file, give one file and let it be split, or take published splits "
            "as they are with data.shared_images: note"
        )
    return Splits(tuple(train), tuple(validation), tuple(test))


def _check_sizes(available: int, validation_size: int, test_size: int) -> None:
    if validation_size < 1 or test_size < 0:
        raise ValueError(f"expected at least 1 validation and 0 test samples, got {validation_size} and {test_size}")
    if available <= validation_size + test_size:
        raise ValueError(
            f"the dataset has {available} samples, but {validation_size} are to be held out for validation "
            f"and {test_size} for test: add data or hold out fewer"
        )


def _groups(samples: Sequence[Sample], hashes: Mapping[ImageRef, str]) -> list[list[int]]:
    """Indices of samples connected through shared images, in order of first appearance."""
    parent = list(range(len(samples)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_with: dict[str, int] = {}
    for index, sample in enumerate(samples):
        for image in sample.media:
            one, other = sorted((root(index), root(first_with.setdefault(hashes[image], index))))
            parent[other] = one
    groups: dict[int, list[int]] = {}
    for index in range(len(samples)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _by_chance(
    samples: Sequence[Sample], groups: Iterable[list[int]], hashes: Mapping[ImageRef, str], seed: int
) -> list[list[int]]:
    """Groups in an order that depends on the content of each alone, not on its place in the file or on the others."""

    def drawn(group: list[int]) -> bytes:
        images = [hashes[image] for index in group for image in samples[index].media]
        content = min(images) if images else data_hash([samples[group[0]]], {})
        return hashlib.sha256(f"split/{seed}/{content}".encode()).digest()

    return sorted(groups, key=drawn)


def _hold_out(
    samples: Sequence[Sample], groups: Sequence[list[int]], size: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Take groups of `size` samples in all: first those that keep the task mixture, then any that fit."""
    tasks = [Counter(samples[index].task for index in group) for group in groups]
    room = _quotas(sum(tasks, Counter()), size)
    taken: set[int] = set()
    for position, count in enumerate(tasks):
        if all(count[task] <= room[task] for task in count):
            taken.add(position)
            room -= count
    left = size - sum(len(groups[position]) for position in taken)
    for position, group in enumerate(groups):
        if position not in taken and len(group) <= left:
            taken.add(position)
            left -= len(group)
    held = [group for position, group in enumerate(groups) if position in taken]
    return held, [group for position, group in enumerate(groups) if position not in taken]


def _quotas(counts: Counter[str], size: int) -> Counter[str]:
    """Share `size` out over the task types by their counts (largest remainder)."""
    total = sum(counts.values())
    quotas = Counter({task: size * count // total for task, count in counts.items()})
    by_remainder = sorted(counts, key=lambda task: (-(size * counts[task] % total), task))
    quotas.update(by_remainder[: size - sum(quotas.values())])
    return quotas


def _pick(samples: Sequence[Sample], groups: Iterable[list[int]]) -> tuple[Sample, ...]:
    return tuple(samples[index] for index in sorted(index for group in groups for index in group))


def _shortfall(name: str, held: Sequence[list[int]], asked: int) -> tuple[str, ...]:
    got = sum(len(group) for group in held)
    if asked and not got:
        raise ValueError(
            f"no samples can be held out for {name}: all groups of samples that share an image are larger "
            f"than {asked}; give a separate {name} file"
        )
    return (f"{name} has {got} samples instead of {asked}, to keep shared images together",) * (got < asked)
