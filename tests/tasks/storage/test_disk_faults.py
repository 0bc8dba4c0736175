"""What a disk may do while something is written: be full, refuse, or forget what it was not made to keep."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image
from safetensors.torch import save_file

from mars_core.data.records import PathImage
from tasks.inputs.image_cache import fingerprint_all
from tasks.storage import files
from tasks.storage.files import read_json, replacing, replacing_folder, write_json
from tasks.storage.folder import Revision, finish, is_finished
from tasks.storage.location import CACHE_VARIABLE
from tasks.tracking import live_curves
from tasks.tracking import runs as tracking
from tasks.tracking.live_curves import LiveCurves


@contextlib.contextmanager
def full_disk(room: int = 4096) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes: the system's own "file too large", as good as ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_large_json(path: Path) -> None:
    write_json(path, list(range(10_000)))


def write_large_table(path: Path) -> None:
    with replacing(path) as temporary:
        pq.write_table(pa.table({"x": torch.randn(10_000).numpy()}), temporary)


def write_large_tensors(path: Path) -> None:
    with replacing(path) as temporary:
        save_file({"x": torch.randn(10_000)}, str(temporary))


def write_adapter(path: Path) -> None:
    with replacing_folder(path) as temporary:
        (temporary / "a").write_text("new")
        save_file({"x": torch.randn(10_000)}, str(temporary / "b.safetensors"))


@pytest.mark.parametrize("write", [write_large_json, write_large_table, write_large_tensors])
def test_a_full_disk_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("as it was")
    with full_disk(), pytest.raises(Exception, match=r"(?i)too large|size limit|os error 27|Errno 27"):
        write(path)
    assert path.read_text() == "as it was"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    write(path)  # there is room again
    assert path.stat().st_size > 4096


def test_a_full_disk_leaves_no_folder_half_written(tmp_path):
    with replacing_folder(tmp_path / "adapter") as temporary:
        (temporary / "a").write_text("as it was")
    with full_disk(), pytest.raises(Exception, match=r"(?i)too large|os error 27"):
        write_adapter(tmp_path / "adapter")
    assert [one.name for one in tmp_path.rglob("*")] == ["adapter", "a"]
    assert (tmp_path / "adapter" / "a").read_text() == "as it was"


def test_a_stage_whose_manifest_found_no_room_has_not_finished(tmp_path):
    revision = Revision(tmp_path, 1)
    write_json(revision.path("out.json"), 1)
    with full_disk(16), pytest.raises(OSError, match="too large"):
        finish(revision, "fit", "inputs", [revision.path("out.json")], {"seconds": 1.0})
    assert not is_finished(revision, "fit", "inputs")
    finish(revision, "fit", "inputs", [revision.path("out.json")], {"seconds": 1.0})
    assert is_finished(revision, "fit", "inputs")


def test_a_full_disk_under_the_cache_of_images_costs_only_time(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "a.png")
    image = PathImage("a.png", tmp_path)
    with full_disk(16):
        found = fingerprint_all([image])
    assert found[image].size == (8, 8)
    assert fingerprint_all([image]) == found


def test_what_mlflow_had_no_room_for_is_sent_later_and_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(live_curves, "show_message", lambda _: None)  # what pytest keeps of it has no room either
    with tracking.study_run(tmp_path / "study", 1, {}) as run:
        curves = LiveCurves(run)
        curves.log({"step": 1, "loss": 1.0})
        with full_disk(16):
            curves.log({"step": 2, "loss": 0.5})
        curves.log({"step": 3, "loss": 0.25})
        curves.end()
        history = mlflow.MlflowClient().get_metric_history(run, "loss")
    assert sorted((point.step, point.value) for point in history) == [(1, 1.0), (2, 0.5), (3, 0.25)]


def test_a_folder_that_can_only_be_read_is_said_and_left_as_it_is(tmp_path, monkeypatch):
    """Whoever runs this may be root, who can write everywhere: the system's answer is given for it."""
    write_json(tmp_path / "a.json", 1)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    with pytest.raises(OSError, match="Read-only file system"):
        write_json(tmp_path / "a.json", 2)
    assert read_json(tmp_path / "a.json") == 1


def test_a_quota_that_ends_with_the_last_byte_is_noticed(tmp_path, monkeypatch):
    """Some file systems say so only when the data are to reach the disk."""
    write_json(tmp_path / "a.json", 1)

    def refuse(_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="quota"):
        write_json(tmp_path / "a.json", 2)
    assert read_json(tmp_path / "a.json") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def order(monkeypatch) -> list[str]:
    """Names of what is made to reach the disk and of what is renamed, in their order."""
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        done.append(f"disk {name.lstrip('.').partition('.')[0]}")
        fsync(handle)

    def noted_rename(source, target, **how) -> None:
        done.append(f"rename {Path(target).name.partition('.')[0]}")
        rename(source, target, **how)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_rename)
    return done


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are looked up in /proc")
def test_what_is_in_a_file_reaches_the_disk_before_its_name_does(tmp_path, order):
    """A power cut must not leave a manifest whose outputs were never written, nor an empty file under a good name."""
    folder = tmp_path / "folder"
    write_json(folder / "laws.json", 1)
    assert order == ["disk laws", "rename laws", "disk folder"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files are looked up in /proc")
def test_what_is_in_a_folder_reaches_the_disk_before_its_name_does(tmp_path, order):
    with replacing_folder(tmp_path / "parent" / "adapter") as temporary:
        (temporary / "weights").write_text("x")
    assert order == ["disk weights", "disk adapter", "rename adapter", "disk parent"]


def test_a_table_that_was_cut_short_is_no_table(tmp_path):
    from tasks.calibration.stored import read_metrics

    path = tmp_path / "a.parquet"
    pd.DataFrame({"x": range(1000)}).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"(?i)parquet"):
        read_metrics(path)


def test_mlflows_own_errors_are_those_that_are_waited_out(tmp_path):
    """`LiveCurves` and the packs go on without MLflow where it raises one of these."""
    from tasks.calibration.train import PASSING_TRACKING_FAULTS

    assert issubclass(MlflowException, PASSING_TRACKING_FAULTS)
    assert issubclass(OSError, PASSING_TRACKING_FAULTS)
    assert not issubclass(ValueError, PASSING_TRACKING_FAULTS)
