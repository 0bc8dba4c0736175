"""Peak memory of the training process."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_bytes() -> int:
    """Peak bytes allocated on the CUDA devices where they are used, else the process's peak resident set size."""
    if torch.cuda.is_available() and (allocated := sum(map(torch.cuda.max_memory_allocated, _devices()))):
        return int(allocated)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # Linux counts in KiB


def _devices() -> range:
    return range(torch.cuda.device_count())
