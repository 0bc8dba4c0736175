"""What a study folder holds that its policy does not keep: found here, deleted in `tasks.retention.delete`.

Never found: what the manifest of a kept revision lists (a cleaned study is still done), what an unfinished stage of the
newest revision resumes from (unless asked), anything behind a symbolic link, and MLflow's store.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.retention.delete import DELETED_PREFIX, plain_below
from tasks.settings.study import StudyConfig
from tasks.storage.files import file_hash, read_json
from tasks.storage.folder import Revision, revisions
from tasks.storage.location import is_remote, working_folder
from tasks.storage.transfer import STANDING_FILE, is_below, stored_sizes
from tasks.tracking.champion import Champions

# Written beside what they are to replace (tasks.storage.files), and left behind only by a process that was killed.
TEMPORARY = re.compile(r"^\..+\.[a-z0-9_]{8}$")
TEMPORARY_SECONDS = 24 * 3600
REVISION_NAME = re.compile(r"^[0-9]{3}$")
PAIR_NAME = re.compile(r"^me([0-9]+)-llm([0-9]+)(-lr.+)?$")  # learning rates where they are not the recipe's
STAGES_OF_A_FINAL_RUN = ("score", "card", "finetune", "rate")
"""Stages that write in a final run's folder, the last one first; `mars compare` scores, and finds rates."""


@dataclass(frozen=True)
class Item:
    """A file or folder that is not kept, and why.

    manifests: of the stages that wrote in it, deleted first, so that no manifest lists what is gone.
    """

    path: Path
    kind: str
    why: str
    size: int
    modified: float
    manifests: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Cleaning:
    """What would be deleted, in the order of deletion, and notes on what is kept though one might expect otherwise.

    study: the local folder that was looked at, the working copy of a remote study.
    """

    study: Path
    items: tuple[Item, ...]
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(item.size for item in self.items)


@dataclass(frozen=True)
class _Found:
    path: Path
    kind: str
    why: str
    manifests: tuple[Path, ...] = ()


def require_study(config: StudyConfig) -> Path:
    """The study folder of a configuration; the working copy, which must be up to date, where it is remote.

    Raises:
        ValueError: it is no study folder, or nothing has run in it.
    """
    study = working_folder(config.study).resolve()
    name = config.study if is_remote(config.study) else study
    if not (study / "study.yaml").is_file() or not (study / "revisions").is_dir():
        raise ValueError(f"{name} is not a study folder (it has no study.yaml and revisions/): nothing is deleted")
    if not revisions(study):
        raise ValueError(f"{name} holds no revision yet: there is nothing to clean")
    return study


def plan_cleaning(config: StudyConfig, champions: Champions, *, include_resume: bool = False) -> Cleaning:
    """Find what the policy does not keep.

    champions: what the model registry says; where it could not be asked, old revisions and adapters are kept.
    include_resume: also what unfinished stages of the newest revision would resume from.

    Raises:
        ValueError: the configuration's folder is not a study.
    """
    study = require_study(config)
    kept, notes = _kept_revisions(study, config, champions)
    found = [*_left_by_the_killed(study), *_inside_kept(kept, config, champions), *_caches(study, config)]
    found += _old_revisions(study, kept)
    resume = list(_resume_states(revisions(study)[-1], config))
    if include_resume:
        found += resume
    protected = _listed(kept, {path for item in found for path in item.manifests})
    usable, skipped = _deletable(study, found, protected)
    notes += skipped
    if resume and not include_resume:
        amount = sum(_size(item.path) for item in resume)
        notes.append(
            f"{len(resume)} resume states ({amount / 1e6:.1f} MB) are kept for unfinished stages: --include-resume "
            "gives them up"
        )
    stored = stored_sizes(config.study)
    return Cleaning(study, tuple(_measured(study, item, stored) for item in usable), tuple(notes))


def _kept_revisions(study: Path, config: StudyConfig, champions: Champions) -> tuple[list[Revision], list[str]]:
    """The newest revisions, the champion's, and those with a registered champion."""
    known = revisions(study)
    newest = known[-config.retention.revisions :]
    chosen = [revision for revision in known if revision.manifest("search").is_file()]
    trained = [revision for revision in known if _has_chosen_adapter(revision)]
    standing = {revision.number for revision in (*chosen[-1:], *trained[-1:])} | _accepted_revision(study)
    notes, kept = [], []
    for revision in known:
        champion = revision.number in champions.revisions or bool(_runs(revision) & champions.runs)
        if revision in newest:
            kept.append(revision)
        elif not champions.known or champion or revision.number in standing:
            kept.append(revision)
            why = "the registered champion" if champion else "the champion of standing.json"
            reason = f"holds {why}" if champions.known else "the model registry could not be asked for the champion"
            notes.append(f"revision {revision.number} is kept: {reason}")
    return kept, notes


def _accepted_revision(study: Path) -> set[int]:
    """The revision of the champion, nothing where no final run was accepted."""
    return {int(read_json(study / STANDING_FILE)["revision"])} if (study / STANDING_FILE).is_file() else set()


def _accepted_adapter(study: Path) -> Path | None:
    path = study / STANDING_FILE
    return study / str(read_json(path)["adapter"]) if path.is_file() else None


def _has_chosen_adapter(revision: Revision) -> bool:
    pair = _chosen(revision)
    if pair is None:
        return False
    stage = f"finetune-me{pair[0]}-llm{pair[1]}"
    return revision.manifest(stage).is_file() or any(revision.folder.glob(f"manifests/{stage}-lr*.json"))


def _chosen(revision: Revision) -> tuple[int, int] | None:
    path = revision.folder / "choice.json"
    if not path.is_file():
        return None
    approval = revision.folder / "approval.json"  # a person may have put another pair in the chosen one's place
    if approval.is_file() and read_json(approval)["choice"] == file_hash(path):
        path = approval
    r_me, r_llm = read_json(path)["pair"]
    return int(r_me), int(r_llm)


def _runs(revision: Revision) -> set[str]:
    """MLflow runs of a revision's final fine-tunes, and of the champion where another took its folder."""
    records = [path for part in ("final", "standing") for path in revision.folder.glob(f"{part}/*/training.json")]
    return {str(read_json(path).get("mlflow_run_id")) for path in records}


def _left_by_the_killed(study: Path) -> Iterator[_Found]:
    """Half deleted folders, and files that were being written when their process died."""
    for folder, names, files in os.walk(study):
        here = Path(folder)
        if here == study:
            names[:] = [name for name in names if name in ("revisions", "cache") or name.startswith(DELETED_PREFIX)]
        for name in [*names, *files]:
            path = here / name
            if name.startswith(DELETED_PREFIX):
                yield _Found(path, "half deleted", "an earlier cleaning was stopped")
            elif TEMPORARY.match(name) and time.time() - _modified(path) > TEMPORARY_SECONDS:
                yield _Found(path, "temporary", "left by a process that was stopped while writing")
        names[:] = [name for name in names if not name.startswith(".")]


def _inside_kept(kept: list[Revision], config: StudyConfig, champions: Champions) -> Iterator[_Found]:
    """What kept revisions need no longer; of the newest one, only where the stage that needs it has finished."""
    newest = revisions(working_folder(config.study).resolve())[-1]
    for revision in kept:
        for found, stage in _intermediate(revision, config):
            if revision != newest or not _needed_by_newest(newest, found.path, stage):
                yield found
        if not config.retention.other_adapters and champions.known:
            yield from _other_adapters(revision, config, champions)
            yield from _stood_before(revision, champions)


def _resume_states(newest: Revision, config: StudyConfig) -> Iterator[_Found]:
    """What unfinished stages of the newest revision go on from."""
    for found, stage in _intermediate(newest, config):
        if _needed_by_newest(newest, found.path, stage):
            yield _Found(found.path, "resume state", f"asked for: {stage} starts from the beginning without it")


def _intermediate(revision: Revision, config: StudyConfig) -> Iterator[tuple[_Found, str]]:
    """Snapshots, pack states and checkpoints that the policy does not keep, with the stage that goes on from each."""
    if not config.retention.snapshots and config.search.forgetting_weight is None:  # else they are scored again
        for path in _children(revision.folder / "calibration" / "snapshots"):
            yield _Found(path, "snapshots", "the laws were fitted, or a newer revision opened"), "fit"
    if not config.retention.checkpoints:
        for path in _children(revision.folder / "calibration" / "state"):
            yield _Found(path, "pack state", "calibration finished, or a newer revision opened"), "calibrate"
        for path in sorted(revision.folder.glob("final/*/checkpoints-*")):
            why = "the final run finished, or a newer revision opened"
            yield _Found(path, "checkpoints", why), f"finetune-{path.parent.name}"


def _needed_by_newest(revision: Revision, path: Path, stage: str) -> bool:
    """Whether a stage of the newest revision may still go on from `path`."""
    manifest = revision.manifest(stage)
    if not manifest.is_file():
        return True
    if stage.startswith("finetune-"):  # checkpoints are named after the inputs of the run they belong to
        return path.name != f"checkpoints-{read_json(manifest)['inputs']}"
    return _modified(path) > manifest.stat().st_mtime  # written after the stage last finished


def _other_adapters(revision: Revision, config: StudyConfig, champions: Champions) -> Iterator[_Found]:
    """Final runs that are neither of the chosen pair nor of the uniform default, nor a champion; compared ones too."""
    chosen = _chosen(revision)
    if chosen is None:
        return
    reference = config.calibration.reference
    for folder in _children(revision.folder / "final"):
        record = folder / "training.json"
        if _pair_of(folder.name) in (chosen, reference) or not record.is_file():
            continue
        training = read_json(record)
        if folder / "adapter" == _accepted_adapter(revision.study):
            continue
        if training["role"] in ("uniform", "uniform-tuned-rate") or training.get("mlflow_run_id") in champions.runs:
            continue
        if not any(folder.glob("checkpoints-*")):
            manifests = tuple(revision.manifest(f"{stage}-{folder.name}") for stage in STAGES_OF_A_FINAL_RUN)
            yield _Found(folder, "other adapter", f"not the chosen pair ({training['role']})", manifests)


def _stood_before(revision: Revision, champions: Champions) -> Iterator[_Found]:
    """Adapters that were kept while they stood, and stand no more."""
    for folder in _children(revision.folder / "standing"):
        record = folder / "training.json"
        if folder / "adapter" == _accepted_adapter(revision.study) or not record.is_file():
            continue
        if read_json(record).get("mlflow_run_id") not in champions.runs:
            yield _Found(folder, "other adapter", "another final run was accepted in its place")


def _pair_of(name: str) -> tuple[int, int] | None:
    found = PAIR_NAME.match(name)
    return (int(found[1]), int(found[2])) if found else None


def _caches(study: Path, config: StudyConfig) -> Iterator[_Found]:
    if not config.retention.caches:
        for path in _children(study / "cache"):
            yield _Found(path, "cache", "made again when needed")


def _old_revisions(study: Path, kept: list[Revision]) -> Iterator[_Found]:
    """Revisions that are not kept, and folders of revisions that were never opened to the end."""
    known, keep = {revision.number for revision in revisions(study)}, {revision.number for revision in kept}
    for path in _children(study / "revisions"):
        if not REVISION_NAME.match(path.name) or int(path.name) > max(known) or int(path.name) in keep:
            continue
        if int(path.name) in known:
            yield _Found(path, "old revision", f"not among the newest revisions that are kept ({len(kept)} are)")
        else:
            yield _Found(path, "old revision", "was never opened to the end")


def _listed(kept: list[Revision], dropped: set[Path]) -> set[Path]:
    """Everything that manifests of kept revisions list, without those that are deleted with their outputs."""
    manifests = [
        (revision, path)
        for revision in kept
        for path in revision.folder.glob("manifests/*.json")
        if path not in dropped
    ]
    return {revision.folder / name for revision, path in manifests for name in read_json(path)["outputs"]}


def _deletable(study: Path, found: list[_Found], protected: set[Path]) -> tuple[list[_Found], list[str]]:
    """Without what is linked from elsewhere, listed by a manifest, or inside something else that is deleted."""
    usable: list[_Found] = []
    notes: list[str] = []
    for item in found:
        if not plain_below(study, item.path):
            notes.append(f"{item.path.relative_to(study)} is a symbolic link or behind one and is left alone")
        elif any(path == item.path or item.path in path.parents for path in protected):
            notes.append(f"{item.path.relative_to(study)} is kept: a manifest lists it")
        elif not any(other.path in item.path.parents or other.path == item.path for other in usable):
            usable.append(item)
    return usable, notes


def _measured(study: Path, found: _Found, stored: Mapping[str, int]) -> Item:
    # A store has what a working copy has, and the adapters of old revisions.
    name = found.path.relative_to(study).as_posix()
    there = sum(size for known, size in stored.items() if is_below(known, name))
    size = max(_size(found.path), there)
    return Item(found.path, found.kind, found.why, size, _modified(found.path), found.manifests)


def _children(folder: Path) -> list[Path]:
    """What a folder holds, hidden names aside; nothing where it is a link or not there."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _files(path: Path) -> Iterator[os.stat_result]:
    """Of a file itself, or of every file below a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        yield path.lstat()
        return
    for folder, names, files in os.walk(path):
        links = [name for name in names if (Path(folder) / name).is_symlink()]
        yield from ((Path(folder) / name).lstat() for name in [*links, *files])


def _size(path: Path) -> int:
    return sum(stat.st_size for stat in _files(path))


def _modified(path: Path) -> float:
    """When the newest file in it was written; of an empty folder, when it was made."""
    return max((stat.st_mtime for stat in _files(path)), default=path.lstat().st_mtime)
