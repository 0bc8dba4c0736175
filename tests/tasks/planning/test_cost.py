"""What the planner reads from a study: the longest samples of all splits, and the ranks of the search."""

from __future__ import annotations

import json
import shutil

import pytest

from mars_core.demo import demo_backbone_path
from mars_core.ranks import RankPair
from tasks.inputs.opened import Inputs
from tasks.planning.cost import cost_on, extreme_shapes, final_pair, sample_shapes
from tasks.settings.calibration import CalibrationConfig
from tasks.settings.data import DataConfig
from tasks.settings.recipe import RecipeConfig
from tasks.settings.search import SearchConfig
from tasks.settings.study import StudyConfig


@pytest.fixture
def config(tmp_path, demo_data):
    shutil.copytree(demo_data, tmp_path / "data")
    folder = tmp_path / "data"
    return StudyConfig(
        study=str(tmp_path / "study"),
        model=str(demo_backbone_path()),
        data=DataConfig(
            train=str(folder / "train.json"),
            validation=str(folder / "validation.json"),
            test=str(folder / "test.json"),
            images=str(folder / "images"),
        ),
        recipe=RecipeConfig(max_tokens=2048),
        calibration=CalibrationConfig(ranks=(2, 4), samples=64, smallest_size=8),
        device="cpu",
    )


def lengthen(file, speaker):
    """Make what `speaker` says in the fifth row 300 words longer."""
    rows = json.loads(file.read_text())
    next(turn for turn in rows[4]["conversations"] if turn["from"] == speaker)["value"] += " and red" * 150
    file.write_text(json.dumps(rows))


def test_memory_is_counted_for_the_longest_sample_of_any_split(config, tmp_path):
    before = cost_on(config, "h100")
    lengthen(tmp_path / "data" / "test.json", "human")
    lengthen(tmp_path / "data" / "validation.json", "gpt")
    after = cost_on(config, "h100")
    held_out = Inputs(config).test_set()
    tokens = [len(sample) for split in (held_out, Inputs(config).validation_set) for sample in split]
    answers = [int((sample.labels[1:] != -100).sum()) for sample in Inputs(config).validation_set]
    found = extreme_shapes(Inputs(config), 14)
    assert max(shape.tokens for shape in found) == max(tokens)
    assert max(shape.answers for shape in found) == max(answers)
    assert max(shape.tokens for shape in sample_shapes(Inputs(config), 14)) < max(tokens) - 300
    assert after["samples"]["longest_tokens"] == max(tokens)
    assert after["samples"]["counted"] == 64 + 12 + 12
    for phase in ("calibration", "final"):
        assert after[phase]["memory_bytes"]["training"] > 1.5 * before[phase]["memory_bytes"]["training"]
        assert after[phase]["seconds"] == pytest.approx(before[phase]["seconds"])  # the mean is of calibration samples


def test_the_final_run_is_planned_at_the_largest_rank_of_the_search(config):
    wider = config.model_copy(update={"search": SearchConfig(ranks=(2, 16))})
    assert (final_pair(config), final_pair(wider)) == (RankPair(4, 4), RankPair(16, 16))
    plain, wide = (cost_on(study, "h100") for study in (config, wider))
    assert wide["final"]["memory_bytes"]["adapters"] == 4 * plain["final"]["memory_bytes"]["adapters"]
    assert wide["final"]["flops"] > plain["final"]["flops"]
    assert wide["calibration"] == plain["calibration"]


def test_a_rank_of_the_search_that_does_not_fit_the_model_is_refused(config):
    wider = config.model_copy(update={"search": SearchConfig(ranks=(2, 4096))})
    with pytest.raises(ValueError, match="4096"):
        cost_on(wider, "h100")
