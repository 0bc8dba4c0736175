from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mars_core.metrics.schema import PEAKS, SCHEMA, SCHEMA_VERSION, from_table, to_table, validate


def checkpoint_rows(n: int = 3) -> pd.DataFrame:
    """A run's rows at steps 1 .. n, in whatever dtypes pandas picks, columns in another order than the schema's."""
    rows = [
        {
            "val_loss": 3.0 / step,
            "val_perplexity": math.exp(3.0 / step),
            "val_accuracy": 0.25,
            "objective": "token_error",
            "val_objective": 0.5 / step,
            "train_loss": 3.5 / step,
            "lr": 1e-4,
            "peak_lr_me": 3e-4,
            "peak_lr_projector": 2e-4,
            "peak_lr_llm": 2e-4,
            "clipped_share": 0.5,
            "grad_norm_me": 0.5,
            "grad_norm_llm": 0.0,
            "wall_seconds": 0.1 * step,
            "peak_memory_bytes": 1 << 33,
            "schema_version": SCHEMA_VERSION,
            "study_id": "études",
            "revision": 1,
            "run_id": "a",
            "pack_id": "p",
            "r_me": 8,
            "r_llm": 16,
            "seed": 1 << 40,
            "data_seed": 0,
            "step": step,
            "samples_seen": 8 * step,
            "unique_samples": min(8 * step, 20),
            "device": "cpu",
            "recipe_hash": "r",
            "data_hash": "d",
            "model_id": "m",
            "code_version": "0",
        }
        for step in range(1, n + 1)
    ]
    return pd.DataFrame(rows)


def test_the_columns_are_those_of_the_contract():
    assert sorted(SCHEMA.names) == sorted(checkpoint_rows().columns)
    assert [field.name for field in SCHEMA if field.nullable] == [
        "val_objective",
        *PEAKS,
        "clipped_share",
    ]


def test_rows_come_back_from_parquet_as_they_went(tmp_path):
    rows = checkpoint_rows()
    pq.write_table(to_table(rows), tmp_path / "m.parquet")
    back = from_table(pq.read_table(tmp_path / "m.parquet"))
    pd.testing.assert_frame_equal(back, rows[SCHEMA.names], check_dtype=False)
    assert pq.read_schema(tmp_path / "m.parquet").remove_metadata().equals(SCHEMA)


def test_pandas_alone_reads_the_file(tmp_path):
    pq.write_table(to_table(checkpoint_rows()), tmp_path / "m.parquet")
    assert pd.read_parquet(tmp_path / "m.parquet")["val_loss"].tolist() == [3.0, 1.5, 1.0]


def test_a_run_without_checkpoints_is_an_empty_table(tmp_path):
    """So it is for a run that diverges before its first checkpoint."""
    pq.write_table(to_table(pd.DataFrame([], columns=SCHEMA.names)), tmp_path / "m.parquet")
    back = from_table(pq.read_table(tmp_path / "m.parquet"))
    assert len(back) == 0
    assert list(back.columns) == SCHEMA.names


def test_columns_beyond_the_contract_are_no_fault():
    rows = checkpoint_rows().assign(note="x")
    validate(rows)
    assert to_table(rows).column_names == SCHEMA.names


def test_rows_are_not_changed():
    rows = checkpoint_rows()
    before = rows.copy(deep=True)
    to_table(rows)
    pd.testing.assert_frame_equal(rows, before)


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_missing_column_is_named(name):
    with pytest.raises(ValueError, match=rf"lack the columns \['{name}'\]"):
        validate(checkpoint_rows().drop(columns=name))
    with pytest.raises(ValueError, match=rf"lack the columns \['{name}'\]"):
        from_table(pa.Table.from_pandas(checkpoint_rows().drop(columns=name)))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("step", 0, "a step below 1"),
        ("step", 1, r"a \(run_id, step\) that occurs twice"),
        ("r_me", -1, "a rank below 0"),
        ("unique_samples", 17, "more unique samples than samples seen"),
        ("val_loss", -0.1, "a val_loss that is not 0 or more"),
        ("val_loss", math.inf, "a val_loss that is not 0 or more"),
        ("val_loss", 1.4, r"a val_perplexity other than exp\(val_loss\)"),
        ("val_perplexity", 0.0, r"a val_perplexity other than exp\(val_loss\)"),
        ("val_perplexity", -4.0, r"a val_perplexity other than exp\(val_loss\)"),
        ("val_perplexity", math.inf, r"a val_perplexity other than exp\(val_loss\)"),
        ("val_loss", math.nan, "a missing value"),
        ("lr", math.nan, "a missing value"),
        ("device", None, "a missing value"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_row(column, value, message):
    rows = checkpoint_rows()
    rows[column] = rows[column].astype(object if value is None else rows[column].dtype)
    rows.loc[1, column] = value
    step = value if column == "step" else 2
    pattern = rf"^1 rows of the checkpoint metrics have {message}.*, first: \[\{{'run_id': 'a', 'step': {step}\}}\]$"
    for check in (validate, to_table):
        with pytest.raises(ValueError, match=pattern):
            check(rows)


def test_a_pair_without_adapters_is_refused():
    with pytest.raises(ValueError, match=r"3 rows .*both ranks 0"):
        validate(checkpoint_rows().assign(r_me=0, r_llm=0))
    validate(checkpoint_rows().assign(r_me=0))


@pytest.mark.parametrize(("column", "value"), [("step", "second"), ("r_me", 2.5), ("run_id", 7), ("val_loss", "low")])
def test_a_value_of_another_type_is_refused_with_its_column(column, value):
    rows = checkpoint_rows().assign(**{column: value})
    for check in (validate, to_table):
        with pytest.raises(ValueError, match=rf"values of the wrong type: .*column {column}"):
            check(rows)


def test_another_schema_version_is_refused():
    with pytest.raises(ValueError, match=r"schema version \[3, 4\], this code reads 3: calibrate again"):
        validate(checkpoint_rows(2).assign(schema_version=[3, 4]))


@pytest.mark.parametrize("column", PEAKS)
def test_a_peak_learning_rate_is_above_0_or_not_known(column):
    validate(checkpoint_rows().assign(**{column: np.nan}))
    for bad in (0.0, -1e-4, np.inf):
        with pytest.raises(ValueError, match="a peak learning rate that is not above 0"):
            validate(checkpoint_rows().assign(**{column: bad}))


def test_a_share_of_clipped_steps_is_a_share():
    validate(checkpoint_rows().assign(clipped_share=np.nan))
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match="a clipped_share that is not between 0 and 1"):
            validate(checkpoint_rows().assign(clipped_share=bad))


def test_a_table_of_version_2_is_read_as_one_whose_rates_are_not_known(tmp_path):
    added = [*PEAKS, "clipped_share"]
    old = checkpoint_rows().assign(schema_version=2)[[name for name in SCHEMA.names if name not in added]]
    fields = [field for field in SCHEMA if field.name not in added]
    pq.write_table(pa.Table.from_pandas(old, schema=pa.schema(fields), preserve_index=False), tmp_path / "old.parquet")
    rows = from_table(pq.read_table(tmp_path / "old.parquet"))
    assert set(rows["schema_version"]) == {SCHEMA_VERSION}
    assert rows[added].isna().all(axis=None)
    kept = old.drop(columns="schema_version")
    pd.testing.assert_frame_equal(rows[kept.columns], kept, check_dtype=False)
    pd.testing.assert_frame_equal(from_table(to_table(rows)), rows, check_dtype=False)


def test_a_table_of_version_1_is_read_as_one_of_perplexity(tmp_path):
    """As the first version wrote it: without the objective's columns. It can be stored again as what it now is."""
    added = ["objective", "val_objective", *PEAKS, "clipped_share"]
    old = checkpoint_rows().assign(schema_version=1)[[name for name in SCHEMA.names if name not in added]]
    fields = [field for field in SCHEMA if field.name not in added]
    pq.write_table(pa.Table.from_pandas(old, schema=pa.schema(fields), preserve_index=False), tmp_path / "old.parquet")
    rows = from_table(pq.read_table(tmp_path / "old.parquet"))
    assert (set(rows["schema_version"]), set(rows["objective"])) == ({SCHEMA_VERSION}, {"perplexity"})
    assert rows["val_objective"].isna().all()
    kept = old.drop(columns="schema_version")
    pd.testing.assert_frame_equal(rows[kept.columns], kept, check_dtype=False)
    pd.testing.assert_frame_equal(from_table(to_table(rows)), rows, check_dtype=False)


def test_an_objective_without_a_value_is_none_and_perplexity_has_none_of_its_own():
    without = checkpoint_rows().assign(val_objective=np.nan)
    assert from_table(to_table(without))["val_objective"].isna().all()
    with pytest.raises(ValueError, match="a val_objective below 0"):
        validate(checkpoint_rows().assign(val_objective=-0.1))
    with pytest.raises(ValueError, match="though the objective is perplexity"):
        validate(checkpoint_rows().assign(objective="perplexity"))


def test_the_same_step_of_two_runs_is_no_repetition():
    both = pd.concat([checkpoint_rows(), checkpoint_rows().assign(run_id="b")], ignore_index=True)
    validate(both)
    with pytest.raises(ValueError, match="occurs twice"):
        validate(pd.concat([both, checkpoint_rows(1)], ignore_index=True))


def test_perplexity_is_the_exponential_of_the_loss_up_to_rounding():
    """A float32 computation of exp is good enough; another base or a rounded figure is not."""
    rows = checkpoint_rows()
    validate(rows.assign(val_perplexity=np.exp(rows["val_loss"].astype(np.float32)).astype(float)))
    with pytest.raises(ValueError, match="val_perplexity"):
        validate(rows.assign(val_perplexity=rows["val_perplexity"].round(2)))
    with pytest.raises(ValueError, match="val_perplexity"):
        validate(rows.assign(val_perplexity=2.0 ** rows["val_loss"]))
