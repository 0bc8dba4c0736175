"""The whole pipeline on a small study: what it leaves behind, and what a second run does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from peft import PeftModel
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from safetensors.torch import load_file

from flows.calibrate import calibrate_flow
from flows.stages import fit_flow, report_flow, search_flow
from flows.study import study_flow
from mars_core.demo import demo_backbone_path
from mars_core.metrics.schema import SCHEMA
from mars_core.models.loading import load_base
from tasks.inputs.opened import Inputs
from tasks.settings.study import StudyConfig
from tasks.storage.files import file_hash
from tasks.storage.folder import Revision
from tasks.study.plan import data_seed_of
from tasks.study.revision import open_revision
from tasks.tracking.runs import tracking_uri


def revision_of(config: StudyConfig) -> Revision:
    return Revision(Path(config.study), 1)


def modified(config: StudyConfig) -> dict[str, int]:
    """Modification time of every output of the stages."""
    folder = revision_of(config).folder
    names = ("laws.json", "choice.json", "evaluation.json", "report.html")
    files = [*folder.glob("calibration/*.parquet"), *folder.glob("final/*/training.json"), *(folder / n for n in names)]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def test_metrics_are_one_parquet_row_per_run_and_step(finished):
    files = sorted(revision_of(finished).path("calibration").glob("*.parquet"))
    rows = pd.concat([pd.read_parquet(file) for file in files])
    assert list(rows.columns) == SCHEMA.names
    assert set(zip(rows.r_me, rows.r_llm, strict=True)) == {(2, 2), (2, 4), (4, 2), (4, 4)}
    assert not rows.duplicated(["run_id", "step"]).any()
    assert sorted(rows.step.unique()) == [1, 2, 3, 4, 6, 8]
    assert (rows.unique_samples == 8 * rows.step).all()
    assert rows.groupby("run_id").val_loss.nunique().min() > 1  # training moved every run


def test_choice_is_one_of_the_available_pairs_and_says_why(finished):
    choice = json.loads(revision_of(finished).path("choice.json").read_text())
    assert choice["pair"][0] in (2, 4)
    assert choice["pair"][1] in (2, 4)
    assert choice["verdict"] in ("best", "as good and cheaper", "cannot tell")
    assert choice["reason"]
    assert choice["regret"] >= 0
    assert len(choice["candidates"]) == 4
    assert any("the final run sees all 64 training samples once" in note for note in choice["diagnostics"]["notes"])


def test_adapter_reloads_on_a_fresh_base_with_the_chosen_ranks(finished):
    revision = revision_of(finished)
    r_me, r_llm = json.loads(revision.path("choice.json").read_text())["pair"]
    folder = revision.path("final", f"me{r_me}-llm{r_llm}", "adapter")
    base = load_base(str(demo_backbone_path()), device=torch.device("cpu"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base.model, str(folder))
    ranks = {name: module.r["default"] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert {rank for name, rank in ranks.items() if "vision_tower" in name} == {r_me}
    assert {rank for name, rank in ranks.items() if "vision_tower" not in name} == {r_llm}
    saved = load_file(folder / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in saved.items() if "lora_B" in name)  # it was trained
    training = json.loads((folder.parent / "training.json").read_text())
    assert training["reload_difference"] <= 1e-5
    assert (folder / "processor_config.json").is_file()


def test_test_split_is_scored_before_and_after(finished):
    scores = json.loads(revision_of(finished).path("evaluation.json").read_text())
    assert scores["chosen"]["overall"]["perplexity"] < scores["base"]["overall"]["perplexity"]
    assert scores["base"]["overall"]["n_answers"] == scores["chosen"]["overall"]["n_answers"] >= 12


def test_mlflow_has_a_parent_and_a_child_per_pair_with_curves(finished):
    client = mlflow.MlflowClient(tracking_uri(Path(finished.study)))
    experiments = [e.experiment_id for e in client.search_experiments() if e.name.startswith("mars/")]
    runs = client.search_runs(experiments)
    kinds = {kind: [run for run in runs if run.data.tags.get("mars.kind") == kind] for kind in ("study", "calibration")}
    (parent,) = kinds["study"]
    assert len(kinds["calibration"]) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in kinds["calibration"]} == {parent.info.run_id}
    child = kinds["calibration"][0]
    assert {"r_me", "r_llm", "seed", "data_hash", "recipe.learning_rate"} <= child.data.params.keys()
    assert len(client.get_metric_history(child.info.run_id, "val_loss")) == 6
    assert {artifact.path for artifact in client.list_artifacts(parent.info.run_id)} >= {"report.html", "choice.json"}


def test_the_prefect_ui_shows_scores_and_where_report_and_adapter_are(finished):
    only = ArtifactFilter(key=ArtifactFilterKey(any_=["mars-report"]))
    with get_client(sync_client=True) as client:
        texts = [str(artifact.data) for artifact in client.read_artifacts(artifact_filter=only)]
    (text,) = [text for text in texts if finished.study in text]
    revision = revision_of(finished)
    chosen = json.loads(revision.path("evaluation.json").read_text())["chosen"]["overall"]
    assert f"| {chosen['perplexity']:.4f} | {chosen['accuracy']:.1%} |" in text
    assert str(revision.path("report.html")) in text
    assert json.loads(revision.path("choice.json").read_text())["reason"] in text


def test_second_run_does_nothing_again(copied, monkeypatch):
    """It opens one revision, and hashes each output once, however many stages ask for it."""
    opened: list[object] = []
    hashed: Counter[Path] = Counter()
    monkeypatch.setattr("tasks.study.opened.open_revision", lambda *a, **b: opened.append(a) or open_revision(*a, **b))
    monkeypatch.setattr("tasks.storage.folder.file_hash", lambda path: hashed.update([path]) or file_hash(path))
    before = modified(copied)
    study_flow(copied)
    assert modified(copied) == before
    assert len(opened) == 1
    assert set(hashed.values()) == {1}


@pytest.mark.parametrize(
    "lost", [pytest.param("one calibration run", marks=pytest.mark.slow), "laws.json", "choice.json", "evaluation.json"]
)
def test_a_lost_output_is_made_again_and_what_stands_before_it_is_kept(copied, lost):
    order = ["calibration", "laws.json", "choice.json", "final", "evaluation.json", "report.html"]
    folder = revision_of(copied).folder
    path = sorted(folder.glob("calibration/*.parquet"))[0] if lost == "one calibration run" else folder / lost
    before = modified(copied)
    path.unlink()
    study_flow(copied)
    after = modified(copied)
    name = str(path.relative_to(folder))
    assert after[name] != before[name]
    place = order.index(name.split("/")[0])
    earlier = [key for key in before if order.index(key.split("/")[0]) < place]
    siblings = [key for key in before if key.startswith("calibration/") and key != name]
    assert {key: after[key] for key in earlier + siblings} == {key: before[key] for key in earlier + siblings}


def test_another_recipe_is_refused_and_a_new_revision_is_opened_on_request(copied):
    recipe = copied.recipe.model_copy(update={"learning_rate": 5e-4})
    other = copied.model_copy(update={"recipe": recipe})
    with pytest.raises(ValueError, match=r"recipe\.learning_rate was 0\.001 and is 0\.0005.*--new-revision"):
        calibrate_flow(other)
    before = modified(copied)
    shorter = other.model_copy(update={"calibration": other.calibration.model_copy(update={"samples": 16})})
    calibrate_flow(shorter, new_revision=True)
    assert modified(copied) == before
    assert len(list(Revision(Path(copied.study), 2).path("calibration").glob("*.parquet"))) == 4


@pytest.mark.slow
def test_another_seed_trains_only_the_new_runs_and_chooses_from_all(copied):
    before = modified(copied)
    calibration = copied.calibration.model_copy(update={"seeds": (0, 1)})
    more = copied.model_copy(update={"calibration": calibration})
    calibrate_flow(more)
    fit_flow(more)
    search_flow(more)
    after = modified(more)
    runs = {name for name in before if name.startswith("calibration/")}
    assert len([name for name in after if name.startswith("calibration/")]) == 2 * len(runs)
    assert {name: after[name] for name in runs} == {name: before[name] for name in runs}
    choice = json.loads(revision_of(more).path("choice.json").read_text())
    assert sorted(candidate["pair"] for candidate in choice["candidates"]) == [[2, 2], [2, 4], [4, 2], [4, 4]]
    metrics = pd.concat([pd.read_parquet(path) for path in revision_of(more).path("calibration").glob("*.parquet")])
    assert (metrics.data_seed == metrics.seed).all()
    first = metrics[metrics.step == 1]  # the first batch is another one: no longer the same loss before any update
    assert (first.groupby(["r_me", "r_llm"]).train_loss.nunique() == 2).all()
    assert (metrics.groupby("pack_id").data_seed.nunique() == 1).all()


def test_seeds_see_the_samples_in_orders_of_their_own(finished):
    own, other = Inputs(finished).calibration_set(), Inputs(finished).calibration_set(data_seed_of(finished, 1))
    assert [sample.id for sample in own.samples] == [
        sample.id for sample in Inputs(finished).calibration_set(0).samples
    ]
    assert [sample.id for sample in own.samples] != [sample.id for sample in other.samples]


def test_a_pair_with_a_diverged_run_is_not_chosen_and_the_report_says_why(copied):
    revision = revision_of(copied)
    chosen = json.loads(revision.path("choice.json").read_text())["pair"]
    (summary,) = [
        path for path in revision.path("calibration").glob("*.json") if json.loads(path.read_text())["pair"] == chosen
    ]
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"diverged_at": 4}))
    revision.path("laws.json").unlink()
    calibrate_flow(copied)
    fit_flow(copied)
    search_flow(copied)
    report_flow(copied)
    choice = json.loads(revision.path("choice.json").read_text())
    reason = "a calibration run that diverged (seed 0 at step 4)"
    assert choice["pair"] != chosen
    assert chosen not in [candidate["pair"] for candidate in choice["candidates"]]
    assert {"r_me": chosen[0], "r_llm": chosen[1], "reason": reason} in choice["dropped"]
    assert reason in revision.path("report.html").read_text()


def test_constraint_on_parameters_is_kept(copied):
    limit = 30_000  # below r_llm = 4 on this backbone
    search = copied.search.model_copy(update={"max_trainable_parameters": limit})
    search_flow(copied.model_copy(update={"search": search}))
    choice = json.loads(revision_of(copied).path("choice.json").read_text())
    assert choice["candidates"]
    assert all(candidate["trainable_parameters"] <= limit for candidate in choice["candidates"])


def test_a_report_before_the_search_shows_what_there_is(copied):
    """Stage by stage backwards: without the choice, without the laws, with half of the runs, with none."""
    revision = revision_of(copied)
    chosen = json.loads(revision.path("choice.json").read_text())["reason"]

    def reported(*gone):
        for name in gone:
            revision.path(name).unlink()
        report_flow(copied)
        return revision.path("report.html").read_text()

    page = reported("manifests/evaluate.json", "manifests/search.json", "choice.json")
    assert chosen not in page
    assert "No pair yet" in page
    assert "mars run" in page
    assert "figure-heatmap" in page
    assert 'id="coefficients-performance"' in page  # the laws that were fitted are still shown
    page = reported("manifests/fit.json", "laws.json")
    assert "it has not been tried yet: run `mars fit`" in page
    assert "figure-heatmap" in page
    runs = sorted(revision.path("calibration").glob("*.json"))
    assert len(runs) == 4
    page = reported("manifests/calibrate.json", *(str(run.relative_to(revision.folder)) for run in runs[:2]))
    assert "2 of 4 calibration runs have finished" in page
    assert "figure-heatmap" in page
    page = reported(*(str(run.relative_to(revision.folder)) for run in runs[2:]))
    assert "there are no calibration runs" in page
    assert "mars calibrate" in page
