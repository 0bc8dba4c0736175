from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_core.data.records import BytesImage, Sample, Source, Turn
from mars_core.data.splits import join_splits, split_samples

TURNS = (Turn("user", "q"), Turn("assistant", "a"))


def dataset(rows: list[tuple[list[int], str]]) -> list[Sample]:
    """Samples from (numbers of their images, task type); equal numbers are the same image."""
    return [
        Sample(
            str(row),
            tuple(BytesImage(str(number).encode(), f"{row}-{number}") for number in numbers),
            TURNS,
            task,
            Source(Path("d.json"), row),
        )
        for row, (numbers, task) in enumerate(rows, start=1)
    ]


def parts(splits) -> dict[str, tuple[Sample, ...]]:
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def images_of(samples) -> set[bytes]:
    return {image.data for sample in samples for image in sample.images}


rows = st.lists(
    st.tuples(st.lists(st.integers(0, 40), max_size=3), st.sampled_from(["a", "b", "c"])), min_size=12, max_size=80
)


@given(rows, st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_samples_are_kept_once_and_images_stay_together(rows, seed):
    samples = dataset(rows)
    try:
        splits = split_samples(samples, seed=seed, validation_size=4, test_size=3)
    except ValueError as error:
        assert "can be held out" in str(error)  # noqa: PT017 - one group of shared images may hold nearly all
        return
    ids = [sample.id for part in parts(splits).values() for sample in part]
    assert sorted(ids) == sorted(sample.id for sample in samples)
    for one, other in combinations(parts(splits).values(), 2):
        assert not images_of(one) & images_of(other)
    assert 1 <= len(splits.validation) <= 4
    assert 1 <= len(splits.test) <= 3
    assert len(splits.notes) == (len(splits.validation) < 4) + (len(splits.test) < 3)


@given(st.integers(40, 200), st.randoms(use_true_random=False), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_without_shared_images_every_part_is_stratified(n, random, seed):
    tasks = random.choices("abcd", k=n)
    samples = dataset([([row], task) for row, task in enumerate(tasks)])
    splits = split_samples(samples, seed=seed, validation_size=15, test_size=10)
    assert (len(splits.validation), len(splits.test), splits.notes) == (15, 10, ())
    whole = Counter(tasks)
    for part in parts(splits).values():
        counts = Counter(sample.task for sample in part)
        for task in whole:
            assert abs(counts[task] - whole[task] * len(part) / len(tasks)) < 2


def test_the_seed_decides():
    samples = dataset([([row], "a") for row in range(100)])
    one, same, other = (split_samples(samples, seed=s, validation_size=20, test_size=20) for s in (1, 1, 2))
    assert one == same
    assert one.validation != other.validation


@given(st.integers(300, 400), st.randoms(use_true_random=False), st.integers(1, 30), st.booleans())
@settings(max_examples=30, deadline=None)
def test_what_was_trained_on_is_not_tested_on_when_data_are_added_anywhere(n, random, added, at_the_front):
    tasks = random.choices("abc", k=n)
    before = dataset([([row], task) for row, task in enumerate(tasks)])
    more = dataset([([1000 + row], "abc"[row % 3]) for row in range(added)])
    whole = [*more, *before] if at_the_front else [*before, *more]
    old, new = (split_samples(samples, seed=0, validation_size=60, test_size=40) for samples in (before, whole))
    assert not images_of(old.train) & images_of(new.test)
    # The mixture of three tasks may shift each part's share of a task, by rounding and by what was added.
    moved = images_of(old.train) & images_of(new.validation)
    assert len(moved) <= added
    assert len(images_of(old.test) - images_of(new.test)) <= added + 3


def test_texts_without_images_are_split_by_what_they_say():
    samples = [
        Sample(str(row), (), (Turn("user", f"q{row}"), Turn("assistant", "a")), "t", Source(Path("d.json"), row))
        for row in range(100)
    ]
    splits = split_samples(samples, seed=0, validation_size=20, test_size=20)
    moved = split_samples(samples[::-1], seed=0, validation_size=20, test_size=20)
    assert {sample.id for sample in splits.test} == {sample.id for sample in moved.test}
    assert {sample.id for sample in splits.validation} == {sample.id for sample in moved.validation}


def test_parts_keep_the_order_of_the_file():
    samples = dataset([([row], "ab"[row % 2]) for row in range(60)])
    splits = split_samples(samples, seed=0, validation_size=10, test_size=10)
    for part in parts(splits).values():
        assert [sample.source.row for sample in part] == sorted(sample.source.row for sample in part)


def test_images_that_hang_together_through_others_stay_together():
    chain = [([row, row + 1], "a") for row in range(10)]
    samples = dataset(chain + [([row], "a") for row in range(100, 130)])
    splits = split_samples(samples, seed=0, validation_size=5, test_size=5)
    assert {sample.id for sample in samples[:10]} <= {sample.id for sample in splits.train}


def test_too_few_samples_are_refused():
    samples = dataset([([row], "a") for row in range(10)])
    with pytest.raises(ValueError, match="has 10 samples, but 500 are to be held out for validation and 500"):
        split_samples(samples, seed=0)
    with pytest.raises(ValueError, match="expected at least 1 validation and 0 test samples, got 0 and 0"):
        split_samples(samples, seed=0, validation_size=0, test_size=0)


def test_one_image_for_all_cannot_be_split():
    samples = dataset([([1], "a")] * 20)
    with pytest.raises(ValueError, match=r"no samples can be held out for .*give a separate .* file"):
        split_samples(samples, seed=0, validation_size=4, test_size=4)


def test_no_test_part_is_fine():
    splits = split_samples(dataset([([r], "a") for r in range(20)]), seed=0, validation_size=4, test_size=0)
    assert (len(splits.train), len(splits.validation), splits.test, splits.notes) == (16, 4, (), ())


def test_a_part_that_falls_short_is_noted():
    samples = dataset([([row // 3], "a") for row in range(60)])
    splits = split_samples(samples, seed=0, validation_size=7, test_size=3)
    assert len(splits.validation) == 6
    assert splits.notes == ("validation has 6 samples instead of 7, to keep shared images together",)


def test_given_parts_are_taken_as_they_are():
    train, validation, test = (dataset([([number], "a")]) for number in range(3))
    splits = join_splits(train, validation, test)
    assert (splits.train, splits.validation, splits.test) == (tuple(train), tuple(validation), tuple(test))


def test_given_parts_that_share_images_are_refused():
    train, validation = dataset([([1, 2], "a"), ([3], "a")]), dataset([([2], "a"), ([3], "a")])
    message = r"(?s)2 images stand in more than one split.*train \(d\.json, row 1, 1-2\) and validation .*remove their"
    with pytest.raises(ValueError, match=message):
        join_splits(train, validation)


def test_given_parts_must_hold_something():
    samples = dataset([([1], "a")])
    with pytest.raises(ValueError, match="the train data has no samples"):
        join_splits([], samples)
    with pytest.raises(ValueError, match="the validation data has no samples"):
        join_splits(samples, [])
