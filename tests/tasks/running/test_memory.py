"""What an allocation that fails outside of packs is turned into."""

from __future__ import annotations

import pytest
import torch

from tasks.running.memory import out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError("Unable to allocate 20 GiB for an array"),  # NumPy's
    ],
)
def test_an_allocation_that_fails_says_where_and_what_to_lower(error):
    expected = pytest.raises(MemoryError, match="the evaluation ran out of memory: lower it")
    with expected as caught, out_of_memory("the evaluation", "lower it"):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory("the evaluation", "lower it"):
        raise RuntimeError("shapes do not fit")
