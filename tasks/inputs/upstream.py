"""Samples of a study's upstream tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mars_core.data.hashing import data_hash
from mars_core.data.image_fingerprints import content_of, distinct_images
from mars_core.data.lengths import TokenCounter
from mars_core.data.readers import read_samples
from mars_core.data.records import Sample
from mars_core.data.sounds import sound_hashes
from mars_core.data.subsets import nested_order
from mars_core.metrics.identity import content_hash
from tasks.inputs.image_cache import fingerprint_all
from tasks.inputs.remote import local_data
from tasks.settings.upstream import UpstreamTask

ORDER_SEED = 0


def upstream_samples(task: UpstreamTask, processor: Any, limit: int) -> tuple[Sample, ...]:
    """The samples that a task asks: of at most `limit` tokens, at most `samples`, with the task mixture of all.

    Raises:
        ValueError: the data cannot be read, or fewer than two samples are short enough.
    """
    data = local_data(task.as_data())
    samples = read_samples(data.train, data.images, data.format, data.train_split)
    order = nested_order([sample.task for sample in samples], ORDER_SEED)
    count = TokenCounter(processor)
    kept: list[Sample] = []
    for index in order:
        if len(kept) == task.samples:
            break
        if count(samples[index]) <= limit:
            kept.append(samples[index])
    if len(kept) < 2:
        raise ValueError(
            f"upstream task {task.name!r}: {len(kept)} of {len(samples)} samples have at most {limit} tokens, and at "
            "least 2 are needed: raise recipe.max_tokens, or give other data"
        )
    return tuple(kept)


def upstream_hash(asked: Mapping[UpstreamTask, Sequence[Sample]]) -> str:
    """Hash of everything that upstream scores depend on but the model: samples, metrics, and how they are cut."""
    parts = []
    for task, samples in asked.items():
        hashes = content_of(fingerprint_all(distinct_images(samples))) | sound_hashes(samples)
        parts.append([task.name, task.metric, data_hash(samples, hashes)])
    return content_hash(parts)
