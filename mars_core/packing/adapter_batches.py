"""Runs into adapter batches, adapter batches into threads, and narrower adapter batches where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any, TypeVar

import torch

from mars_core.packing.cores import usable_cores
from mars_core.packing.run import TrainedRun, adapter_batch_order, forget_gradient

Result = TypeVar("Result")
Runs = Sequence[TrainedRun]


@dataclass(frozen=True)
class AdapterBatches:
    """How a pack goes through the model.

    width: most runs in one forward pass; it bounds the memory for activations. at_once: adapter batches trained at
    the same time, each in a thread of its own with its share of the cores (1 on a GPU). score_width: most runs in
    one pass of an evaluation, which keeps other things in memory; None for as many as in training.
    """

    width: int = 2
    at_once: int = 1
    score_width: int | None = None


DEFAULT_ADAPTER_BATCHES = AdapterBatches()


@dataclass
class Width:
    """Most runs of an adapter batch at present; it shrinks where memory runs out."""

    runs: int


@dataclass(frozen=True)
class Executor:
    """Threads that work on adapter batches.

    run: calls a function on every item, in the threads, and gives its results in order. at_once: how many threads.
    """

    run: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
    at_once: int


@contextmanager
def executor_of(at_once: int) -> Iterator[Executor]:
    """So many threads, each with its share of the cores; one is the calling thread itself."""
    if at_once == 1:
        yield Executor(lambda work, items: [work(item) for item in items], 1)
        return
    before = torch.get_num_threads()
    share = max(1, usable_cores() // at_once)
    with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(share,)) as pool:
        try:
            yield Executor(lambda work, items: list(pool.map(work, items)), at_once)
        finally:
            torch.set_num_threads(before)


def split_into_adapter_batches(runs: Runs, width: int, at_once: int) -> list[Runs]:
    """Adapter batches of nearly equal size, no wider than `width`, one or more for every thread if runs suffice.

    Runs without vision adapters go together, so that they share its features.
    """
    ordered = sorted(runs, key=lambda one: adapter_batch_order(one.run))
    frozen = sum(one.run.pair.r_me == 0 for one in ordered)
    narrow = max(1, min(width, ceil(len(ordered) / at_once)))
    return [adapter_batch for part in (ordered[:frozen], ordered[frozen:]) for adapter_batch in _evenly(part, narrow)]


def _evenly(runs: Runs, width: int) -> list[Runs]:
    count = ceil(len(runs) / width)
    bounds = [round(len(runs) * number / count) for number in range(count + 1)] if count else []
    return [runs[start:stop] for start, stop in pairwise(bounds)]


def over_adapter_batches(runs: Runs, width: Width, executor: Executor, work: Callable[[Runs], Result]) -> list[Result]:
    """Do `work` on every adapter batch. Where memory runs out, they are narrowed and done again, one at a time.

    `work` must leave an adapter batch as it was when it fails, but for gradients, which are zeroed here.

    Raises:
        MemoryError: one run by itself does not fit.
    """
    adapter_batches = split_into_adapter_batches(runs, width.runs, executor.at_once)
    results = executor.run(lambda adapter_batch: _attempt(work, adapter_batch), adapter_batches)
    done = [result for fits, result in results if fits]
    failed = [adapter_batch for adapter_batch, (fits, _) in zip(adapter_batches, results, strict=True) if not fits]
    if any(len(adapter_batch) > 1 for adapter_batch in failed):
        width.runs = max(1, max(map(len, failed)) // 2)
    while failed:
        adapter_batch = failed.pop()
        _make_room(adapter_batch)
        for part in _evenly(adapter_batch, width.runs):
            fits, result = _attempt(work, part)
            if fits:
                done.append(result)
            elif len(part) == 1:
                raise MemoryError(
                    "out of memory with a single run: lower micro_batch_size (samples per forward pass in training) or "
                    "evaluation_batch_size"
                )
            else:
                width.runs = max(1, len(part) // 2)
                failed.append(part)
    return done


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused: PyTorch's for GPUs raises its own class, the CPU's a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _attempt(work: Callable[[Runs], Result], adapter_batch: Runs) -> tuple[bool, Any]:
    try:
        return True, work(adapter_batch)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return False, None
        raise


def _make_room(adapter_batch: Runs) -> None:
    for one in adapter_batch:
        forget_gradient(one)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
