"""A revision's record of its data: digests and counts, so that a later night can say what changed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mars_core.drift import DataSnapshot
from tasks.inputs.opened import Inputs
from tasks.storage.files import read_json, write_json
from tasks.storage.folder import Revision


def snapshot(inputs: Inputs) -> DataSnapshot:
    """The study's data as they are now."""
    data = inputs.data
    tasks = {split: dict(Counter(sample.task for sample in samples)) for split, samples in data.parts.items()}
    return DataSnapshot(data.data_hash, data.hashes, tasks, data.digests)


def write_snapshot(revision: Revision, inputs: Inputs) -> None:
    """Record the data that a revision is made with."""
    write_json(snapshot_path(revision), snapshot(inputs).to_json())


def read_snapshot(revision: Revision) -> DataSnapshot | None:
    """The data that a revision was made with, None where it kept no record."""
    path = snapshot_path(revision)
    return DataSnapshot.from_json(read_json(path)) if path.is_file() else None


def snapshot_path(revision: Revision) -> Path:
    """Where the record lies."""
    return revision.path("data.json")
