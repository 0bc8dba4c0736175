"""`tasks.final.worker` where accelerate believes that CPU processes over gloo are devices it may shard over.

Accelerate shards on GPUs only; on a CPU it leaves FSDP's settings aside. PyTorch's FSDP2 itself runs on a CPU, so with
these two answers changed, everything else is what GPUs would run.
"""

from __future__ import annotations

from accelerate.state import DistributedType, PartialState

from tasks.final.worker import main


def _prepare_backend(self, *args, **kwargs):
    return "gloo", DistributedType.MULTI_GPU


def _set_device(self):
    import torch

    self.device = torch.device("cpu")


if __name__ == "__main__":
    PartialState._prepare_backend = _prepare_backend
    PartialState.set_device = _set_device
    main()
