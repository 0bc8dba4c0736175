"""Which images are nearly the same: found once on this machine for each set of images, not in every command."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mars_core.data.image_fingerprints import ImageFingerprint
from mars_core.data.near import BITS, CELL, near_labels
from mars_core.data.records import ImageRef
from mars_core.metrics.identity import content_hash
from tasks.running.progress import progress_bar
from tasks.storage.files import read_json, write_json
from tasks.storage.location import cache_folder

# Part of every name: labels found another way must not be taken for those found now.
_KIND = "quarters-2"
# The search takes less than a second below this many images, and a file for each set would only litter.
_WORTH_KEEPING = 5000


def find_near_labels(fingerprints: Mapping[ImageRef, ImageFingerprint]) -> dict[ImageRef, str]:
    """`near_labels`, with a progress bar and a memory where there are many images.

    The memory is a file in the user's cache folder, named by the hash of all contents; it holds the labels that are
    not the image's own content.
    """
    contents = sorted({look.content for look in fingerprints.values()})
    if len(contents) < _WORTH_KEEPING:
        return near_labels(fingerprints)
    file = cache_folder() / "near-duplicates" / f"{content_hash([_KIND, BITS, CELL, contents])}.json"
    try:
        known = dict(read_json(file))
    except (OSError, ValueError, TypeError):  # not there, or damaged: it is made again
        with progress_bar("looking for near-duplicate images", len(contents)) as advance:
            labels = near_labels(fingerprints, progress=advance)
        _keep(
            file, {look.content: labels[image] for image, look in fingerprints.items() if labels[image] != look.content}
        )
        return labels
    return {image: known.get(look.content, look.content) for image, look in fingerprints.items()}


def _keep(file: Path, labels: Mapping[str, str]) -> None:
    with suppress(OSError):  # a cache folder that cannot be written to: every command finds them itself
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, dict(labels))
