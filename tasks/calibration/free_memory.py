"""Memory of this machine that a pack may take: what is free, within the limits of a container or batch job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def free_memory(control_groups: Path = CONTROL_GROUPS, own_group: Path = OWN_GROUP) -> int:
    """Bytes that this process may still take, not more than any control group (version 2) around it allows.

    In a container the machine's free memory says nothing: a process that goes beyond its group's limit is killed.
    """
    rooms = [room for group in _groups_around(control_groups, own_group) if (room := _room(group)) is not None]
    return max(0, min([int(psutil.virtual_memory().available), *rooms]))


def _groups_around(control_groups: Path, own_group: Path) -> Iterator[Path]:
    try:
        lines = own_group.read_text(encoding="utf-8").splitlines()
    except OSError:  # another system than Linux
        return
    own = next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), "")
    group = control_groups / own
    yield group
    while group != control_groups and control_groups in group.parents:
        group = group.parent
        yield group


def _room(group: Path) -> int | None:
    """What a group leaves, its file caches counted as free as the kernel drops them first; None without a limit."""
    try:
        limit = (group / "memory.max").read_text(encoding="utf-8").strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        statistics = (group / "memory.stat").read_text(encoding="utf-8").split()
        return int(limit) - used + int(statistics[statistics.index("inactive_file") + 1])
    except (OSError, ValueError):
        return None
