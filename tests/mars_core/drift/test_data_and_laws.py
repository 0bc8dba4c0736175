"""What changed in data and laws, and how the report says it."""

from __future__ import annotations

import json

from mars_core.drift import (
    ChoiceDrift,
    DataSnapshot,
    LawSummary,
    Night,
    ValidationScore,
    compare_data,
    compare_laws,
    judge_final,
    night_as_markdown,
)


def snapshot(train: str, validation: str, test: str = "") -> DataSnapshot:
    """Samples are letters; capitals are questions, the others captions."""
    samples = {"train": list(train), "validation": list(validation), "test": list(test)}
    tasks = {
        split: {
            name: count
            for name, count in (
                ("question", sum(letter.isupper() for letter in letters)),
                ("caption", sum(letter.islower() for letter in letters)),
            )
            if count
        }
        for split, letters in samples.items()
    }
    return DataSnapshot(f"{train}/{validation}/{test}", dict.fromkeys(samples, ""), tasks, samples)


def test_samples_that_came_went_and_moved_are_counted():
    drift = compare_data(snapshot("abcD", "ef"), snapshot("abEfe", "gD"))
    train, validation, _ = drift.splits
    assert (train.before, train.now, train.added, train.removed, train.from_other_splits) == (4, 5, 3, 2, 2)
    assert (validation.before, validation.now, validation.added, validation.removed) == (2, 2, 2, 2)
    assert validation.from_other_splits == 1  # D was in train
    assert [(t.split, t.task, t.before, t.now) for t in drift.tasks] == [
        ("train", "caption", 3, 4),
        ("validation", "caption", 2, 1),
        ("validation", "question", 0, 1),
    ]


def test_a_sample_that_stands_twice_counts_twice():
    train = compare_data(snapshot("aab", "c"), snapshot("abb", "c")).splits[0]
    assert (train.added, train.removed) == (1, 1)


def test_snapshot_survives_json():
    one = snapshot("aB", "c", "D")
    assert DataSnapshot.from_json(json.loads(json.dumps(one.to_json()))) == one


def law(name: str = "convergence", **intervals: tuple[float, float]) -> LawSummary:
    return LawSummary(name, {symbol: sum(bounds) / 2 for symbol, bounds in intervals.items()}, intervals)


def test_intervals_that_do_not_meet_are_apart():
    before, now = law(k=(1, 2), gamma=(-0.5, -0.1)), law(k=(2.5, 3), gamma=(-0.3, 0.0))
    k, gamma = compare_laws({"me": before}, {"me": now})
    assert (k.apart, gamma.apart) == (True, False)


def test_coefficients_of_another_form_are_not_compared():
    before, now = law("performance", A=(1, 2), E=(0, 1)), law("performance_no_floor", A=(5, 6))
    drifts = {drift.symbol: drift for drift in compare_laws({"performance": before}, {"performance": now})}
    assert not any(drift.apart for drift in drifts.values())
    assert drifts["E"].now is None


def test_a_law_that_is_missing_is_shown_as_missing():
    (k,) = compare_laws({"llm": None}, {"llm": law(k=(1, 2))})
    assert (k.before, k.now) == (None, 1.5)


def test_report_says_what_drifted_and_a_task_type_cannot_break_its_tables():
    before, now = snapshot("ab", "c"), snapshot("abX", "c")
    now = DataSnapshot(now.data_hash, now.hashes, {**now.tasks, "train": {"caption": 2, "a|b\nc": 1}}, now.samples)
    night = Night(
        study="shop",
        revision=2,
        changes=["data_hash was 'x' and is 'y'"],
        trained=4,
        adopted=1,
        compared_with="the champion (revision 1)",
        data=compare_data(before, now),
        laws=compare_laws({"me": law(k=(1, 2))}, {"me": law(k=(3, 4))}),
        choice=ChoiceDrift((8, 8), (8, 8), "same pair", "The champion's pair was chosen again.", 0.0025),
    )
    text = night_as_markdown(night, "No final run is needed.")
    assert "| train | 2 | 3 | 1 | 0 | 0 |" in text
    assert "| train | a\\|b c | 0 | 1 |" in text
    assert "| law C, vision encoder | k | 1.5 (1 to 2) | 3.5 (3 to 4) | apart |" in text
    assert "4 trained tonight, 1 taken over" in text
    assert json.loads(json.dumps(night.to_json()))["choice"]["verdict"] == "same pair"


def test_a_final_run_is_accepted_only_if_its_validation_loss_is_lower():
    assert judge_final(ValidationScore(1.0, 1.1, 500, 500)).accepted
    assert not judge_final(ValidationScore(1.1, 1.1, 500, 500)).accepted
    assert "60 of 500" in judge_final(ValidationScore(1.0, 1.1, 60, 500)).reason
