"""The studies that ship, on data laid out as the published ones are."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from tasks.inputs.data import load_data
from tasks.settings.study import read_study


def test_the_scienceqa_study_trains_on_trainval_and_scores_500_of_the_test_split(tmp_path):
    """Section 3.1: 16k training samples (the official train and val, 16,967) and 500 test samples; here a tenth."""
    sizes = {"train": 1273, "val": 424, "test": 600}
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 0, "subject": "natural science"}
    folder, output = tmp_path / "scienceqa", tmp_path / "study.yaml"
    folder.mkdir()
    rows = {split: [problem | {"question": f"{split} {row}?"} for row in range(size)] for split, size in sizes.items()}
    for split, table in rows.items():  # as on the Hub, where the validation split has its long name
        name = "validation" if split == "val" else split
        pq.write_table(pa.Table.from_pylist(table), folder / f"{name}-00000-of-00001-1c06a67d80bbbd1d.parquet")
    arguments = ["init", "paper-scienceqa", "--model", "some/model", "--data", str(folder), "--test", str(folder)]
    result = CliRunner().invoke(app, [*arguments, "--study", str(tmp_path / "runs"), "-o", str(output)])
    assert result.exit_code == 0, result.output
    splits = load_data(read_study(output).data).splits
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1273 + 424 - 500, 500, 500)
    assert all(sample.turns[0].text.startswith("test ") for sample in splits.test)


@pytest.mark.parametrize("name", ["paper-llava", "paper-scienceqa"])
def test_the_papers_studies_keep_a_picture_of_llava_onevision(tmp_path, name):
    """One of 640 x 480 is 2929 tokens of it."""
    (tmp_path / "data.json").write_text("[]")
    arguments = ["init", name, "--model", "some/model", "--data", str(tmp_path / "data.json")]
    assert CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "study.yaml")]).exit_code == 0
    assert read_study(tmp_path / "study.yaml").recipe.max_tokens == 4096
