"""A map-style dataset of encoded samples: encoded when asked for, kept in memory up to a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from mars_core.data.encode import Encoded, encode_sample
from mars_core.data.lengths import TokenCounter
from mars_core.data.records import Sample

CACHE_BYTES = 1 << 30


class EncodedDataset(Dataset[Encoded]):
    """Samples short enough for the model, encoded on access.

    Attributes:
        samples: the samples kept, in the given order; indices of the dataset are indices into them.
        dropped: how many samples had more than `max_tokens` tokens.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Any,
        max_tokens: int | None = None,
        *,
        cache_bytes: int = CACHE_BYTES,
        progress: Callable[[int, int], Any] | None = None,
    ) -> None:
        """Keep the samples that are short enough; image headers are read for it, but no image is decoded.

        Args:
            samples: the samples.
            processor: an image-and-text processor with a chat template.
            max_tokens: longest allowed sequence, image tokens included; None for no limit.
            cache_bytes: how much to keep in memory; what does not fit is encoded again on each access.
            progress: called with (samples measured, samples in all).

        Raises:
            ValueError: a sample cannot be encoded, or none is short enough.
        """
        self.samples = tuple(samples)
        if max_tokens is not None:
            self.samples = _short_enough(self.samples, processor, max_tokens, progress)
        self.dropped = len(samples) - len(self.samples)
        self._processor = processor
        self._max_tokens = max_tokens
        self._cache: dict[int, Encoded] = {}
        self._cache_bytes_left = cache_bytes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Encoded:
        if index not in self._cache:
            encoded = encode_sample(self.samples[index], self._processor, self._max_tokens)
            if encoded.nbytes > self._cache_bytes_left:
                return encoded
            self._cache_bytes_left -= encoded.nbytes
            self._cache[index] = encoded
        return self._cache[index]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task type of each sample kept."""
        return tuple(sample.task for sample in self.samples)


def _short_enough(
    samples: Sequence[Sample], processor: Any, max_tokens: int, progress: Callable[[int, int], Any] | None
) -> tuple[Sample, ...]:
    count = TokenCounter(processor)
    kept = []
    for done, sample in enumerate(samples, start=1):
        if count(sample) <= max_tokens:
            kept.append(sample)
        if progress is not None:
            progress(done, len(samples))
    if samples and not kept:
        raise ValueError(
            f"all {len(samples)} samples have more than {max_tokens} tokens: raise the limit on tokens, "
            "or make the images smaller"
        )
    return tuple(kept)
