"""A study whose calibration also searches for the learning rate, and lets the vision encoder stay frozen (rank 0)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tasks.calibration.stored import stored_metrics
from tasks.choice.search import read_choice
from tasks.settings.calibration import CalibrationConfig
from tasks.settings.final import EvaluationConfig
from tasks.settings.study import StudyConfig, read_study, write_study
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tests.conftest import made_once
from tests.flows.conftest import write_small_study

RATES = (3e-4, 1e-3, 4e-3)
PAIRS = [(0, 2), (0, 4), (2, 2), (2, 4), (4, 2), (4, 4)]


def searching(folder: Path, data: Path, **calibration: object) -> StudyConfig:
    config = write_small_study(folder, data)
    own = CalibrationConfig(samples=64, smallest_size=8, parallel=2, **calibration)
    config = config.model_copy(update={"calibration": own, "evaluation": EvaluationConfig(answer_tokens=0)})
    write_study(config, folder / "study.yaml")
    return config


@pytest.fixture(scope="session")
def listed(demo_data: Path) -> StudyConfig:
    """Every pair at three learning rates, the recipe's among them, run to the report. Tests leave it as it is."""
    from flows.study import study_flow

    ranks = {"me": [0, 2, 4], "llm": [2, 4]}
    made = made_once(
        "listed-rates",
        lambda folder: study_flow(searching(folder, demo_data, ranks=ranks, learning_rates=list(RATES))),
    )
    return read_study(made / "study.yaml")


def revision_of(config: StudyConfig) -> Revision:
    return Revision(Path(config.study), 1)


def test_every_pair_has_a_run_at_every_rate(listed):
    metrics = stored_metrics(revision_of(listed))
    ends = metrics[metrics["step"] == 8]
    found = sorted((r.r_me, r.r_llm, r.peak_lr_llm) for r in ends.itertuples())
    assert found == sorted((*pair, rate) for pair in PAIRS for rate in RATES)
    # An own look at what was trained with: the rate of the last step, after a cosine to zero from the peak.
    ratio = ends["lr"] / ends["peak_lr_llm"]
    assert np.allclose(ratio, ratio.iloc[0], rtol=1e-9)
    assert ends["clipped_share"].between(0, 1).all()


def test_runs_at_the_recipes_rate_are_those_of_a_study_without_a_search(listed):
    plain = listed.calibration.model_copy(update={"learning_rates": None})
    usual = Study(listed.model_copy(update={"calibration": plain}), revision_of(listed)).plan
    searched = Study(listed, revision_of(listed)).plan
    assert {run.run_id for run in usual.runs} < {run.run_id for run in searched.runs}
    assert len(searched.runs) == len(RATES) * len(usual.runs)


def test_the_final_runs_are_at_the_rates_that_the_choice_says(listed):
    revision = revision_of(listed)
    choice = read_choice(revision)
    records = [json.loads(path.read_text()) for path in revision.path("final").glob("*/training.json")]
    by_role = {record["role"]: record for record in records}
    assert by_role["chosen"]["pair"] == list(choice.pair)
    assert by_role["chosen"]["learning_rates"] == list(choice.rates.learning_rates)
    highest = {role: max(entry.get("learning_rate", 0) for entry in r["history"]) for role, r in by_role.items()}
    for role, record in by_role.items():
        assert 0.5 * record["learning_rates"][2] < highest[role] <= record["learning_rates"][2], role
    if "uniform" in by_role:
        assert (by_role["uniform"]["pair"], by_role["uniform"]["learning_rates"]) == ([2, 2], [1e-3] * 3)
    if choice.pair != (2, 2):
        tuned = by_role["uniform-tuned-rate"]
        assert (tuned["pair"], tuned["learning_rates"]) == ([2, 2], list(choice.rates.of_pair((2, 2))))
    scores = json.loads(revision.path("evaluation.json").read_text())
    assert set(scores) == {"base", *by_role}


def test_report_and_cards_say_the_rates(listed):
    revision = revision_of(listed)
    choice = read_choice(revision)
    assert revision.path("report.html").is_file()
    slug = f"me{choice.pair[0]}-llm{choice.pair[1]}"
    (card,) = [
        path.read_text()
        for path in revision.path("final").glob(f"{slug}*/adapter/README.md")
        if "chosen pair" in path.read_text()
    ]
    assert str(choice.rates.learning_rates) in card
