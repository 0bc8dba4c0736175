"""Delete what a cleaning found: never outside the study, never through a link, and so that it can be stopped anywhere.

What a remote study has in its store goes first, each stage's manifest before what it lists.

A folder is first renamed, in one step, to a name that nothing reads, then emptied: no stage ever sees half of it, and
the next cleaning finishes what this one could not.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.storage.transfer import remove_stored

DELETED_PREFIX = ".deleted-"


@dataclass(frozen=True)
class Deletion:
    """Something to delete; `manifests` go first, so that no manifest lists what is gone."""

    path: Path
    manifests: tuple[Path, ...] = ()


def delete(location: str, folder: Path, deletions: Sequence[Deletion]) -> list[str]:
    """Delete from the store of a remote study, then from the folder, in this order.

    Args:
        location: the study, as its configuration names it.
        folder: the study's folder on this machine.
        deletions: what lies in the folder.

    Returns:
        What could not be deleted here and why; the rest is deleted all the same.
    """
    paths = [path for deletion in deletions for path in (*deletion.manifests, deletion.path)]
    remove_stored(location, [path.relative_to(folder).as_posix() for path in paths])
    return delete_here(folder, deletions)


def delete_here(study: Path, deletions: Sequence[Deletion]) -> list[str]:
    """Delete from a folder in this order; returns what could not be deleted and why."""
    failed = []
    for deletion in deletions:
        try:
            _delete(study, deletion)
        except OSError as error:
            failed.append(f"{deletion.path.relative_to(study)}: {error.strerror or error}")
    return failed


def plain_below(study: Path, path: Path) -> bool:
    """Whether `path` lies in the study folder and neither it nor a folder above it there is a symbolic link."""
    if not path.is_relative_to(study) or path == study or ".." in path.parts:
        return False
    between = [study.joinpath(*path.relative_to(study).parts[:n]) for n in range(1, len(path.relative_to(study).parts))]
    return not any(step.is_symlink() for step in [*between, path])


def _delete(study: Path, deletion: Deletion) -> None:
    # Looked at again: time has passed since the cleaning was planned.
    if not all(plain_below(study, path) for path in (*deletion.manifests, deletion.path)):
        raise OSError(f"is a symbolic link or outside {study} by now, left alone")
    for manifest in deletion.manifests:
        manifest.unlink(missing_ok=True)
    if deletion.path.is_dir():
        _delete_folder(deletion.path)
        with contextlib.suppress(OSError):  # snapshots/ and state/ go with their last entry
            if deletion.path.parent.name in ("snapshots", "state"):
                deletion.path.parent.rmdir()
    else:
        deletion.path.unlink(missing_ok=True)


def _delete_folder(folder: Path) -> None:
    if folder.name.startswith(DELETED_PREFIX):
        shutil.rmtree(folder)
        return
    hidden = folder.with_name(DELETED_PREFIX + folder.name)
    if hidden.exists():  # left by a cleaning that was stopped
        shutil.rmtree(hidden)
    folder.rename(hidden)
    shutil.rmtree(hidden)
