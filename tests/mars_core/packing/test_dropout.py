from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.packing.train import refuse_dropout
from mars_core.ranks import RankPair

MEMBERS = [(RankPair(2, 4), 3), (RankPair(4, 2), 4)]


class FromGenerator(torch.nn.Module):
    """Dropout whose masks come from a generator of its own."""

    def __init__(self, probability: float, generator: torch.Generator) -> None:
        super().__init__()
        self.keep, self.generator = 1 - probability, generator

    def forward(self, x):
        if not self.training:
            return x
        rows = x.reshape(-1, x.shape[-1])
        mask = torch.empty_like(rows).bernoulli_(self.keep, generator=self.generator).div_(self.keep)
        return x * mask.view(x.shape)


@pytest.fixture
def equal_lengths(batch_of):
    """Steps of batches without padding, whose rows are those of a plain run, place by place."""
    return [[batch_of(row)] for row in (0, 1, 4, 5, 7)]


def test_a_run_with_dropout_is_its_plain_run_with_the_same_masks(pack, plain, base, equal_lengths, scored):
    """A member draws its masks from a generator seeded with its seed, layer by layer: peft given that generator
    must give the same run, to the tolerance of the runs without dropout."""
    recipe = replace(plain.recipe, lora_dropout=0.3)

    def prepare(seed):
        def replace_dropout(model):
            generator = torch.Generator().manual_seed(seed)
            for module in model.modules():
                if hasattr(module, "lora_dropout"):
                    module.lora_dropout["default"] = FromGenerator(0.3, generator)

        return replace_dropout

    result, weights = pack(MEMBERS, recipe=recipe, train_steps=lambda done: equal_lengths[done:])
    for number, (pair, seed) in enumerate(MEMBERS):
        expected = list(plain.run(base, pair, seed, equal_lengths, scored(8), prepare=prepare(seed)))
        for checkpoint in result.runs[number].checkpoints:
            assert checkpoint.val_loss == pytest.approx(expected[checkpoint.step - 1][1], rel=1e-8)
        for name, tensor in weights[5][number].items():
            torch.testing.assert_close(tensor, expected[4][4][name], rtol=1e-6, atol=1e-8)


def test_neighbours_do_not_change_the_masks(pack, plain):
    recipe = replace(plain.recipe, lora_dropout=0.3)
    alone = pack(MEMBERS[:1], recipe=recipe)[0].runs[0]
    beside = pack([(RankPair(8, 8), 9), MEMBERS[1], MEMBERS[0]], recipe=recipe, adapter_batches=AdapterBatches(3, 1))[
        0
    ].runs[2]
    assert [c.val_loss for c in beside.checkpoints] == pytest.approx([c.val_loss for c in alone.checkpoints], rel=1e-9)


def test_dropout_of_the_base_model_is_refused(make_llava_with_dropout):
    with pytest.raises(ValueError, match=r"drops out 10% in model\.language_model.*set that dropout to 0"):
        refuse_dropout(make_llava_with_dropout(0.1))
    refuse_dropout(make_llava_with_dropout(0.0))


@pytest.fixture
def make_llava_with_dropout(base):
    """The backbone's configuration with another attention dropout in its language model."""

    def make(probability: float):
        config = copy.deepcopy(base.model.config)
        config.text_config.attention_dropout = probability
        return type(base.model)(config)

    return make
