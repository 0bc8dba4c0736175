"""Tables that a disk has damaged, as `benchmarks/fuzz.py` found them: refused with the file's name, never a crash."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mars_core.data.readers import read_rows

TURNS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "a cat"}]
TABLE = pa.table({"messages": [TURNS, TURNS]})


def spoil(data: bytes, place: int) -> bytes:
    spoilt = bytearray(data)
    spoilt[place] ^= 0xFF
    return bytes(spoilt)


def test_every_byte_of_a_parquet_file_may_be_wrong(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(TABLE, path)
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 7):
        path.write_bytes(spoil(whole, place))
        try:
            list(read_rows(path, tmp_path, "parquet"))
        except ValueError as error:
            refused += "train.parquet" in str(error)
    assert refused > 20


def test_offsets_that_lead_out_of_an_arrow_file_are_no_crash(tmp_path):
    path = tmp_path / "data-0.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}], "_split": null}')
    whole = path.read_bytes()
    offsets = whole.index(b"\x00\x00\x00\x00\x02\x00\x00\x00\x04\x00\x00\x00")
    path.write_bytes(whole[: offsets + 8] + b"\xff\xff\xff\x7f" + whole[offsets + 12 :])
    with pytest.raises(ValueError, match=r"data-0\.arrow is not a readable Parquet or Arrow file"):
        list(read_rows(tmp_path, tmp_path, "datasets"))
