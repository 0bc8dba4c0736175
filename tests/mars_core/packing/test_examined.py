"""A model is examined once for a batch, and again where either has changed."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch

from mars_core.packing import examine as module
from mars_core.packing.examine import examine, examined


@pytest.fixture
def own(base):
    """A model that a test may change."""
    return replace(base, model=copy.deepcopy(base.model))


@pytest.fixture
def asked(monkeypatch):
    """The batches that were examined for real."""
    batches = []

    def noted(model, partition, batch):
        batches.append(batch)
        return examine(model, partition, batch)

    monkeypatch.setattr(module, "examine", noted)
    return batches


def test_the_same_batch_is_examined_once(own, batch_of, asked):
    found = [examined(own.model, own.partition, batch_of(0, 1)) for _ in range(2)]
    assert found == [examine(own.model, own.partition, batch_of(0, 1))] * 2
    assert len(asked) == 1


def test_another_batch_is_examined_too(own, batch_of, asked):
    batch = batch_of(0, 1)
    examined(own.model, own.partition, batch)
    examined(own.model, own.partition, batch_of(0, 2))
    examined(own.model, own.partition, batch | {"pixel_values": batch["pixel_values"] + 1})
    assert len(asked) == 3


def test_a_changed_model_is_examined_again(own, batch_of, asked):
    batch = batch_of(0, 1)
    head = own.model.get_output_embeddings()
    forward = head.forward

    def other_weights():
        with torch.no_grad():
            head.weight.add_(1)

    def another_forward():
        head.forward = lambda hidden: forward(hidden)

    def another_attention():
        own.model.set_attn_implementation("eager")

    for change in (lambda: None, other_weights, another_forward, another_attention):
        change()
        examined(own.model, own.partition, batch)
    assert len(asked) == 4


def test_what_is_known_of_a_model_does_not_keep_it(base, batch_of, asked):
    model = copy.deepcopy(base.model)
    model.forward = model.forward  # as accelerate leaves it
    examined(model, base.partition, batch_of(0, 1))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
