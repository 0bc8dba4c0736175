"""The engine on a CUDA device; what it computes is held against the CPU's."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from mars_core.packing.adapter_batches import AdapterBatches
from mars_core.ranks import RankPair

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MEMBERS = [(RankPair(2, 4), 3), (RankPair(8, 2), 3), (RankPair(0, 4), 5), (RankPair(4, 0), 3)]


def on_gpu(batch, dtype):
    return {
        name: value.to("cuda", dtype if value.is_floating_point() else value.dtype) for name, value in batch.items()
    }


@pytest.fixture
def gpu_pack(pack, plain, shared_base, micro_batches, scored):
    """Trains a pack on the GPU in a dtype."""

    def start(dtype, adapter_batches):
        base = replace(shared_base, model=copy.deepcopy(shared_base.model).to("cuda", dtype))
        recipe = replace(plain.recipe, dtype=str(dtype).removeprefix("torch."))
        steps = [[on_gpu(batch, dtype) for batch in step] for step in micro_batches]
        return pack(
            MEMBERS,
            base=base,
            adapter_batches=adapter_batches,
            recipe=recipe,
            train_steps=lambda done: steps[done:],
            validation=lambda: ((on_gpu(batch, dtype), tasks) for batch, tasks in scored(8)()),
        )

    return start


def test_double_precision_on_the_gpu_is_double_precision_on_the_cpu(pack, gpu_pack):
    """As the plain run on the CPU: sums in another order, 1e-8 after five steps; norms inside are fp32 on both."""
    expected, _ = pack(MEMBERS)
    for adapter_batches in (AdapterBatches(1, 1), AdapterBatches(4, 1)):
        found, _ = gpu_pack(torch.float64, adapter_batches)
        for one, other in zip(found.runs, expected.runs, strict=True):
            assert [c.val_loss for c in one.checkpoints] == pytest.approx(
                [c.val_loss for c in other.checkpoints], rel=1e-6
            )


def test_half_precision_on_the_gpu_does_not_depend_on_the_adapter_batch(gpu_pack):
    """bf16 products of other shapes round otherwise in the last of 8 bits; five steps of Adam stay within 5%."""
    alone, together = (
        gpu_pack(torch.bfloat16, adapter_batches)[0] for adapter_batches in (AdapterBatches(1, 1), AdapterBatches(4, 1))
    )
    for one, other in zip(together.runs, alone.runs, strict=True):
        assert [c.val_loss for c in one.checkpoints] == pytest.approx([c.val_loss for c in other.checkpoints], rel=0.05)
