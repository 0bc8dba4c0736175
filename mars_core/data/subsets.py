"""Nested training subsets: one order whose every prefix has the task mixture of the whole.

symbol   meaning                                   shape
n        training samples                          ()
p_t      share of task type t among them           (number of task types,)
c_t(k)   samples of task type t among the first k  (number of task types,)

The order keeps |c_t(k) - p_t k| < 1 for every task type and every k, so each 2^n subset is stratified
and holds all smaller ones.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def nested_order(tasks: Sequence[str], seed: int) -> list[int]:
    """Order the training samples so that every prefix is stratified by task type.

    Within a task type the order is random; `seed` decides it. How many samples are later taken changes
    nothing: smaller subsets are prefixes of larger ones.

    Args:
        tasks: task type of each training sample, shape (n,).
        seed: seed of the order.

    Returns:
        A permutation of range(n).
    """
    queues = _shuffled_by_task(tasks, seed)
    names = list(queues)
    turns = stratified_turns([len(queues[name]) for name in names])
    iterators = [iter(queues[name]) for name in names]
    return [next(iterators[turn]) for turn in turns]


def stratified_turns(counts: Sequence[int]) -> list[int]:
    """Whose turn it is at each place, type t having counts[t] places, every prefix within 1 of its share.

    Tijdeman's algorithm (The chairman assignment problem, Discrete Mathematics 32, 1980): among the types
    that are far enough behind to be allowed, take the one that would first be too far behind.
    """
    n, m = sum(counts), len(counts)
    share = np.asarray(counts, dtype=np.int64)
    taken = np.zeros(m, dtype=np.int64)
    # All quantities are scaled by n * slack, so that they stay integers: ties break alike everywhere.
    slack = max(2 * m - 2, 1)
    turns = []
    for k in range(1, n + 1):
        behind = slack * (share * k - n * taken)
        allowed = (behind >= n) & (taken < share)
        due = np.where(allowed, (slack - 1) * n - behind, 0) / np.maximum(share, 1)
        turn = int(np.where(allowed, due, np.inf).argmin())
        taken[turn] += 1
        turns.append(turn)
    return turns


def _shuffled_by_task(tasks: Sequence[str], seed: int) -> dict[str, list[int]]:
    queues: dict[str, list[int]] = defaultdict(list)
    for index, task in enumerate(tasks):
        queues[task].append(index)
    for task, queue in queues.items():
        random.Random(f"{seed}/{task}").shuffle(queue)
    return {task: queues[task] for task in sorted(queues)}
