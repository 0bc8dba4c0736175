"""`mars clean` on a real finished study: dry by default, and what is cleaned is still done."""

from __future__ import annotations

import json
import os
from pathlib import Path

from typer.testing import CliRunner

from flows.cli.main import app
from flows.study import study_flow
from tasks.storage.folder import Revision


def clean(*arguments):
    return CliRunner().invoke(app, ["clean", *(str(argument) for argument in arguments)])


def modified(config) -> dict[str, int]:
    """Modification time of every output of every stage."""
    folder = Revision(Path(config.study), 1).folder
    manifests = [json.loads(path.read_text()) for path in folder.glob("manifests/*.json")]
    return {name: (folder / name).stat().st_mtime_ns for manifest in manifests for name in manifest["outputs"]}


def leftovers(study: str) -> list[Path]:
    """Files as an engine that was killed and run again would leave them: older than the stages' manifests."""
    revision = Revision(Path(study), 1)
    names = [("calibration", "snapshots", "abc", "8.safetensors"), ("calibration", "state", "pack", "state.json")]
    paths = [revision.path(*name) for name in names]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 1_000_000)
        os.utime(path, (1e9, 1e9))
    return paths


def test_dry_by_default_then_deleted_and_the_study_is_still_done(copied, tmp_path):
    paths, before = leftovers(copied.study), modified(copied)
    dry = clean(copied.study, "--json")
    assert dry.exit_code == 0, dry.output
    found = json.loads(dry.stdout)
    assert {item["kind"] for item in found["items"]} == {"snapshots", "pack state"}
    assert (found["bytes"], found["deleted"]) == (2_000_000, False)
    assert all(path.is_file() for path in paths)
    shown = clean(tmp_path / "study.yaml")  # the study's file names the folder as well
    assert "nothing is deleted without --yes" in shown.stdout
    assert "2.00 MB" in shown.stdout
    done = clean(copied.study, "--yes", "--json")
    assert json.loads(done.stdout)["deleted"] is True
    assert not any(path.exists() for path in paths)
    assert "nothing to delete" in clean(copied.study).stdout
    study_flow(copied)
    assert modified(copied) == before


def test_the_strictest_policy_leaves_a_study_that_is_done(copied):
    from tasks.settings.final import RetentionConfig
    from tasks.settings.study import write_study

    before = modified(copied)
    strict = RetentionConfig(revisions=1, snapshots=False, checkpoints=False, other_adapters=False, caches=False)
    write_study(copied.model_copy(update={"retention": strict}), Path(copied.study) / "study.yaml")
    result = clean(copied.study, "--yes", "--include-resume", "--json")
    assert result.exit_code == 0, result.output
    assert {item["kind"] for item in json.loads(result.stdout)["items"]} == {"cache"}
    study_flow(copied)
    assert modified(copied) == before


def test_a_folder_that_is_no_study_is_refused_and_untouched(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "study.yaml").write_text("study: photos\nmodel: m\ndata: {train: t.json}\n")
    for target in (tmp_path / "photos", tmp_path / "study.yaml"):
        result = clean(target, "--yes")
        assert result.exit_code == 2
    assert "is not a study folder" in " ".join(result.output.split())
    assert (tmp_path / "photos" / "a.jpg").is_file()
