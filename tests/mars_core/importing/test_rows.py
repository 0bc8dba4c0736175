"""A table of runs is read in one pass: every bad row with its reason, sizes from steps, what is assumed is said."""

import numpy as np
import pandas as pd
import pytest

from mars_core.importing import BadRows, Sizes, read_runs, rename_columns
from mars_core.importing.rows import METRICS
from mars_core.importing.stored import to_imported_table
from mars_core.metrics.schema import SCHEMA


def table(**changes):
    columns = {"r_me": [8, 8, 16, 16], "r_llm": [4, 4, 4, 4], "step": [8, 16, 8, 16], "loss": [2.0, 1.5, 1.9, 1.4]}
    return pd.DataFrame(columns | changes)


def problems_of(raw):
    with pytest.raises(BadRows) as refused:
        read_runs(raw, Sizes(8))
    return {problem.where: problem.reason for problem in refused.value.problems}


def test_a_missing_column_is_told_with_the_columns_that_the_caller_has():
    theirs = table().rename(columns={"r_me": "vision", "loss": "eval"})
    ours = rename_columns(theirs, {})
    with pytest.raises(ValueError, match=r"lacks r_me .*, loss .*it has \['vision', 'r_llm', 'step', 'eval'\]"):
        read_runs(ours, Sizes(8), given=list(theirs.columns))
    with pytest.raises(ValueError, match=r"--batch-size; the table has \['r_me', 'r_llm', 'step', 'loss', 'other'\]"):
        read_runs(table(), Sizes(), given=[*table().columns, "other"])


def test_every_bad_row_is_named_with_its_reason_in_one_pass():
    raw = table(
        r_me=["8", "eight", "16.5", "16"],
        loss=["nan", "1.5", "1.9", "-1"],
        step=["8", "16", "8", ""],
    )
    found = problems_of(raw)
    assert list(found) == ["row 1", "row 2", "row 3", "row 4"]
    assert found["row 1"] == "loss is empty or NaN"
    assert found["row 2"] == "r_me is 'eight', which is no number"
    assert found["row 3"] == "r_me is '16.5', expected a whole number of 0 or more"
    with pytest.raises(BadRows, match=r"5 bad rows:\n  row 1: loss is empty"):
        read_runs(raw, Sizes(8))


def test_bad_rows_are_left_out_on_request_and_said():
    runs = read_runs(table(loss=[2.0, np.inf, 1.9, 1.4]), Sizes(8), skip_bad=True)
    assert len(runs.metrics) == 3
    assert runs.notes == ("left out: row 2: loss is inf, expected a finite number above 0",)


def test_steps_become_sizes_that_stop_at_the_dataset():
    runs = read_runs(table(), Sizes(batch_size=8, dataset_size=100))
    assert runs.metrics["unique_samples"].tolist() == [64, 100, 64, 100]
    assert runs.metrics["samples_seen"].tolist() == [64, 128, 64, 128]


def test_batch_size_may_differ_from_row_to_row():
    runs = read_runs(table(batch_size=[8, 8, 4, 4]), Sizes())
    assert runs.metrics["unique_samples"].tolist() == [64, 128, 32, 64]


def test_sizes_without_steps_count_time_in_samples_and_say_so():
    runs = read_runs(table().rename(columns={"step": "D"}), Sizes())
    assert (runs.metrics["step"] == runs.metrics["unique_samples"]).all()
    assert "counted in samples" in runs.notes[0]


def test_seeds_make_runs_of_their_own():
    raw = pd.concat([table(seed=0), table(seed=1)])
    runs = read_runs(raw, Sizes(8))
    assert runs.metrics["run_id"].nunique() == 4
    assert runs.metrics["seed"].tolist() == [0] * 4 + [1] * 4


def test_a_repeated_run_must_be_told_apart():
    assert "run_id or seed column" in problems_of(pd.concat([table(), table().head(1)]))["row 5"]


def test_a_run_has_one_pair():
    assert "run a changes its (r_me, r_llm, seed)" in problems_of(table(run_id=["a", "a", "a", "b"]))["row 3"]


def test_rank_0_is_kept_and_the_loss_before_training_left_out():
    runs = read_runs(table(r_me=[0, 0, 16, 16], step=[8, 16, 0, 16]), Sizes(8))
    assert runs.metrics[["r_me", "step"]].to_numpy().tolist() == [[0, 8], [0, 16], [16, 16]]
    assert any("rank of 0 are compared by what was measured" in note for note in runs.notes)
    assert any("before the first step" in note for note in runs.notes)


@pytest.mark.parametrize(
    ("raw", "sizes", "message"),
    [
        (table().drop(columns="loss"), Sizes(8), "lacks loss"),
        (table(), Sizes(), "--batch-size"),
        (table(), Sizes(0), "--batch-size is 0"),
        (table().drop(columns="step"), Sizes(8), "--size"),
        (table(r_me=0, r_llm=0, seed=[0, 0, 1, 1]), Sizes(8), "no usable row"),
        (table().head(0), Sizes(8), "the table is empty"),
    ],
)
def test_a_table_that_cannot_be_used_says_what_to_do(raw, sizes, message):
    with pytest.raises(ValueError, match=message):
        read_runs(raw, sizes)


def test_columns_are_renamed_and_absent_names_refused():
    raw = table().rename(columns={"r_me": "vision"}).assign(r_me="not a rank", other=1)
    assert rename_columns(raw, {"r_me": "vision"})["r_me"].tolist() == [8, 8, 16, 16]
    assert "other" not in rename_columns(raw, {"r_me": "vision"})
    with pytest.raises(ValueError, match="no column 'lora_r' for r_llm"):
        rename_columns(raw, {"r_llm": "lora_r"})


def test_stored_metrics_have_the_names_and_types_of_the_contract():
    stored = to_imported_table(read_runs(table(), Sizes(8)).metrics)
    assert stored.schema.names == ["schema_version", *METRICS]
    assert all(stored.schema.field(name).equals(SCHEMA.field(name)) for name in stored.schema.names)
    assert all(SCHEMA.field(field.name).equals(field) for field in stored.schema)
    assert np.allclose(np.log(stored["val_perplexity"].to_numpy()), stored["val_loss"].to_numpy())


def test_learning_rates_are_kept_where_every_row_has_one():
    known = read_runs(table(lr=["1e-3", "0", "1e-3", "0"]), Sizes(8))
    assert known.metrics["lr"].tolist() == [1e-3, 0.0, 1e-3, 0.0]
    assert to_imported_table(known.metrics).schema.field("lr").equals(SCHEMA.field("lr"))
    some = read_runs(table(lr=["1e-3", "", "1e-3", "0"]), Sizes(8))
    assert "lr" not in some.metrics.columns
    assert some.notes == ("1 rows have no learning rate: the learning rates are not used",)
    assert problems_of(table(lr=["-1", "0", "0", "0"]))["row 1"].startswith("lr is '-1', expected a finite number of 0")


def test_runs_at_several_rates_are_told_apart_by_their_peak():
    runs = read_runs(pd.concat([table(peak_lr=1e-4), table(peak_lr="2e-4")]), Sizes(8))
    assert runs.metrics["run_id"].nunique() == 4
    assert set(runs.metrics["peak_lr_me"]) == set(runs.metrics["peak_lr_llm"]) == {1e-4, 2e-4}


def test_rates_that_are_half_known_are_not_used_and_said():
    runs = read_runs(table(peak_lr=[1e-4, None, 1e-4, 1e-4]), Sizes(8))
    assert "peak_lr_me" not in runs.metrics
    assert "1 rows have no peak learning rate" in runs.notes[-1]
    assert "peak_lr_me stands alone" in read_runs(table(peak_lr_me=1e-4), Sizes(8)).notes[-1]
    assert "peak_lr is -1" in str(problems_of(table(peak_lr=[-1.0, 1.0, 1.0, 1.0])))
