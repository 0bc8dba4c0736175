"""Running out of memory outside of packs, which make room by themselves: what to lower, not a library's error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mars_core.packing.adapter_batches import is_out_of_memory

FINAL_RUN = (
    "lower micro_batch_size (samples per forward pass; the batch stays as it is) or evaluation_batch_size, or set "
    "loading.gradient_checkpointing. The same command goes on from the last checkpoint"
)
EVALUATION = "lower evaluation_batch_size (rows per forward pass; scores stay as they are up to rounding)"
LOADING = "use recipe.dtype bfloat16, loading.four_bit, or a device with more memory"


@contextmanager
def out_of_memory(where: str, remedy: str) -> Iterator[None]:
    """Say of an allocation that fails in the block where it failed, and what to do.

    Raises:
        MemoryError: an allocator refused.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(error):
            raise
        raise MemoryError(f"{where} ran out of memory: {remedy}") from error
