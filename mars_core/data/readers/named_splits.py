"""Folders that hold several splits under names of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_SAME = (frozenset({"validation", "val", "valid", "dev", "eval"}), frozenset({"train", "training"}))


def choose_split(path: Path, names: Sequence[str], wanted: str | None) -> str:
    """The one of `names` that is meant by `wanted`; `val` and the like are other names of `validation`.

    Raises:
        ValueError: there is no such split, or none was named and there are several.
    """
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names:
        return str(wanted)
    others = next((same for same in _SAME if wanted in same), frozenset())
    found = [name for name in names if name in others]
    if not found:
        asked = f"no split {wanted!r}" if wanted else "several splits"
        raise ValueError(f"{path} has {asked}: it holds {', '.join(names)}; name one of them")
    return found[0]
