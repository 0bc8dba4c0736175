"""Out of memory where no pack makes room by itself: what to lower is said, and lowering it is enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from flows.stages import evaluate_flow, finetune_flow
from tasks.final.evaluate import read_evaluation
from tasks.inputs import base_model
from tasks.settings.final import FinalConfig
from tasks.settings.study import read_study
from tasks.storage.folder import Revision


@contextmanager
def room_for(rows: int) -> Iterator[None]:
    """A device on which a forward pass of more rows does not fit."""

    def look(module: nn.Module, given: tuple[object, ...]) -> None:
        if isinstance(module, nn.Embedding) and isinstance(given[0], torch.Tensor) and len(given[0]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.slow
def test_a_final_run_that_does_not_fit_says_what_to_lower_and_then_fits(study):
    config = read_study(study).model_copy(update={"final": FinalConfig(epochs=0.2), "evaluation_batch_size": 2})
    with room_for(2):
        with pytest.raises(MemoryError, match="the final run ran out of memory: lower micro_batch_size"):
            finetune_flow(config, 2, 4, "asked for")
        adapter = finetune_flow(config.model_copy(update={"micro_batch_size": 2}), 2, 4, "asked for")
    assert list(Path(adapter).glob("*.safetensors"))


@pytest.mark.slow
def test_an_evaluation_that_does_not_fit_says_what_to_lower_and_then_scores_the_same(copied):
    revision = Revision(Path(copied.study), 1)
    before = read_evaluation(revision)["chosen"].overall.loss
    revision.path("evaluation.json").unlink()
    with room_for(3):
        with pytest.raises(MemoryError, match="the evaluation ran out of memory: lower evaluation_batch_size"):
            evaluate_flow(copied)
        assert not revision.path("evaluation.json").exists()
        evaluate_flow(copied.model_copy(update={"evaluation_batch_size": 3}))
    # The same sums in batches of another size: rounding of single precision.
    assert read_evaluation(revision)["chosen"].overall.loss == pytest.approx(before, rel=1e-5)


def test_a_base_model_that_does_not_fit_says_so(study, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(base_model, "load_base", full)
    with pytest.raises(MemoryError, match=r"loading the base model ran out of memory: use recipe\.dtype bfloat16"):
        base_model.load_study_base(read_study(study), torch.device("cpu"), torch.float32)
