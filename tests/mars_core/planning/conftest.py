"""The wide instances with a batch each."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from tests.mars_core.planning.wide_instances import ANSWERS, WIDE


@cache
def made(model_type):
    """A frozen model and its batch with labels, made once; to be copied."""
    torch.manual_seed(0)
    model, batch = WIDE[model_type]()
    labels = batch["input_ids"].clone()
    labels[:, :-ANSWERS] = -100
    return model.eval().requires_grad_(False), batch | {"labels": labels, "attention_mask": torch.ones_like(labels)}


@pytest.fixture(params=WIDE)
def wide(request):
    """(model type, frozen model, batch with labels)."""
    return request.param, *copy.deepcopy(made(request.param))
