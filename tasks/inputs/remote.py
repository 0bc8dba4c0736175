"""Data at a URL: datasets and the images they name are mirrored on this machine, and only read there.

A training run reads every image in every epoch, so that reading over the network each time would cost far more than
one copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from mars_core.data.readers import FOLDER_FILES, READERS, detect_format, read_rows, scienceqa
from mars_core.data.records import PathImage, Sample
from tasks.settings.data import DataConfig
from tasks.storage.location import check_location, is_folder, is_remote
from tasks.storage.mirror import Mirror, fetch, find_version, list_versions, open_mirror, read_ledger

_PARTS = ("train", "validation", "test")
_FOLDER_FILES = tuple(pattern for patterns in FOLDER_FILES.values() for pattern in patterns)


def local_data(data: DataConfig) -> DataConfig:
    """The same data with local paths; what lies at a URL is brought up to date first.

    Raises:
        ValueError: a dataset is not there, or it is not clear what image paths are relative to.
    """
    given = {part: location for part in _PARTS if (location := getattr(data, part)) is not None}
    if not any(map(is_remote, (*given.values(), data.images or ""))):
        return data
    here = data.model_copy(update={part: _local_dataset(location, data.format) for part, location in given.items()})
    if data.images is not None:
        return here.model_copy(update={"images": _local_images(data.images, here)})
    places = {_default_folder(location, getattr(here, part), data.format) for part, location in given.items()}
    if len(places) == 1:
        return here.model_copy(update={"images": _local_images(places.pop(), here)})
    # Images inside of tables are relative to nothing.
    if _image_names(here, None):
        raise ValueError(
            f"the dataset files lie in several places ({', '.join(given.values())}): say with data.images where the "
            "images are"
        )
    return here


def _default_folder(location: str, here: str, format: str | None) -> str:
    """The folder that a reader takes image paths to be relative to, as a URL where the dataset is at one."""
    if not is_remote(location):
        return str(Path(location) if Path(location).is_dir() else Path(location).parent)
    url = check_location(location)
    folder = url if Path(here).is_dir() else url.rpartition("/")[0]
    images = f"{folder}/{scienceqa.IMAGES}"
    return images if _format(here, format) == "scienceqa" and is_folder(images) else folder


def _format(here: str, format: str | None) -> str:
    return format or detect_format(Path(here))


def _local_dataset(location: str, format: str | None) -> str:
    if not is_remote(location):
        return location
    url = check_location(location)
    return _local_folder(url) if is_folder(url) else _local_file(url, format)


def _local_folder(url: str) -> str:
    mirror = open_mirror(url, "files")
    with mirror.lock():
        fetch(mirror, lambda: list_versions(mirror), _dataset_files)
    if not any(_dataset_files(read_ledger(mirror))):
        raise ValueError(
            f"no dataset in the folder {url}: expected Parquet files, a folder of `datasets` or ScienceQA's "
            "problems.json; give the URL of the file where it is JSON"
        )
    return str(mirror.folder)


def _dataset_files(names: Iterable[str]) -> list[str]:
    """Those that a reader of folders looks for."""
    return [name for name in names if any(_matches(PurePosixPath(name), pattern) for pattern in _FOLDER_FILES)]


def _matches(name: PurePosixPath, pattern: str) -> bool:
    # `match` compares from the right, so that *.arrow would match at any depth.
    return len(name.parts) == len(PurePosixPath(pattern).parts) and name.match(pattern)


def _local_file(url: str, format: str | None) -> str:
    folder, _, name = url.rpartition("/")
    mirror = open_mirror(folder, "files")
    _fetch_files(mirror, {name})
    here = mirror.here(name)
    if not here.is_file():
        raise ValueError(f"no dataset file or folder at {url}: give the path or URL of one ({', '.join(READERS)})")
    if _format(str(here), format) == "scienceqa":
        _fetch_files(mirror, set(scienceqa.FOLDER_FILES))
    return str(here)


def _fetch_files(mirror: Mirror, names: set[str]) -> None:
    with mirror.lock():
        fetch(mirror, lambda: _versions_of(mirror, names | read_ledger(mirror).keys()), list)


def _versions_of(mirror: Mirror, names: set[str]) -> dict[str, str]:
    versions = {name: find_version(mirror, name) for name in names}
    return {name: version for name, version in versions.items() if version is not None}


def _local_images(location: str, data: DataConfig) -> str:
    """The image folder on this machine, with those images that the datasets name."""
    if not is_remote(location):
        return location
    mirror = open_mirror(location, "images")
    mirror.folder.mkdir(parents=True, exist_ok=True)
    with mirror.lock():
        named = _image_names(data, mirror.folder)
        fetch(mirror, lambda: list_versions(mirror), named.intersection)
    return str(mirror.folder)


def _image_names(data: DataConfig, folder: Path | None) -> set[str]:
    """Image paths in the datasets; those that would lead out of the folder are left for the check to refuse."""
    paths = {image.path.replace("\\", "/") for part in _PARTS for image in _path_images(data, part, folder)}
    return {str(PurePosixPath(path)) for path in paths if not PureWindowsPath(path).is_absolute()}


def _path_images(data: DataConfig, part: str, folder: Path | None) -> Iterator[PathImage]:
    if (dataset := getattr(data, part)) is None:
        return
    for row in read_rows(dataset, folder, data.format, getattr(data, f"{part}_split")):
        if isinstance(row, Sample):
            yield from (image for image in row.media if isinstance(image, PathImage))
