"""Data at a URL: dataset files and the images they name are mirrored on this machine, and only read there.

A training run reads every image in every epoch, so that reading over the network each time would cost far more than
one copy.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from mars_core.data.readers import read_rows
from mars_core.data.records import PathImage, Sample
from tasks.config import DataConfig
from tasks.storage.location import is_remote
from tasks.storage.mirror import Mirror, fetch, find_version, list_versions, open_mirror, read_ledger

_FILES = ("train", "validation", "test")


def local_data(data: DataConfig) -> DataConfig:
    """The same data with local paths; what lies at a URL is brought up to date first.

    Raises:
        ValueError: a dataset file is not there, or it is not clear what image paths are relative to.
    """
    files = {key: url for key in _FILES if (url := getattr(data, key)) is not None}
    local: dict[str, str] = {key: _local_file(url) for key, url in files.items()}
    images = data.images or _default_folder(files)
    if images is not None and is_remote(images):
        local["images"] = _local_images(images, list(local.values()))
    return data.model_copy(update=local)


def _default_folder(files: dict[str, str]) -> str | None:
    """The URL of the folder that holds all dataset files, None where all are local."""
    folders = {url.rpartition("/")[0] if is_remote(url) else None for url in files.values()}
    if len(folders) > 1:
        raise ValueError(
            f"the dataset files lie in several places ({', '.join(files.values())}): say with data.images where the "
            "images are"
        )
    return folders.pop()


def _local_file(location: str) -> str:
    if not is_remote(location):
        return location
    folder, _, name = location.rpartition("/")
    mirror = open_mirror(folder, "files")
    with mirror.lock():
        fetch(mirror, lambda: _versions_of(mirror, {name} | read_ledger(mirror).keys()), list)
    if not mirror.here(name).is_file():
        raise ValueError(f"no dataset file at {location}: give the path or URL of a LLaVA JSON or Parquet file")
    return str(mirror.here(name))


def _versions_of(mirror: Mirror, names: set[str]) -> dict[str, str]:
    versions = {name: find_version(mirror, name) for name in names}
    return {name: version for name, version in versions.items() if version is not None}


def _local_images(url: str, files: list[str]) -> str:
    mirror = open_mirror(url, "images")
    mirror.folder.mkdir(parents=True, exist_ok=True)
    with mirror.lock():
        named = {name for file in files for name in _image_names(file, mirror.folder)}
        fetch(mirror, lambda: list_versions(mirror), named.intersection)
    return str(mirror.folder)


def _image_names(file: str, folder: Path) -> set[str]:
    """Image paths in a dataset file; those that would lead out of the folder are left for the check to refuse."""
    samples = [row for row in read_rows(file, folder) if isinstance(row, Sample)]
    paths = [
        image.path.replace("\\", "/") for sample in samples for image in sample.images if isinstance(image, PathImage)
    ]
    return {str(PurePosixPath(path)) for path in paths if not PureWindowsPath(path).is_absolute()}
