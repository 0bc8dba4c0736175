"""Generated answers of a finished study, their resumption, and a study whose objective is a metric."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from typer.testing import CliRunner

import tasks.final.answers
from flows.calibrate import calibrate_flow
from flows.cli.main import app
from flows.stages import fit_flow, search_flow
from mars_core.evaluation.choices import given_letter
from mars_core.evaluation.generation.normalise import normalised
from mars_core.metrics.schema import SCHEMA
from mars_core.ranks import RankPair
from tasks.final.answers import answers_path, asked_questions, generate_answers
from tasks.final.arm import Arm
from tasks.final.pair import finetune_arm
from tasks.final.record import read_final
from tasks.inputs.opened import Inputs
from tasks.settings.study import StudyConfig
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.plan import plan_calibration
from tasks.tracking.runs import study_run, tracking_uri


def revision_of(config: StudyConfig) -> Revision:
    return Revision(Path(config.study), 1)


def test_every_short_answer_is_generated_marked_and_counted(finished):
    revision = revision_of(finished)
    scores = json.loads(revision.path("evaluation.json").read_text())
    for role in ("base", "chosen"):
        rows, found = pd.read_parquet(answers_path(revision, role)), scores[role]["generated"]
        for row in rows.itertuples():
            if row.method == "letter":
                assert row.correct == (given_letter(row.prediction, "ABCD") == row.answer)
            else:
                assert row.correct == (normalised(row.prediction) == normalised(row.answer))
        assert (found["overall"]["correct"], found["overall"]["n"]) == (int(rows.correct.sum()), len(rows))
        assert sum(score["n"] for score in found["by_task"].values()) == len(rows)
        assert found["multiple_choice"]["n"] == int((rows.method == "letter").sum()) > 0
        assert len(rows) + found["too_long"] == scores[role]["overall"]["n_answers"]
        assert found["scienceqa"] == {}
    assert not list(revision.path("evaluation").glob("parts-*"))


def test_accuracies_and_answers_are_in_mlflow_and_in_the_report(finished):
    revision = revision_of(finished)
    scores = json.loads(revision.path("evaluation.json").read_text())
    client = mlflow.MlflowClient(tracking_uri(Path(finished.study)))
    (experiment,) = [e for e in client.search_experiments() if e.name.startswith("mars/")]
    finals = client.search_runs([experiment.experiment_id], "tags.`mars.role` = 'chosen'")
    accuracy = scores["chosen"]["generated"]["overall"]["accuracy"]
    assert finals[0].data.metrics["test_generated_overall"] == pytest.approx(accuracy)
    assert "test_generated_by_task/choice" in finals[0].data.metrics
    files = [item.path for item in client.list_artifacts(finals[0].info.run_id, "answers")]
    assert files == ["answers/answers-chosen.parquet"]
    page = revision.path("report.html").read_text()
    assert "Generated answers" in page
    assert 'id="correlation"' in page


def test_an_interrupted_generation_goes_on_where_it_was(copied, monkeypatch):
    """The second part fails; the first is not generated again, and the rows are those of a whole run."""
    config, revision = copied, revision_of(copied)
    asked, base = asked_questions(Inputs(config)), Inputs(config).base_model
    whole = pd.read_parquet(answers_path(revision, "base"))
    monkeypatch.setattr(tasks.final.answers, "PART_ANSWERS", 5)
    calls = []
    generate = tasks.final.answers.greedy_tokens

    def fail_after_a_part(model, prompts, decoding):
        calls.append(len(prompts))
        if sum(calls) > 5:
            raise KeyboardInterrupt
        return generate(model, prompts, decoding)

    monkeypatch.setattr(tasks.final.answers, "greedy_tokens", fail_after_a_part)
    with pytest.raises(KeyboardInterrupt):
        generate_answers(Study(config, revision), base, base.model, "base", None, asked)
    again = []
    monkeypatch.setattr(tasks.final.answers, "greedy_tokens", lambda *a: again.append(len(a[1])) or generate(*a))
    generate_answers(Study(config, revision), base, base.model, "base", None, asked)
    assert sum(again) == len(asked.questions) - 5
    pd.testing.assert_frame_equal(pd.read_parquet(answers_path(revision, "base")), whole)


def test_correlate_reads_the_calibration(finished):
    result = CliRunner().invoke(app, ["correlate", finished.study, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rows = pd.concat(pd.read_parquet(path) for path in revision_of(finished).path("calibration").glob("*.parquet"))
    last = rows[rows.step == rows.step.max()]
    assert (found["n"], len(found["points"])) == (4, 4)
    assert sorted(point["accuracy"] for point in found["points"]) == pytest.approx(sorted(last.val_accuracy))
    assert any("only 4 runs" in doubt for doubt in found["doubts"])


def test_correlate_wants_a_study_or_a_table():
    assert CliRunner().invoke(app, ["correlate"]).exit_code == 2


@pytest.mark.slow
def test_a_study_may_minimise_a_metric(copied):
    """From calibration to the final run; the calibration of the same folder for perplexity is left as it was."""
    config = copied.model_copy(update={"search": copied.search.model_copy(update={"objective": "token_error"})})
    before = {run.run_id for run in plan_calibration(Inputs(copied)).runs}
    plan = plan_calibration(Inputs(config))
    assert before.isdisjoint(run.run_id for run in plan.runs)
    calibrate_flow(config)
    revision = revision_of(config)
    for run in plan.runs:
        rows = pd.read_parquet(revision.path("calibration", f"{run.run_id}.parquet"))
        assert list(rows.columns) == SCHEMA.names
        assert set(rows.objective) == {"token_error"}
        assert rows.val_objective.between(0, 1).all()
    fit_flow(config)
    laws = json.loads(revision.path("laws.json").read_text())
    assert laws["objective"] == "token_error"
    search_flow(config)
    choice = json.loads(revision.path("choice.json").read_text())
    assert choice["objective"] == "token_error"
    assert all(candidate["perplexity"] is None for candidate in choice["candidates"])
    arm = Arm(RankPair(*choice["pair"]))
    with study_run(Path(config.study), 1, {}) as parent:
        finetune_arm(Study(config, revision), arm, "chosen", parent)
    final = read_final(revision, arm)
    values = {entry["step"]: entry["eval_objective"] for entry in final.history if "eval_objective" in entry}
    assert final.best_objective == values[final.best_step] == min(values.values())


def test_an_objective_that_is_not_installed_is_refused_before_anything_is_trained(copied):
    search = copied.search.model_copy(update={"objective": "my_error"})
    with pytest.raises(ValueError, match="unknown objective 'my_error': there are perplexity, token_error"):
        plan_calibration(Inputs(copied.model_copy(update={"search": search})))
