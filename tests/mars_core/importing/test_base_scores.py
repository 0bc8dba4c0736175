"""Base scores of LLMs from tables and from result files of lm-evaluation-harness."""

import json

import pandas as pd
import pytest

from mars_core.importing.base_scores import read_base_scores, with_base_scores


def harness(tmp_path, name="result.json", **changed):
    results = {
        "copa": {"alias": "copa", "acc,none": 0.80, "acc_stderr,none": 0.04},
        "rte": {"acc,none": 0.60},
        "winogrande": {"acc,none": 0.70},
        "openbookqa": {"acc,none": 0.30, "acc_norm,none": 0.42},
        "mmlu": {"acc,none": 0.50},
        "sciq": {"acc,none": 0.90},
        "arc_easy": {"acc,none": 0.70},
    }
    stored = {"results": results, "model_name": "Qwen/Qwen2-0.5B", "config": {"model": "hf"}} | changed
    path = tmp_path / name
    path.write_text(json.dumps(stored))
    return path


def test_harness_results_become_means_in_points(tmp_path):
    (row,) = read_base_scores([harness(tmp_path)]).to_dict("records")
    assert row["model"] == "Qwen/Qwen2-0.5B"
    assert row["nli"] == pytest.approx(70.0)
    assert row["commonsense"] == pytest.approx(50.0)
    assert row["reasoning"] == pytest.approx(70.0)


def test_results_of_older_harnesses_are_read(tmp_path):
    old = {"copa": {"acc": 0.5}, "winogrande": {"acc": 0.6}, "sciq": {"acc": 0.7}}
    path = harness(tmp_path, results=old, model_name=None, config={"model_args": "pretrained=a/b,dtype=float32"})
    (row,) = read_base_scores([path]).to_dict("records")
    assert row == {"model": "a/b", "nli": 50.0, "commonsense": 60.0, "reasoning": pytest.approx(70.0)}


def test_scores_join_by_model(tmp_path):
    (tmp_path / "base.csv").write_text("model,nli,commonsense,reasoning\na,60,61,62\nb,70,71,72\n")
    points = pd.DataFrame({"model": ["b", "a", "b"], "score": [1.0, 2.0, 3.0]})
    joined = with_base_scores(points, read_base_scores([tmp_path / "base.csv"]))
    assert joined["nli"].tolist() == [70, 60, 70]
    assert joined["score"].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model,nli,commonsense\na,60,61\n", "lacks the columns \\['reasoning'\\]"),
        ("model,nli,commonsense,reasoning\na,0.6,0.61,0.62\n", "multiply by 100"),
        ("model,nli,commonsense,reasoning\na,60,61,162\n", "up to 100"),
        ("model,nli,commonsense,reasoning\na,60,61,62\na,60,61,62\n", "name models twice: a"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, content, message):
    (tmp_path / "base.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_base_scores([tmp_path / "base.csv"])


def test_results_without_the_tasks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none of the tasks copa, rte"):
        read_base_scores([harness(tmp_path, results={"hellaswag": {"acc,none": 0.4}})])


def test_a_model_without_scores_is_named(tmp_path):
    scores = read_base_scores([harness(tmp_path)])
    with pytest.raises(ValueError, match="no base scores of b"):
        with_base_scores(pd.DataFrame({"model": ["b"]}), scores)
    with pytest.raises(ValueError, match="needs a column 'model'"):
        with_base_scores(pd.DataFrame({"score": [1.0]}), scores)
