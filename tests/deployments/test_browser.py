"""What a person sees: the study form filled in, the run followed to its end, MLflow's pages. Headless Chromium.

The screenshots of docs/images are made here, with MARS_SCREENSHOTS=docs/images in the environment.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from PIL import Image

from mars_core.demo import demo_backbone_path
from tasks.links import TRAINING_VIEW
from tasks.store import Revision
from tasks.tracking import experiment_name
from tests.deployments.conftest import BUSY, Running

pytestmark = pytest.mark.stack

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
LOADING_MILLISECONDS = 180_000


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as browsers:
        context = browsers.chromium.launch_persistent_context(
            str(tmp_path / "profile"), executable_path=CHROMIUM, args=FLAGS, viewport={"width": 1280, "height": 900}
        )
        context.set_default_timeout(LOADING_MILLISECONDS)
        yield context.new_page()
        context.close()


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


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_study_from_the_form_to_its_charts(stack: Running, page: Any, shots: Path, studies: Path, demo_data: Path):
    study = studies / "scenes"
    submit_study(stack, page, shots, study, demo_data)
    (run,) = stack.runs_of("mars-study/study", str(study))
    follow(stack, page, shots, study, run["id"])
    look_at_mlflow(stack, page, shots, study)


def submit_study(stack: Running, page: Any, shots: Path, study: Path, data: Path) -> None:
    open_form(page, stack)
    fill_paths(page, Path("/runs/scenes"), Path("/models/backbone"), Path("/data/scenes"))  # what a reader sees
    fill(page, "Learning rate (Optional)", 0.001)
    fill(page, "Max tokens (Optional)", 512)
    fill_ranks(page, (2, 4))
    fill(page, "Samples (Optional)", 64)
    fill(page, "Smallest size (Optional)", 8)
    page.locator("span.schema-form-property__label").first.scroll_into_view_if_needed()
    shoot(page, shots / "prefect-form.png")
    fill_paths(page, study, demo_backbone_path(), data)
    while (answer := submit(page)).status == BUSY:  # a person would press again, too
        page.wait_for_timeout(1000)
    assert answer.ok, answer.text()


def submit(page: Any) -> Any:
    """Press the button; returns what the server answers."""
    with page.expect_response(lambda response: response.url.endswith("/create_flow_run")) as answer:
        page.get_by_role("button", name="Submit").click()
    return answer.value


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


def close_assistant(page: Any) -> None:
    """Close the panel that MLflow opens on a first visit, if it does."""
    close = page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    if close.count():
        close.first.click()
