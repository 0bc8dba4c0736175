"""What changed in a dataset: samples that came, went or moved to another split, counts by split and task type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mars_core.records import Record

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class DataSnapshot(Record):
    """A dataset as one revision saw it.

    Attributes:
        data_hash: hash of everything in it.
        hashes: hash of each split.
        tasks: samples of each split by task type.
        samples: digest of each sample (what it says and shows, not its name), by split.
    """

    data_hash: str
    hashes: Mapping[str, str]
    tasks: Mapping[str, Mapping[str, int]]
    samples: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class SplitDrift(Record):
    """One split: samples before and now, and how many came, went, or came from another split."""

    split: str
    before: int
    now: int
    added: int
    removed: int
    from_other_splits: int


@dataclass(frozen=True)
class TaskDrift(Record):
    """Samples of one task type in one split, before and now."""

    split: str
    task: str
    before: int
    now: int


@dataclass(frozen=True)
class DataDrift(Record):
    """What changed between two snapshots; `tasks` lists only what differs."""

    hash_before: str
    hash_now: str
    splits: tuple[SplitDrift, ...]
    tasks: tuple[TaskDrift, ...]

    @property
    def changed(self) -> bool:
        """Whether anything did."""
        return self.hash_before != self.hash_now


def compare_data(before: DataSnapshot, now: DataSnapshot) -> DataDrift:
    """Compare two snapshots, sample by sample; a sample that stands twice counts twice."""
    everything_before = Counter(digest for split in SPLITS for digest in before.samples[split])
    splits = tuple(_split(split, before, now, everything_before) for split in SPLITS)
    tasks = tuple(
        TaskDrift(split, task, before.tasks[split].get(task, 0), now.tasks[split].get(task, 0))
        for split in SPLITS
        for task in sorted({*before.tasks[split], *now.tasks[split]})
        if before.tasks[split].get(task, 0) != now.tasks[split].get(task, 0)
    )
    return DataDrift(before.data_hash, now.data_hash, splits, tasks)


def _split(split: str, before: DataSnapshot, now: DataSnapshot, everything_before: Counter[str]) -> SplitDrift:
    old, new = Counter(before.samples[split]), Counter(now.samples[split])
    arrived = new - old
    elsewhere = everything_before - old
    return SplitDrift(
        split=split,
        before=old.total(),
        now=new.total(),
        added=arrived.total(),
        removed=(old - new).total(),
        from_other_splits=(arrived & elsewhere).total(),
    )
