from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mars_core.data.subsets import nested_order

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
