"""Scores of every sample of the target and upstream tasks, against plain evaluation and against hand-made changes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mars_core.demo import demo_backbone_path
from mars_core.demo.upstream import build_upstream_data
from mars_core.evaluation.scores import evaluate
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.ranks import RankPair
from tasks.final.forgetting import described, forgetting_values, shown
from tasks.final.upstream_scores import score_model, task_scores, upstream_loss, upstream_rows
from tasks.inputs.data import scored_batches
from tasks.inputs.opened import Inputs
from tasks.settings.data import DataConfig
from tasks.settings.study import StudyConfig
from tasks.settings.upstream import UpstreamTask


@pytest.fixture(scope="module")
def config(demo_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    before = build_upstream_data(folder / "upstream", n_samples=12)
    return StudyConfig(
        study=str(folder / "study"),
        model=str(demo_backbone_path()),
        data=DataConfig(
            train=str(demo_data / "train.json"),
            validation=str(demo_data / "validation.json"),
            test=str(demo_data / "test.json"),
            images=str(demo_data / "images"),
        ),
        upstream=(
            UpstreamTask(name="reading", data=str(before.reading)),
            UpstreamTask(name="looks", data=str(before.looks), images=str(before.images), samples=5),
            UpstreamTask(name="told", data=str(before.reading), metric="cider-d", samples=6),
        ),
        device="cpu",
    )


@pytest.fixture(scope="module")
def inputs(config):
    return Inputs(config)


@pytest.fixture(scope="module")
def base(inputs):
    return inputs.final_base_model


@pytest.fixture(scope="module")
def scored(inputs, base):
    return score_model(inputs, base, base.model)


def test_target_scores_are_those_of_the_evaluation(inputs, base, scored):
    rows = scored.to_pandas()
    target = rows[rows["kind"] == "target"]
    overall = evaluate(base.model, scored_batches(inputs.test_set(), base, 32)()).overall
    assert (target["score"] * target["answers"]).sum() / target["answers"].sum() == pytest.approx(
        100 * overall.accuracy
    )
    assert target["nats"].sum() / target["tokens"].sum() == pytest.approx(overall.loss, rel=1e-5)
    assert len(target) == len(inputs.test_set())


def test_each_upstream_task_is_asked_with_its_own_metric(config, inputs, base, scored):
    rows = scored.to_pandas().set_index("task")
    assert len(rows.loc["looks"]) == len(inputs.upstream[config.upstream[1]]) == 5
    assert set(rows.loc["told", "metric"]) == {"cider-d"}
    assert rows.loc["reading", "score"].mean() > 50  # what the backbone could do before
    sums = rows[rows["kind"] == "upstream"].groupby("task")[["nats", "tokens"]].sum()
    assert upstream_loss(inputs, base, base.model) == pytest.approx((sums["nats"] / sums["tokens"]).mean(), rel=1e-5)


def told(config, samples):
    """Inputs whose captions task has these samples."""
    return SimpleNamespace(config=config, upstream={config.upstream[2]: tuple(samples)})


def test_samples_that_repeat_a_picture_leave_its_words_as_rare_as_they_were(config, inputs, base):
    """COCO has one entry per picture; ids that stand twice must not mix captions up."""
    own = inputs.upstream[config.upstream[2]]
    once = upstream_rows(told(config, own), base, base.model, "told")
    repeated = [replace(sample, id="same") for sample in (*own, own[0], own[0])]
    again = upstream_rows(told(config, repeated), base, base.model, "told")
    assert [row["score"] for row in again[: len(own)]] == pytest.approx([row["score"] for row in once])
    assert again[-1]["score"] == pytest.approx(once[0]["score"])


def test_captions_of_one_picture_or_too_long_ones_are_refused(config, inputs, base, monkeypatch):
    first = inputs.upstream[config.upstream[2]][0]
    with pytest.raises(ValueError, match="'told': 2 of 2 captions have at most 64 tokens and show 1 different"):
        upstream_rows(told(config, [first, first]), base, base.model, "told")
    monkeypatch.setattr("tasks.final.upstream_scores.LONGEST_CAPTION", 1)
    with pytest.raises(ValueError, match="'told': 0 of 6 captions have at most 1 tokens"):
        upstream_rows(inputs, base, base.model, "told")


def test_a_spoiled_adapter_forgets_and_is_warned_of(inputs, base, scored):
    wrapped = add_adapters(base.model, base.partition, RankPair(2, 2), seed=0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0.0, 0.5)
    spoiled = score_model(inputs, base, wrapped)
    remove_adapters(wrapped)
    found = described(scored, spoiled, ({"loss": 1.0}, {"loss": 3.0}))
    assert found["F"]["low"] > 0
    assert {"diverged", "forgot"} <= {sign["code"] for sign in found["signs"]}
    values = forgetting_values(found)
    assert values["forgetting_F"] == found["F"]["value"]
    assert values["forgetting/reading/before"] > values["forgetting/reading/after"]
    assert shown("spoiled", found)["F"] == round(found["F"]["value"], 1)
    assert described(scored, scored, ())["F"]["value"] == 0.0
    not_finite = {"loss": None}  # as a record stores it
    assert "diverged" in {sign["code"] for sign in described(scored, scored, ({"loss": 1.0}, not_finite))["signs"]}


def test_other_samples_cannot_be_compared(scored):
    with pytest.raises(ValueError, match="asked different samples"):
        task_scores(scored, scored.slice(1))


def test_what_is_asked_decides_the_hash(config):
    fewer = config.model_copy(update={"upstream": config.upstream[:1]})
    assert Inputs(fewer).upstream_hash != Inputs(config).upstream_hash
    elsewhere = fewer.model_copy(update={"study": config.study + "-elsewhere"})
    assert Inputs(fewer).upstream_hash == Inputs(elsewhere).upstream_hash


def test_too_few_short_samples_are_refused(config):
    recipe = config.recipe.model_copy(update={"max_tokens": 4})
    with pytest.raises(ValueError, match="upstream task 'reading': 0 of 12 samples have at most 4 tokens"):
        _ = Inputs(config.model_copy(update={"recipe": recipe})).upstream
