"""What a person sees: the study form filled in, the run followed to its end, MLflow's pages. Headless Chromium.

The screenshots of docs/images are made here, with MARS_SCREENSHOTS=docs/images in the environment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
from PIL import Image

from mars_core.demo import demo_backbone_path
from tasks.settings.study import StudyConfig, write_study
from tasks.storage.folder import Revision
from tasks.tracking.links import TRAINING_VIEW
from tasks.tracking.runs import experiment_name
from tests.deployments.conftest import Running, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
LOADING_MILLISECONDS = 180_000
RANK_LABELS = ("Rank of the vision encoder, r_me", "Rank of the LLM, r_llm")


@contextmanager
def a_page(profile: Path, **options: Any) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as browsers:
        context = browsers.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, args=FLAGS, viewport={"width": 1280, "height": 900}, **options
        )
        context.set_default_timeout(LOADING_MILLISECONDS)
        yield context.new_page()
        context.close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    with a_page(tmp_path / "profile") as page:
        yield page


@pytest.fixture
def touched(tmp_path: Path) -> Iterator[Any]:
    """A page as on a tablet, where Prefect's lists of choices are the browser's own: others do not open by script."""
    with a_page(tmp_path / "profile", has_touch=True) as page:
        yield page


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("MARS_SCREENSHOTS", tmp_path / "shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def studies(tmp_path: Path) -> Iterator[Path]:
    """A folder whose path can be shown in the docs, or the test's own where another test has that."""
    folder = Path(tempfile.gettempdir()) / "mars-studies"
    try:
        folder.mkdir()
    except FileExistsError:
        yield tmp_path
        return
    yield folder
    shutil.rmtree(folder)


def shoot(page: Any, path: Path, settle: float = 3) -> None:
    """Save a screenshot, in few colours: it goes into the repository."""
    page.wait_for_timeout(settle * 1000)
    page.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < 200_000


def setting(page: Any, label: str) -> Any:
    """The part of the form under a label; of several with one label, the first."""
    name = page.locator("span.schema-form-property__label").filter(has_text=re.compile(rf"^{re.escape(label)}$")).first
    return name.locator("xpath=ancestor::div[contains(@class,'p-label schema-form-property')][1]")


def fill(page: Any, label: str, value: object) -> None:
    setting(page, label).locator("textarea, input").first.fill(str(value))


def fill_ranks(page: Any, ranks: tuple[int, ...]) -> None:
    """Replace the four default ranks: by as many fields as wanted."""
    items = setting(page, "Ranks (Optional)").locator(".p-draggable-list__item")
    for left in reversed(range(len(ranks), items.count())):
        items.last.locator("button").first.click()
        items.nth(left).wait_for(state="detached")
    for number, rank in enumerate(ranks):
        items.nth(number).locator("input").fill(str(rank))


def open_form(page: Any, stack: Running) -> None:
    page.goto(f"{stack.ui}/deployments")
    page.get_by_role("link", name="study", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.get_by_text("The study: model, data, recipe and what to search over.").wait_for()


def test_study_from_the_form_to_its_charts(stack: Running, page: Any, shots: Path, studies: Path, demo_data: Path):
    study = studies / "scenes"
    submit_study(stack, page, shots, study, demo_data)
    (run,) = stack.runs_of("mars-study/study", str(study))
    follow(stack, page, shots, study, run["id"])
    look_at_mlflow(stack, page, shots, study)


def submit_study(stack: Running, page: Any, shots: Path, study: Path, data: Path) -> None:
    open_form(page, stack)
    fill_paths(page, Path("/runs/scenes"), Path("/models/backbone"), Path("/data/scenes"))  # what a reader sees
    fill_small_study(page)
    page.locator("span.schema-form-property__label").first.scroll_into_view_if_needed()
    shoot(page, shots / "prefect-form.png")
    fill_paths(page, study, demo_backbone_path(), data)
    while not press(page, "Submit", "/create_flow_run"):  # a person would press again, too
        pass


def press(page: Any, button: str, asked: str) -> bool:
    """Press a button that asks the server for something; returns False where the server was busy."""
    with page.expect_response(lambda response: response.url.endswith(asked)) as answer:
        page.get_by_role("button", name=button, exact=True).last.click()
    if answer.value.status == httpx.codes.SERVICE_UNAVAILABLE:
        page.wait_for_timeout(1000)
        return False
    assert answer.value.ok, answer.value.text()
    return True


def fill_small_study(page: Any) -> None:
    """The settings of `write_small_study`."""
    fill(page, "Learning rate (Optional)", 0.001)
    fill(page, "Max tokens (Optional)", 512)
    fill_ranks(page, (2, 4))
    fill(page, "Samples (Optional)", 64)
    fill(page, "Smallest size (Optional)", 8)


def fill_paths(page: Any, study: Path, model: Path, data: Path) -> None:
    fill(page, "Study", study)
    fill(page, "Model", model)
    fill(page, "Train", data / "train.json")
    fill(page, "Images (Optional)", data / "images")
    fill(page, "Validation (Optional)", data / "validation.json")
    fill(page, "Test (Optional)", data / "test.json")


def follow(stack: Running, page: Any, shots: Path, study: Path, run: str) -> None:
    """Follow a study's run to its end, and look at its artifacts."""
    page.goto(f"{stack.ui}/runs/flow-run/{run}")
    page.get_by_text("Running", exact=True).first.wait_for()
    page.goto("about:blank")  # drawing the growing graph without a GPU takes as much time as the study
    stack.complete(run)
    page.goto(f"{stack.ui}/runs/flow-run/{run}")
    page.get_by_text("Completed", exact=True).first.wait_for()
    shoot(page, shots / "prefect-run.png", settle=6)
    finals = stack.runs_of("mars-final/final-finetune", str(study))
    assert finals
    assert all(final["state"]["type"] == "COMPLETED" for final in finals)
    assert Revision(study, 1).path("report.html").is_file()
    page.goto(f"{stack.ui}/artifacts")
    for key in ("mars-laws", "mars-candidates", "mars-choice", "mars-calibration-progress", "mars-mlflow"):
        page.get_by_text(key, exact=True).first.wait_for()
    shoot(page, shots / "prefect-artifacts.png")
    only = {"artifacts": {"key": {"any_": ["mars-choice"]}}, "sort": "CREATED_DESC"}
    page.goto(f"{stack.ui}/artifacts/artifact/{stack.post('/artifacts/filter', only)[0]['id']}")
    page.get_by_text("Rank pair (r_me, r_llm)").first.wait_for()
    shoot(page, shots / "prefect-choice.png")


def look_at_mlflow(stack: Running, page: Any, shots: Path, study: Path) -> None:
    client = mlflow.MlflowClient(stack.mlflow)
    experiment = client.get_experiment_by_name(experiment_name(study)).experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    page.goto(f"{stack.mlflow}/#/experiments/{experiment}/runs?{TRAINING_VIEW}")
    page.get_by_text("scenes r001").first.wait_for()
    close_assistant(page)
    row = page.locator("[role=row]").filter(has_text="scenes r001").first
    row.locator("[role=gridcell]").nth(1).locator("button").first.click()
    page.get_by_text("me4-llm4 seed0").first.wait_for()
    shoot(page, shots / "mlflow-experiment.png", settle=6)
    page.goto(f"{stack.mlflow}/#/experiments/{experiment}/runs/{runs['scenes r001'].info.run_id}?{TRAINING_VIEW}")
    page.get_by_text("mars.verdict").first.wait_for()
    shoot(page, shots / "mlflow-parent.png", settle=6)
    page.set_viewport_size({"width": 1280, "height": 1300})  # charts below the window's edge are not drawn
    child = next(run for name, run in runs.items() if name.startswith("me4-llm4"))
    page.goto(f"{stack.mlflow}/#/experiments/{experiment}/runs/{child.info.run_id}/model-metrics?{TRAINING_VIEW}")
    page.get_by_text("val_loss").first.wait_for()
    shoot(page, shots / "mlflow-charts.png", settle=10)
    assert len(runs) >= 6  # the parent, four calibration runs, and a final run or two
    for run in runs.values():
        load = client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
        assert len({point.timestamp for point in load}) >= 2, run.info.run_name  # a curve, though it took seconds
        assert max(point.value for point in load) > 0
    page.goto(f"{stack.mlflow}/#/experiments/{experiment}/runs/{child.info.run_id}/system-metrics?{TRAINING_VIEW}")
    page.get_by_text("cpu_utilization_percentage").first.wait_for()
    shoot(page, shots / "mlflow-load.png", settle=10)


def close_assistant(page: Any) -> None:
    """Close the panel that MLflow opens on a first visit, if it does."""
    close = page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    if close.count():
        close.first.click()


def ask_first(stack: Running, deployment: str, config: StudyConfig) -> str:
    """Start a run that asks a person after the choice, and wait until it does; returns its id."""
    run = stack.start(deployment, config=config.model_dump(mode="json"), after_choice="ask")
    wait_until(lambda: stack.state(run)["type"] in ("PAUSED", "FAILED", "CRASHED"))
    assert stack.state(run)["type"] == "PAUSED", stack.state(run)
    return str(run)


def open_approval(stack: Running, page: Any, run: str) -> Any:
    """Open the form of a run that waits for a person."""
    page.goto(f"{stack.ui}/runs/flow-run/{run}")
    page.get_by_text("Paused", exact=True).first.wait_for()
    page.get_by_role("button", name="Resume", exact=True).click()
    form = page.locator(".p-modal")
    form.get_by_text("Train rank pair").wait_for()
    return form


def test_a_person_changes_the_ranks_in_the_form(stack, touched, shots, copied):
    revision = Revision(Path(copied.study), 1)
    chosen = tuple(json.loads(revision.path("choice.json").read_text())["pair"])
    other = next((a, b) for a in (2, 4) for b in (4, 2) if (a, b) not in (chosen, (2, 2)))  # (2, 2) is trained anyway
    run = ask_first(stack, "mars-study/study", copied)
    form = open_approval(stack, touched, run)
    labels = form.locator("span.schema-form-property__label").all_inner_texts()
    assert [label.removesuffix(" (Optional)") for label in labels] == ["Decision", *RANK_LABELS, "Reason"]
    assert form.locator("td").filter(has_text=f"({other[0]}, {other[1]})").count() == 1  # among what was measured
    ranks = [setting(touched, f"{label} (Optional)").locator("input") for label in RANK_LABELS]
    assert tuple(int(rank.input_value()) for rank in ranks) == chosen
    form.locator("select").first.select_option("change ranks")
    for rank, value in zip(ranks, other, strict=True):
        rank.fill(str(value))
    fill(touched, "Reason (Optional)", "this pair did better on our own questions")
    shoot(touched, shots / "prefect-approval.png")
    while not press(touched, "Submit", "/resume"):
        pass
    stack.complete(run)
    (final,) = [
        one
        for one in stack.runs_of("mars-final/final-finetune", copied.study)
        if (one["parameters"]["r_me"], one["parameters"]["r_llm"]) == other
    ]
    assert final["state"]["type"] == "COMPLETED"
    assert revision.path("final", f"me{other[0]}-llm{other[1]}", "adapter", "adapter_model.safetensors").is_file()
    approval = json.loads(revision.path("approval.json").read_text())
    assert (tuple(approval["pair"]), approval["reason"]) == (other, "this pair did better on our own questions")
    assert "this pair did better on our own questions" in revision.path("report.html").read_text()


def test_a_person_stops_in_the_form(stack, touched, copied):
    shutil.rmtree(Revision(Path(copied.study), 1).path("final"))
    run = ask_first(stack, "mars-fit-and-search/fit-and-search", copied)
    form = open_approval(stack, touched, run)
    form.locator("select").first.select_option("stop")
    while not press(touched, "Submit", "/resume"):
        pass
    stack.complete(run)
    assert stack.runs_of("mars-final/final-finetune", copied.study) == []
    assert not Revision(Path(copied.study), 1).path("approval.json").exists()


NIGHTLY = "mars-nightly/nightly-recalibration"
SLUG_FIELD = "Enter a unique identifier for this schedule"
CHANGED = 8  # training samples that are taken away


@pytest.fixture
def nightly_as_before(stack: Running) -> Iterator[str]:
    """Id of the nightly deployment, which has no schedule again afterwards: the stack is shared."""
    deployment = stack.get(f"/deployments/name/{NIGHTLY}")["id"]
    yield deployment
    for schedule in stack.get(f"/deployments/{deployment}/schedules"):
        stack.ask("DELETE", f"/deployments/{deployment}/schedules/{schedule['id']}")


def test_a_schedule_from_the_browser_opens_a_revision_for_changed_data(
    stack, touched, shots, served, studies, tmp_path, demo_data, nightly_as_before
):
    study, data = studies / "charts", tmp_path / "data"
    shutil.copytree(served.study, study)
    shutil.rmtree(Revision(study, 1).path("final"))
    (study / "standing.json").unlink()  # calibrated, but nothing stands yet
    shutil.copytree(demo_data, data)
    files = {"train": str(data / "train.json"), "images": str(data / "images")}
    own = {"study": str(study), "data": served.data.model_copy(update=files)}
    write_study(served.model_copy(update=own), study / "study.yaml")
    make_schedule(stack, touched, shots, nightly_as_before, study)

    first = night_of(stack, study, "revision 001")
    assert json.loads((study / "standing.json").read_text())["revision"] == 1
    finals = stack.runs_of("mars-final/final-finetune", str(study))
    assert finals
    assert {final["work_pool_name"] for final in finals} == {"mars-gpu"}

    train = data / "train.json"
    train.write_text(json.dumps(json.loads(train.read_text())[CHANGED:]))
    second = night_of(stack, study, "revision 002")
    packs = stack.runs_of("mars-calibrate-pack/calibrate-pack", str(study))
    assert [pack["parameters"]["revision"] for pack in packs] == [2] * 4  # the first night had nothing to calibrate
    assert len(list(Revision(study, 2).path("calibration").glob("*.parquet"))) == 4
    look_at_the_night(stack, touched, shots, nightly_as_before, first, second)


def make_schedule(stack: Running, page: Any, shots: Path, deployment: str, study: Path) -> None:
    """On the deployment's page: + Schedule, when, and the study as a parameter of this schedule."""
    page.set_viewport_size({"width": 1280, "height": 1300})
    page.goto(f"{stack.ui}/deployments/deployment/{deployment}")
    when = fill_schedule(page, study.name, Path("/runs/charts"))  # what a reader sees
    when.fill("0 2 * * *")
    page.get_by_text("At 02:00").wait_for()
    shoot(page, shots / "prefect-nightly-schedule.png")
    when.fill("*/2 * * * *")  # a test cannot wait for the night
    fill(page, "study (Optional)", study)
    while not press(page, "Save", "/schedules"):  # the form is closed all the same
        fill_schedule(page, study.name, study).fill("*/2 * * * *")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.locator(".p-modal").wait_for(state="detached")
    page.get_by_text(study.name, exact=True).first.wait_for()  # the schedule, by its slug


def fill_schedule(page: Any, slug: str, study: Path) -> Any:
    """Open the form of a schedule and fill in all but when; returns the field for when."""
    page.get_by_role("button", name="Schedule", exact=True).click()
    form = page.locator(".p-modal")
    form.get_by_text("Parameter Overrides").wait_for()
    form.get_by_placeholder(SLUG_FIELD).fill(slug)
    form.get_by_role("button", name="Cron", exact=True).click()
    form.locator("select[multiple]").select_option(["study", "trigger"])
    setting(page, "trigger (Optional)").locator("select").first.select_option("run")
    fill(page, "study (Optional)", study)
    return form.locator("input[type=text]").nth(1)


def night_of(stack: Running, study: Path, revision: str) -> str:
    """Wait until a night has reported about a revision; returns the id of its flow run. No night may fail."""
    reported: list[str] = []

    def has_reported() -> bool:
        nights = stack.runs_of(NIGHTLY, str(study))
        bad = [night["state"] for night in nights if night["state"]["type"] in ("FAILED", "CRASHED", "CANCELLED")]
        assert not bad, bad
        done = [night["id"] for night in nights if night["state"]["type"] == "COMPLETED"]
        only = {"artifacts": {"flow_run_id": {"any_": done}, "key": {"any_": ["mars-nightly"]}}}
        shown = stack.post("/artifacts/filter", only) if done else []
        reported[:] = [one["flow_run_id"] for one in shown if revision in one["data"]]
        return bool(reported)

    wait_until(has_reported)
    return reported[-1]


def look_at_the_night(stack: Running, page: Any, shots: Path, deployment: str, first: str, second: str) -> None:
    """The nights among the deployment's runs, and the report of the second."""
    page.goto(f"{stack.ui}/deployments/deployment/{deployment}")
    for night in (first, second):
        page.locator(f"a[href*='/runs/flow-run/{night}']").first.wait_for()
    shoot(page, shots / "prefect-nightly-runs.png")
    page.locator(f"a[href*='/runs/flow-run/{second}']").first.click()
    page.get_by_text("Completed", exact=True).first.wait_for()
    only = {"artifacts": {"flow_run_id": {"any_": [second]}, "key": {"any_": ["mars-nightly"]}}}
    page.goto(f"{stack.ui}/artifacts/artifact/{stack.post('/artifacts/filter', only)[0]['id']}")
    page.get_by_text("Nightly recalibration of charts: revision 002").first.wait_for()
    page.get_by_text("data_hash was").first.wait_for()
    rows = [row.locator("td").all_inner_texts() for row in page.locator("tr").all()]
    assert ["train", "64", "56", "0", str(CHANGED), "0"] in rows  # before, now, added, removed, from another split
    shoot(page, shots / "prefect-nightly-report.png")
