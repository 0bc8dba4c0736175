"""Folders that hold several splits under names of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_VALIDATION = frozenset({"validation", "val", "valid", "dev", "eval"})
_TRAIN = frozenset({"train", "training"})
_TEST = frozenset({"test", "testing"})
_SAME = (_VALIDATION, _TRAIN, _TEST)
# ScienceQA's name for training and validation data together; other layouts of it have only the two.
_TRAIN_AND_VALIDATION = "trainval"

# As the Hub names files: train-00000-of-00003, older ones with a hash behind.
_SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+(-[0-9a-f]+)?")


def split_of_file(stem: str) -> str | None:
    """The split that a file's name tells: of a shard the part in front of its number, else a usual name.

    `train`, `test_2` and `my-data.val` tell one; `captions` and `train-test` do not.
    """
    shard = _SHARD.fullmatch(stem)
    if shard:
        return shard["split"]
    words = [word for word in re.split(r"[^a-z]+", stem.lower()) if any(word in same for same in _SAME)]
    return words[0] if len(set(words)) == 1 else None


def choose_splits(path: Path, names: Sequence[str], wanted: str | None) -> tuple[str, ...]:
    """Those of `names` that are meant by `wanted`: one, or two by `trainval` where no split is called so.

    `val` and the like are other names of `validation`.

    Raises:
        ValueError: there is no such split, or none was named and there are several.
    """
    if wanted is None and len(names) == 1:
        return (names[0],)
    if wanted in names:
        return (str(wanted),)
    kinds = (_TRAIN, _VALIDATION) if wanted == _TRAIN_AND_VALIDATION else [same for same in _SAME if wanted in same]
    found = tuple(next((name for name in names if name.lower() in same), None) for same in kinds)
    chosen = tuple(name for name in found if name is not None)
    if not chosen or len(chosen) < len(found):
        asked = f"no split {wanted!r}" if wanted else "several splits"
        raise ValueError(f"{path} has {asked}: it holds {', '.join(names)}; name one of them")
    return chosen
