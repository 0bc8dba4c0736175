"""The study that a person names: by its file or by its folder."""

from __future__ import annotations

from tasks.settings.study import StudyConfig, read_study
from tasks.storage.location import is_remote, local_path
from tasks.storage.transfer import STUDY_FILE


def find_study(where: str) -> StudyConfig:
    """Read a study file, or the one that lies in a study folder; either may be a path or a URL."""
    if is_remote(where):
        if where.endswith((".yaml", ".yml")):
            return read_study(where)
        return read_study(f"{where.rstrip('/')}/{STUDY_FILE}").model_copy(update={"study": where.rstrip("/")})
    path = local_path(where)
    if not path.is_dir():
        return read_study(path)
    # Also where the folder was moved or copied since.
    return read_study(path / STUDY_FILE).model_copy(update={"study": str(path.resolve())})


def full_address(where: str) -> str:
    """The same place as every process on this machine finds it: relative paths are relative to the present folder."""
    return where if is_remote(where) else str(local_path(where).absolute())


def require_full(where: str) -> str:
    """Insist on an address that means the same to every process.

    Raises:
        ValueError: it is a relative path.
    """
    if not is_remote(where) and not local_path(where).is_absolute():
        raise ValueError(f"relative paths mean nothing on a worker: got study = {where!r}; give a full path")
    return where
