"""Study folders at a URL: what a stage needs comes down before it, what it made goes up after it.

What goes up is named: the study file, a revision's own files, what a manifest lists, and the manifest. Caches,
MLflow's SQLite store and the checkpoints of an unfinished fine-tune therefore stay in the working copy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from tasks.running.progress import show_message
from tasks.storage.files import read_json
from tasks.storage.folder import Manifest, Revision, is_finished
from tasks.storage.location import is_remote
from tasks.storage.mirror import (
    ChangedThereError,
    Mirror,
    check_unchanged_there,
    differing,
    fetch,
    find_version,
    list_sizes,
    list_versions,
    open_mirror,
    overwrite,
    read_ledger,
    remove_there,
    upload,
)

STUDY_FILE, STANDING_FILE, NIGHT_FILE = "study.yaml", "standing.json", "night.json"
STUDY_FILES = (STUDY_FILE, STANDING_FILE, NIGHT_FILE)
_ATTEMPTS = 3
_REVISION = re.compile(r"revisions/(\d{3,})/(.+)")
_NEVER = re.compile(r"(^|/)\.|(^|/)(cache|mlartifacts)/|/checkpoints-|\.(db|sqlite)(-\w+)?$")


class StudyChangedError(RuntimeError):
    """Another machine wrote to the study at the same time, with another result."""


def pull(study: str) -> None:
    """Bring the working copy of a remote study up to date; a local study is its own working copy.

    Adapters of older revisions stay where they are, but for the champion: no stage reads them.

    Raises:
        ValueError: the store holds nothing any more of a study that this machine knows.
    """
    if not is_remote(study):
        return
    mirror = open_mirror(study, "studies")
    with mirror.lock():
        mirror.folder.mkdir(parents=True, exist_ok=True)
        look = partial(_look, mirror)
        fetch(mirror, look, lambda versions: [name for name in versions if name in STUDY_FILES], _order)
        fetch(mirror, look, partial(_needed, _standing_adapter(mirror)), _order)


def publish_stage(study: str, revision: Revision, stage: str) -> None:
    """Bring up what a finished stage made: outputs first, its manifest last, and never over newer results.

    An older manifest of the stage is withdrawn before its outputs change, so that at no time a manifest in the
    store names outputs that are not there. If another machine has finished the stage with the same inputs
    meanwhile, its results are taken.

    Raises:
        StudyChangedError: another machine wrote something else there.
    """
    if not is_remote(study):
        return
    mirror = open_mirror(study, "studies")
    manifest = Manifest.from_json(read_json(revision.manifest(stage)))
    if not is_finished(revision, stage, manifest.inputs):
        raise RuntimeError(f"what stage {stage!r} made in {revision.folder} was changed since: run it again")
    try:
        with mirror.lock():
            _publish_stage(mirror, revision, stage, manifest)
    except ChangedThereError as error:
        pull(study)
        if not is_finished(revision, stage, manifest.inputs):
            raise _changed(error) from error
        show_message(f"{stage}: another machine finished it first; its results are taken")


def _publish_stage(mirror: Mirror, revision: Revision, stage: str, manifest: Manifest) -> None:
    versions = _versions(mirror)
    name = _name(mirror, revision.manifest(stage))
    outputs = _outputs(mirror, revision, manifest)
    changed = differing(mirror, outputs, versions)
    if not changed and not differing(mirror, [name], versions):
        return
    check_unchanged_there(mirror, [*outputs, name], versions)
    if name in versions and changed:
        replaced = _outputs(mirror, revision, _manifest_there(mirror, name))
        dropped = [output for output in replaced if output not in outputs and not mirror.here(output).exists()]
        remove_there(mirror, [name, *dropped])
        versions = {known: version for known, version in versions.items() if known not in (name, *dropped)}
    upload(mirror, [*outputs, name], versions)


def _outputs(mirror: Mirror, revision: Revision, manifest: Manifest) -> list[str]:
    """Names of a manifest's outputs; one that the stage had no reason to write has no hash."""
    return [_name(mirror, revision.path(path)) for path, digest in manifest.outputs.items() if digest]


def _manifest_there(mirror: Mirror, name: str) -> Manifest:
    # `check_unchanged_there` has just seen that the store's is the one of the ledger or the one here.
    try:
        return Manifest.from_json(json.loads(mirror.filesystem.cat_file(mirror.there(name))))
    except ValueError:
        return Manifest("", "", {})


def publish_part(study: str, revision: Revision, stage: str, files: Sequence[Path]) -> None:
    """Bring up, in this order, outputs of a stage that has not finished, such as one calibration run's.

    The name of such a file must say all that decides its content: where another machine has published it, its
    file is as good and is taken.
    """
    if not is_remote(study):
        return
    mirror = open_mirror(study, "studies")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with mirror.lock():
                _publish_part(mirror, _name(mirror, revision.manifest(stage)), [_name(mirror, path) for path in files])
            return
        except ChangedThereError as error:
            pull(study)
            if attempt == _ATTEMPTS:
                raise _changed(error) from error


def _publish_part(mirror: Mirror, manifest: str, names: Sequence[str]) -> None:
    versions = _versions(mirror)
    check_unchanged_there(mirror, names, versions)
    if versions.keys() & differing(mirror, names, versions):
        remove_there(mirror, [manifest])
    upload(mirror, names, versions)


def publish_files(study: str, files: Sequence[Path]) -> None:
    """Bring up files in this order.

    Raises:
        StudyChangedError: another machine wrote something else there.
    """
    if not is_remote(study):
        return
    mirror = open_mirror(study, "studies")
    try:
        with mirror.lock():
            upload(mirror, [_name(mirror, path) for path in files], _versions(mirror))
    except ChangedThereError as error:
        pull(study)
        raise _changed(error) from error


def publish_newest(study: str, name: str) -> None:
    """Bring up one of `STUDY_FILES` as it is here: no other file's hash hangs on it, so the last one stands."""
    if not is_remote(study):
        return
    mirror = open_mirror(study, "studies")
    with mirror.lock():
        version = find_version(mirror, name)
        versions = {} if version is None else {name: version}
        if differing(mirror, [name], versions):
            overwrite(mirror, name)


def stored_sizes(study: str) -> dict[str, int]:
    """Bytes of every file that the store has of a study, by name in the study; nothing where the study is local."""
    if not is_remote(study):
        return {}
    return list_sizes(open_mirror(study, "studies"))


def remove_stored(study: str, names: Collection[str]) -> None:
    """Remove files, and folders with all that is in them, from the store of a remote study: manifests first.

    Working copies lose them when they are next brought up to date, but for what was changed in one of them.
    """
    if not is_remote(study):
        return
    mirror = open_mirror(study, "studies")
    with mirror.lock():
        found = [name for name in list_versions(mirror) if any(is_below(name, removed) for removed in names)]
        remove_there(mirror, sorted(found, key=_order, reverse=True))


def is_below(name: str, folder: str) -> bool:
    """Whether a file's name is that of `folder`, or of something in it."""
    return name == folder or name.startswith(f"{folder}/")


def _changed(error: ChangedThereError) -> StudyChangedError:
    return StudyChangedError(
        f"{error}; its version is kept and now in this machine's working copy too: run the same command again, "
        "it goes on from there"
    )


def _versions(mirror: Mirror) -> dict[str, str]:
    found = {name: find_version(mirror, name) for name in STUDY_FILES}
    return list_versions(mirror, "revisions") | {name: there for name, there in found.items() if there is not None}


def _standing_adapter(mirror: Mirror) -> str:
    """Name of the champion's folder in the study; empty where none stands."""
    path = mirror.here(STANDING_FILE)
    return str(read_json(path)["adapter"]) if path.is_file() else ""


def _needed(standing: str, versions: Mapping[str, str]) -> list[str]:
    newest = max((match[1] for name in versions if (match := _REVISION.fullmatch(name))), default="")
    return [name for name in versions if _is_needed(name, newest, standing)]


def _is_needed(name: str, newest: str, standing: str) -> bool:
    match = _REVISION.fullmatch(name)
    if match is None:
        return name in STUDY_FILES
    if standing and name.startswith(f"{standing}/"):
        return True
    return not _NEVER.search(name) and (match[1] == newest or "/adapter/" not in name)


def _look(mirror: Mirror) -> dict[str, str]:
    versions = _versions(mirror)
    if read_ledger(mirror) and not versions:
        raise ValueError(
            f"{mirror.url} is empty, but this machine has a working copy of the study that was there: if it was "
            f"deleted on purpose, delete {mirror.folder.parent} too; else look at endpoint and bucket"
        )
    return versions


def _order(name: str) -> int:
    """Manifests come last, and before them what says that a revision is open."""
    if "/manifests/" in name:
        return 2
    return 1 if name.endswith("/revision.json") else 0


def _name(mirror: Mirror, path: Path) -> str:
    return path.relative_to(mirror.folder).as_posix()
