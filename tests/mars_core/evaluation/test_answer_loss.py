from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.nn import functional

from mars_core.evaluation.answer_loss import answer_logits, token_losses
from mars_core.models.lora import add_adapters, remove_adapters
from mars_core.ranks import RankPair

# One row; unequal lengths; several turns; several images; text only; all of them together.
BATCHES = [(0,), (0, 4), (1, 6), (2, 0), (3,), (3, 1), (0, 1, 2, 3, 4)]


@pytest.fixture
def wrapped(base, random_adapters):
    model = add_adapters(base.model, base.partition, RankPair(2, 4), seed=0).eval()
    random_adapters(model)
    yield model
    remove_adapters(model)


def dense_losses(model, batch):
    """Every answer token's loss, one token at a time, from the model's own logits at every position."""
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    losses = []
    for row, labels in enumerate(batch["labels"].tolist()):
        for place in range(1, len(labels)):
            if labels[place] != -100:
                losses.append(-torch.log_softmax(logits[row, place - 1], dim=0)[labels[place]])
    return torch.stack(losses)


@pytest.mark.parametrize("rows", BATCHES, ids=str)
def test_losses_are_those_of_all_logits_in_reading_order(wrapped, batch_of, rows):
    batch = batch_of(*rows)
    with torch.no_grad():
        # fp64; the head's product over fewer rows may sum in another order.
        torch.testing.assert_close(token_losses(wrapped, batch), dense_losses(wrapped, batch), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rows", BATCHES, ids=str)
def test_their_mean_is_the_models_own_loss(wrapped, batch_of, rows):
    batch = batch_of(*rows)
    with torch.no_grad():
        own = wrapped(**batch).loss
        # transformers computes its loss in fp32 whatever the model's dtype: 1e-6 of a loss of a few nats.
        torch.testing.assert_close(token_losses(wrapped, batch).mean(), own.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows", [(1, 6), (3, 2, 0)], ids=str)
def test_gradients_are_those_of_all_logits(wrapped, batch_of, rows):
    batch = batch_of(*rows)
    parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    logits = wrapped(**{key: value for key, value in batch.items() if key != "labels"}).logits
    dense = functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    expected = torch.autograd.grad(dense, parameters)
    found = torch.autograd.grad(token_losses(wrapped, batch).mean(), parameters)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-12)  # fp64, sums in another order


def test_only_answer_tokens_reach_the_head(wrapped, batch_of):
    batch = batch_of(0, 1, 3)
    logits, targets = answer_logits(wrapped, batch)
    expected = [label for row in batch["labels"].tolist() for label in row[1:] if label != -100]
    assert targets.tolist() == expected
    assert logits.shape == (len(expected), wrapped.get_output_embeddings().out_features)


def test_the_head_works_as_before_afterwards(wrapped, batch_of):
    batch = batch_of(0, 1)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        before = wrapped(**inputs).logits
        token_losses(wrapped, batch)
        assert torch.equal(wrapped(**inputs).logits, before)
        with pytest.raises(RuntimeError, match="split_sizes"):
            token_losses(wrapped, batch | {"pixel_values": batch["pixel_values"][:, :1]})
        assert torch.equal(wrapped(**inputs).logits, before)


def test_a_label_on_the_first_token_is_never_predicted(wrapped, batch_of):
    batch = batch_of(0)
    labelled = batch["labels"].clone()
    labelled[0, 0] = batch["input_ids"][0, 0]
    with torch.no_grad():
        assert torch.equal(token_losses(wrapped, batch | {"labels": labelled}), token_losses(wrapped, batch))


def test_half_precision_models_get_losses_in_fp32(shared_base, batch_of):
    model = deepcopy(shared_base.model).to(torch.bfloat16)
    with torch.no_grad():
        losses = token_losses(model, batch_of(0, 1))
        reference = token_losses(shared_base.model, batch_of(0, 1))
    assert losses.dtype == torch.float32
    # bf16 keeps 8 bits: logits of order 10 move by some hundredths, and a loss with them.
    torch.testing.assert_close(losses.double(), reference, rtol=0.05, atol=0.25)
