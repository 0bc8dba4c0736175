"""One hash for what a dataset says and shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from mars_core.data.images import content_hashes
from mars_core.data.records import ImageRef, Sample


def data_hash(samples: Sequence[Sample], hashes: Mapping[ImageRef, str] | None = None) -> str:
    """SHA-256 over task types, turns and the bytes of images and sounds, in order.

    Names do not count: neither ids nor where files and folders lie.

    Args:
        samples: the dataset.
        hashes: content hash of every image, where it is already known.
    """
    known = content_hashes(samples) if hashes is None else hashes
    digest = hashlib.sha256()
    for sample in samples:
        turns = [[turn.role, turn.text, *([] if turn.trained else ["untrained"])] for turn in sample.turns]
        images = [known[image] for image in sample.media]
        digest.update(json.dumps([sample.task, turns, images], ensure_ascii=True).encode("ascii") + b"\n")
    return digest.hexdigest()
