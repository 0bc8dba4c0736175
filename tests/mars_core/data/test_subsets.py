from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_core.data.subsets import nested_order, power_of_two_sizes

tasks = st.lists(st.sampled_from("aaaaaabbbccdefgh"), min_size=1, max_size=200)


@given(tasks, st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_every_prefix_has_the_task_mixture_of_the_whole(tasks, seed):
    order = nested_order(tasks, seed)
    assert sorted(order) == list(range(len(tasks)))
    whole, taken = Counter(tasks), Counter()
    for k, index in enumerate(order, start=1):
        taken[tasks[index]] += 1
        assert all(abs(taken[task] - whole[task] * k / len(tasks)) < 1 for task in whole)


@given(tasks, st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_the_order_depends_on_tasks_and_seed_alone(tasks, seed):
    assert nested_order(tasks, seed) == nested_order(list(tasks), seed)


def test_the_seed_shuffles_within_task_types():
    tasks = ["a", "b"] * 50
    one, other = nested_order(tasks, 1), nested_order(tasks, 2)
    assert one != other
    assert [tasks[index] for index in one] == [tasks[index] for index in other]
    assert one[:20] != sorted(one[:20])


def test_no_samples_have_no_order():
    assert nested_order([], 0) == []


def test_sizes_are_all_powers_of_two_between():
    sizes = power_of_two_sizes(8, 128, available=1000)
    assert sizes.sizes == (8, 16, 32, 64, 128)
    assert not sizes.capped


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 6000))
def test_sizes_stop_at_the_data_and_say_so(low, high, available):
    smallest, largest = 2 ** min(low, high), 2 ** max(low, high)
    if available < smallest:
        with pytest.raises(ValueError, match=f"has {available} samples, fewer than the smallest"):
            power_of_two_sizes(smallest, largest, available)
        return
    sizes = power_of_two_sizes(smallest, largest, available)
    assert list(sizes.sizes) == [2**n for n in range(13) if smallest <= 2**n <= min(largest, available)]
    assert sizes.capped == (available < largest)
    if sizes.capped:
        assert sizes.message == (
            f"the training set has {available} samples: the largest calibration size is {sizes.sizes[-1]} "
            f"instead of {largest}"
        )


@pytest.mark.parametrize(
    ("smallest", "largest", "message"),
    [
        (6, 8, "the smallest calibration size must be a power of two, got 6"),
        (8, 0, "the largest calibration size must be a power of two, got 0"),
        (-8, 8, "must be a power of two, got -8"),
        (16, 8, r"the smallest calibration size \(16\) exceeds the largest \(8\): swap them"),
    ],
)
def test_impossible_sizes_are_refused(smallest, largest, message):
    with pytest.raises(ValueError, match=message):
        power_of_two_sizes(smallest, largest, available=100)
