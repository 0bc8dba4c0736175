"""`mars tune-lr` on a small study: the rate of one pair from real runs, kept, and not trained again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from tasks.calibration.stored import read_metrics
from tasks.settings.study import StudyConfig, read_study, write_study
from tasks.storage.folder import Revision
from tests.conftest import made_once
from tests.flows.conftest import write_small_study


def tune(config: StudyConfig, *options: str) -> dict:
    done = CliRunner().invoke(app, ["tune-lr", str(Path(config.study).with_name("study.yaml")), "--json", *options])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def tuned(demo_data: Path) -> tuple[StudyConfig, dict]:
    """The uniform default of a study that has no other run."""

    def make(folder: Path) -> None:
        config = write_small_study(folder, demo_data)
        short = config.calibration.model_copy(update={"samples": 32})
        write_study(config.model_copy(update={"calibration": short}), folder / "study.yaml")
        (folder / "answer.json").write_text(json.dumps(tune(config)))

    made = made_once("tuned-rate", make)
    return read_study(made / "study.yaml"), json.loads((made / "answer.json").read_text())


def test_the_best_rate_lies_about_the_lowest_loss_that_was_measured(tuned):
    config, answer = tuned
    assert answer["pair"] == [2, 2]
    assert len(answer["tried"]) >= 4
    losses = {one["learning_rate"]: one["loss"] for one in answer["tried"] if one["loss"] is not None}
    stored = [read_metrics(path) for path in Revision(Path(config.study), 1).path("calibration").glob("*.parquet")]
    measured = {rows["peak_lr_llm"].iloc[-1]: rows["val_loss"].iloc[-1] for rows in stored}
    assert losses == {rate: pytest.approx(loss) for rate, loss in measured.items()}
    lowest = min(losses, key=losses.get)
    assert 0.5 * lowest <= answer["learning_rate"] <= 2 * lowest
    assert answer["interval"][0] < answer["learning_rate"] < answer["interval"][1]


def test_run_again_it_trains_nothing_and_answers_the_same(tuned):
    config, answer = tuned
    runs = list(Revision(Path(config.study), 1).path("calibration").rglob("*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in runs}
    assert tune(config, "--pair", "2,2") == answer
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pair", "16"], "--pair is two ranks such as 16,16"),
        (["--pair", "0,0"], "not both 0"),
        (["--rates", "1e-4"], "one learning rate alone"),
        (["--rates", "auto"], "--rates is at least two learning rates"),
        (["--rates", "1e-4,high"], "a learning rate must be above 0"),
    ],
)
def test_what_cannot_be_tuned_is_refused(study, options, message):
    done = CliRunner().invoke(app, ["tune-lr", str(study), *options])
    assert done.exit_code == 2
    assert message in done.stderr
