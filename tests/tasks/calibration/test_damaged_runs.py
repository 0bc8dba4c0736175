"""A run whose stored files were damaged before the calibration ended is trained again."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mars_core.ranks import RankPair
from tasks.calibration import stored
from tasks.storage.files import file_hash, read_json, write_json
from tasks.storage.folder import Revision
from tasks.study.plan import PlannedRun, RunSchedule

RUN = PlannedRun("abc", RankPair(2, 4), 0, RunSchedule(4, (2, 4)))


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """A run that is stored whole; reading its rows is left out, so that the hash alone can tell."""
    revision = Revision(tmp_path, 1)
    metrics, summary = stored.run_files(revision, [RUN])
    metrics.parent.mkdir(parents=True)
    pq.write_table(pa.table({"step": [2, 4]}), metrics)
    monkeypatch.setattr(stored, "read_metrics", lambda path: {"step": [2, 4]})
    write_json(summary, {"diverged_at": None, "metrics_sha256": file_hash(metrics)})
    assert stored._is_stored(revision, RUN)
    return revision


def test_a_bit_that_flipped_in_the_metrics_is_found(whole, capsys):
    metrics = stored.metrics_path(whole, RUN.run_id)
    data = bytearray(metrics.read_bytes())
    data[10] ^= 1
    metrics.write_bytes(data)
    assert not stored._is_stored(whole, RUN)
    assert metrics.name in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"diverged_at": ', "{}"])
def test_a_summary_that_is_none_is_no_end_of_the_road(whole, text, capsys):
    stored.summary_path(whole, RUN.run_id).write_text(text)
    assert not stored._is_stored(whole, RUN)
    assert "trained again" in capsys.readouterr().err


def test_a_summary_of_an_earlier_version_has_no_hash(whole):
    path = stored.summary_path(whole, RUN.run_id)
    write_json(path, {"diverged_at": read_json(path)["diverged_at"]})
    assert stored._is_stored(whole, RUN)
