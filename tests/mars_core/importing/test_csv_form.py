"""CSV files of other countries and exports: the numbers that they mean, whatever signs they use."""

from __future__ import annotations

import pandas as pd
import pytest

from mars_core.importing.csv_form import read_numbers, read_texts
from mars_core.importing.rows import Sizes, read_runs

TABLE = pd.DataFrame(
    {"r_me": [8, 8, 16, 16], "r_llm": [8, 8, 8, 8], "step": [8, 16, 8, 16], "loss": [2.125, 1.5, 1.75, 0.00012]}
)


@pytest.mark.parametrize("sep", [",", ";", "\t"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_the_numbers_are_the_same_whatever_separates_them(tmp_path, sep, decimal):
    """Written by pandas, which quotes a decimal comma between commas."""
    path = tmp_path / "runs.csv"
    TABLE.to_csv(path, sep=sep, decimal=decimal, index=False)
    if sep == decimal:
        assert read_texts(path)["loss"].tolist()[0] == "2,125"  # a comma between commas means nothing for sure
        return
    pd.testing.assert_frame_equal(read_numbers(path), TABLE)
    assert read_texts(path)["loss"].astype(float).tolist() == TABLE["loss"].tolist()
    runs = read_runs(read_texts(path), Sizes(8))
    assert sorted(runs.metrics["val_loss"]) == sorted(TABLE["loss"])


def test_text_with_commas_stays_text(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("run_id;loss\n1,5;2,5\na, b;3,5\n")
    assert read_texts(path)["run_id"].tolist() == ["1.5", "a, b"]
    assert read_numbers(path)["loss"].tolist() == [2.5, 3.5]


def test_rows_without_a_loss_are_one_note_and_keep_their_numbers(tmp_path):
    """As W&B exports a run's history: the loss stands in the rows of evaluations alone."""
    path = tmp_path / "history.csv"
    path.write_text(
        "r_me,r_llm,step,loss\n8,8,1,\n8,8,8,2.0\n,,,\n8,8,9,\n8,8,16,1.5\n16,8,8,1.9\n16,8,12,\n16,8,16,minus\n"
    )
    with pytest.raises(ValueError, match=r"1 bad rows:\n  row 8: loss is 'minus', which is no number"):
        read_runs(read_texts(path), Sizes(8))
    runs = read_runs(read_texts(path), Sizes(8), skip_bad=True)
    assert len(runs.metrics) == 3
    assert runs.notes[0] == "4 rows without a loss are left out, as exports have them between evaluations"
