"""Members into lanes, lanes into threads, and narrower lanes where memory runs out."""

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
from mars_core.packing.member import TrainedMember, forget_gradient, lane_order

Result = TypeVar("Result")
Members = Sequence[TrainedMember]


@dataclass(frozen=True)
class Lanes:
    """How a pack goes through the model.

    width: most members in one forward pass; it bounds the memory for activations. at_once: lanes trained at the same
    time, each in a thread of its own with its share of the cores (1 on a GPU). score_width: most members in one pass of
    an evaluation, which keeps other things in memory; None for as many as in training.
    """

    width: int = 2
    at_once: int = 1
    score_width: int | None = None


DEFAULT_LANES = Lanes()


@dataclass
class Width:
    """Most members of a lane at present; it shrinks where memory runs out."""

    members: int


@dataclass(frozen=True)
class Crew:
    """Threads that work on lanes. run: does some work on every item, in the threads. at_once: how many there are."""

    run: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
    at_once: int


@contextmanager
def crew_of(at_once: int) -> Iterator[Crew]:
    """So many threads, each with its share of the cores; one is the calling thread itself."""
    if at_once == 1:
        yield Crew(lambda work, items: [work(item) for item in items], 1)
        return
    before = torch.get_num_threads()
    share = max(1, usable_cores() // at_once)
    with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(share,)) as pool:
        try:
            yield Crew(lambda work, items: list(pool.map(work, items)), at_once)
        finally:
            torch.set_num_threads(before)


def split_into_lanes(members: Members, width: int, at_once: int) -> list[Members]:
    """Lanes of nearly equal size, no wider than `width`, and as many as there are threads if there are members enough.

    Members without vision adapters go together, so that they share its features.
    """
    ordered = sorted(members, key=lambda one: lane_order(one.member))
    frozen = sum(one.member.pair.r_me == 0 for one in ordered)
    narrow = max(1, min(width, ceil(len(ordered) / at_once)))
    return [lane for part in (ordered[:frozen], ordered[frozen:]) for lane in _evenly(part, narrow)]


def _evenly(members: Members, width: int) -> list[Members]:
    count = ceil(len(members) / width)
    bounds = [round(len(members) * number / count) for number in range(count + 1)] if count else []
    return [members[start:stop] for start, stop in pairwise(bounds)]


def over_lanes(members: Members, width: Width, crew: Crew, work: Callable[[Members], Result]) -> list[Result]:
    """Do `work` on every lane. Where memory runs out, the lane is narrowed and its work done again, one lane at a time.

    `work` must leave a lane as it was when it fails, but for gradients, which are zeroed here.

    Raises:
        MemoryError: one member by itself does not fit.
    """
    lanes = split_into_lanes(members, width.members, crew.at_once)
    results = crew.run(lambda lane: _attempt(work, lane), lanes)
    done = [result for fits, result in results if fits]
    failed = [lane for lane, (fits, _) in zip(lanes, results, strict=True) if not fits]
    if any(len(lane) > 1 for lane in failed):
        width.members = max(1, max(map(len, failed)) // 2)
    while failed:
        lane = failed.pop()
        _make_room(lane)
        for part in _evenly(lane, width.members):
            fits, result = _attempt(work, part)
            if fits:
                done.append(result)
            elif len(part) == 1:
                raise MemoryError(
                    "out of memory with a single run: lower micro_batch_size (samples per forward pass in training) or "
                    "evaluation_batch_size"
                )
            else:
                width.members = max(1, len(part) // 2)
                failed.append(part)
    return done


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused: PyTorch's for GPUs raises its own class, the CPU's a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _attempt(work: Callable[[Members], Result], lane: Members) -> tuple[bool, Any]:
    try:
        return True, work(lane)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return False, None
        raise


def _make_room(lane: Members) -> None:
    for one in lane:
        forget_gradient(one)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
