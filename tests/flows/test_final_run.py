"""What a final run makes sure of, and what that takes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from flows.stages import finetune_flow
from mars_core.evaluation.answer_loss import IGNORE
from mars_core.ranks import RankPair
from tasks.final.arm import Arm
from tasks.final.record import read_final
from tasks.inputs.opened import Inputs
from tasks.settings.final import FinalConfig
from tasks.settings.study import read_study
from tasks.storage.folder import Revision


def test_the_check_of_what_was_saved_takes_no_more_memory_than_training(study):
    """One sample at a time everywhere, and the output head sees its answer tokens alone."""
    config = read_study(study).model_copy(
        update={"final": FinalConfig(epochs=0.2), "micro_batch_size": 1, "evaluation_batch_size": 1}
    )
    vocabulary = Inputs(config).final_base_model.model.get_output_embeddings().out_features
    splits = (Inputs(config).training_set, Inputs(config).validation_set)
    samples = [split[number] for split in splits for number in range(len(split))]
    most = max(int((sample.labels != IGNORE).sum()) for sample in samples)
    rows: list[int] = []

    def look(module: nn.Module, _: object, output: object) -> None:
        if isinstance(module, nn.Linear) and isinstance(output, torch.Tensor) and output.shape[-1] == vocabulary:
            rows.append(output.numel() // vocabulary)

    handle = register_module_forward_hook(look)
    try:
        finetune_flow(config, 2, 4, "asked for")
    finally:
        handle.remove()
    # The first pass looks, before anything is trained, whether the forward pass uses every layer.
    assert 0 < max(rows[1:]) <= most
    record = read_final(Revision(Path(config.study), 1), Arm(RankPair(2, 4)))
    assert record.reload_difference == 0.0  # the same weights in the same kernels
