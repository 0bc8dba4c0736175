"""Scores of adapters outside training, against what training itself measured."""

from __future__ import annotations

import pytest
import torch

from mars_core.packing.adapters import by_group, flatten
from mars_core.packing.run import PackRun
from mars_core.packing.score import score_adapters
from mars_core.ranks import RankPair
from mars_core.training.recipe import Recipe

MEMBERS = [(RankPair(2, 4), 3), (RankPair(4, 2), 3), (RankPair(0, 2), 3), (RankPair(2, 2), 4)]
RECIPE = Recipe(learning_rate=3e-3, batch_size=3, warmup_ratio=0.34, max_grad_norm=0.5, dtype="float64")


@pytest.fixture
def trained(undisturbed):
    return undisturbed(MEMBERS)[0]


def score(base, scored, weights, members=MEMBERS, **options):
    runs = [(PackRun(*member), flat) for member, flat in zip(members, weights, strict=True)]
    return score_adapters(base.model, base.partition, runs, list(scored(4)()), RECIPE, **options)


@pytest.mark.parametrize("width", [1, 4])
def test_weights_at_the_end_score_what_training_measured_there(base, scored, trained, width):
    found = score(base, scored, trained.weights, width=width)
    measured = [run.checkpoints[-1] for run in trained.runs]
    # fp64: only the order of sums differs
    assert [one.loss for one in found] == pytest.approx([one.val_loss for one in measured], rel=1e-9)
    assert [one.accuracy for one in found] == [one.val_accuracy for one in measured]


def test_adapters_of_zeros_score_as_the_base_model_does(base, scored, trained):
    zeros = [torch.zeros_like(flat) for flat in trained.weights]
    losses = [one.loss for one in score(base, scored, zeros)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-12)
    assert losses[0] != pytest.approx(trained.runs[0].checkpoints[-1].val_loss, rel=1e-3)


def test_one_modules_adapters_can_be_put_back(base, scored, trained):
    """Without its vision adapters the pair (2, 4) is the pair (0, 4) with the same LLM weights."""
    run = PackRun(RankPair(2, 4), 3)
    parts = by_group(trained.weights[0], run.layout(base.partition, RECIPE))
    without = flatten({group: torch.zeros_like(part) if group == "me" else part for group, part in parts.items()})
    alone = flatten({group: part for group, part in parts.items() if group != "me"})
    first = score(base, scored, [without], [(RankPair(2, 4), 3)])[0].loss
    second = score(base, scored, [alone], [(RankPair(0, 4), 3)])[0].loss
    assert first == pytest.approx(second, rel=1e-9)
    assert first != pytest.approx(trained.runs[0].checkpoints[-1].val_loss, rel=1e-6)


def test_weights_of_another_pair_are_refused(base, scored, trained):
    with pytest.raises(ValueError, match=r"weights of .*\(2, 4\).* give the flat weights of the same pair|expected"):
        score(base, scored, [trained.weights[1][:-1]], [MEMBERS[0]])


def test_nothing_to_score_on_is_refused(base, trained):
    with pytest.raises(ValueError, match="at least one batch"):
        score_adapters(base.model, base.partition, [(PackRun(*MEMBERS[0]), trained.weights[0])], [], RECIPE)
