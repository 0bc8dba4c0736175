"""E, F and O against hand counts, their intervals against closed forms, failure signs, and the Pareto front."""

import itertools

import numpy as np
import pytest

from mars_core.evaluation.forgetting import Forgetting, TaskScores, failure_signs, measure, pareto_front


def task(name, kind, base, tuned, weights=None):
    base, tuned = np.asarray(base, dtype=float), np.asarray(tuned, dtype=float)
    return TaskScores(
        name, kind, "accuracy", base, tuned, np.ones(len(base)) if weights is None else np.asarray(weights)
    )


def answered(rng, share, n=400):
    return 100.0 * (rng.random(n) < share)


def test_e_f_and_o_are_the_reviews_means():
    found = measure(
        [
            task("target a", "target", [0, 100, 0, 0], [100, 100, 100, 0]),  # 25 -> 75
            task("target b", "target", [0, 0], [100, 0]),  # 0 -> 50
            task("text", "upstream", [100, 100, 100, 100], [100, 0, 100, 100]),  # 100 -> 75
            task("looks", "upstream", [100, 0], [100, 100]),  # 50 -> 100
        ]
    )
    assert found.E.value == pytest.approx((50 + 50) / 2)
    assert found.F.value == pytest.approx((25 - 50) / 2)
    assert found.O.value == pytest.approx(((75 + 50) / 2 + (75 + 100) / 2) / 2)


def test_samples_count_by_their_answers():
    found = measure([task("target", "target", [0, 100], [100, 100], [3, 1])])
    assert found.tasks[0].base.value == pytest.approx(25)
    assert found.E.value == pytest.approx(75)
    assert found.F is None
    assert found.O is None


def test_interval_of_a_change_is_that_of_paired_differences():
    rng = np.random.default_rng(0)
    base = answered(rng, 0.5)
    tuned = np.where(rng.random(400) < 0.1, 100.0, base)  # the same samples are right, and some more
    found = measure([task("target", "target", base, tuned)]).tasks[0]
    expected = 1.96 * np.std(tuned - base) / np.sqrt(400)
    assert (found.change.high - found.change.low) / 2 == pytest.approx(expected, rel=0.1)
    apart = 1.96 * np.sqrt((np.var(base) + np.var(tuned)) / 400)
    assert (found.change.high - found.change.low) / 2 < 0.7 * apart


def test_intervals_cover_the_true_forgetting():
    inside = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        tasks = [
            task(f"up {number}", "upstream", answered(rng, 0.8, 200), answered(rng, 0.7, 200)) for number in range(2)
        ]
        found = measure(tasks, n_draws=400, seed=trial)
        inside += found.F.low <= 10 <= found.F.high
    assert inside >= 52  # of 60 at 95%: fewer has a chance below 1%


def test_two_models_are_compared_on_the_same_resamples():
    rng = np.random.default_rng(0)
    base, tuned = answered(rng, 0.5), answered(rng, 0.6)
    one, other = (measure([task("t", "target", base, tuned)], seed=3) for _ in range(2))
    assert one.to_json() == other.to_json()
    assert Forgetting.from_json(one.to_json()).E == one.E


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: measure([]), "at least one task"),
        (lambda: measure([task("a", "target", [1], [1]), task("a", "upstream", [1], [1])]), "a name of its own"),
        (lambda: task("a", "target", [1, 2], [1]), "one shape"),
        (lambda: task("a", "target", [np.nan], [1]), "finite"),
        (lambda: task("a", "target", [1], [1], [0]), "weights positive"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def measured(target_change, upstream_share):
    rng = np.random.default_rng(0)
    base = answered(rng, 0.5, 1000)
    tuned = np.where(rng.random(1000) < target_change, 100.0, base)
    upstream = np.where(rng.random(1000) < upstream_share, 0.0, 100.0)
    return measure([task("t", "target", base, tuned), task("u", "upstream", np.full(1000, 100.0), upstream)])


@pytest.mark.parametrize(
    ("share", "expected"), [(0.1, []), (0.25, [("forgot", "warning")]), (0.4, [("forgot", "error")])]
)
def test_an_upstream_drop_of_20_to_30_percent_is_a_sign(share, expected):
    assert [(sign.code, sign.severity) for sign in failure_signs(measured(0.5, share))] == expected


def test_a_target_near_zero_shot_is_a_sign():
    rng = np.random.default_rng(0)
    base = answered(rng, 0.5)
    swapped = np.roll(base, 1)
    (sign,) = failure_signs(measure([task("t", "target", base, swapped)]))
    assert sign.code == "near_zero_shot"


def test_a_target_that_got_worse_is_an_error():
    base = answered(np.random.default_rng(0), 0.9)
    (sign,) = failure_signs(measure([task("t", "target", base, np.zeros(400))]))
    assert (sign.code, sign.severity) == ("target_got_worse", "error")
    assert f"lost {base.mean():.1f} points" in sign.message


NOISY = [0.2 if number % 2 else 0.4 for number in range(40)]


@pytest.mark.parametrize(
    ("losses", "codes"),
    [
        ([2.0, 1.0], []),
        ([2.0, 3.5], ["diverged"]),
        ([2.0, np.nan], ["diverged"]),
        ([3.0, 1.0, 0.2, 0.2, 2.9, 2.9], ["diverged"]),  # below the first loss, and all that was learned is lost
        ([3.0, 1.0, 0.2, 0.35], []),  # a little over-fitted
        (NOISY, []),  # batches differ, and their mean does not rise
        ([*NOISY[::-1]], []),
        ([0.8, 1.3] * 10 + [1.0], []),  # learned nothing, lost nothing
    ],
)
def test_a_rising_or_infinite_loss_is_a_sign(losses, codes):
    assert [sign.code for sign in failure_signs(measured(0.5, 0.0), losses)] == codes


def test_pareto_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    pairs = list(itertools.product((2, 4, 8, 16), repeat=2))
    target = {pair: float(rng.random()) for pair in pairs}
    upstream = {pair: float(rng.random()) for pair in pairs}
    found = {one.pair: one for one in pareto_front(target, upstream, 0.2, weight=0.5)}
    for pair in pairs:
        better = [
            other
            for other in pairs
            if other != pair and target[other] <= target[pair] and upstream[other] <= upstream[pair]
        ]
        assert found[pair].on_front == (not better)
        assert found[pair].weighted == pytest.approx(target[pair] + 0.5 * max(upstream[pair] - 0.2, 0))
    assert next(iter(found)) == min(found, key=lambda pair: found[pair].weighted)


def test_without_weight_the_best_is_the_lowest_target_loss():
    found = pareto_front({(2, 2): 1.0, (4, 4): 0.9, (8, 8): 0.8}, {(2, 2): 1.0, (4, 4): 2.0}, 1.0, weight=0.0)
    assert [one.pair for one in found] == [(4, 4), (2, 2)]
    assert all(one.on_front for one in found)


def test_a_front_needs_both_losses_and_a_weight_of_0_or_more():
    with pytest.raises(ValueError, match="no pair has both"):
        pareto_front({(2, 2): 1.0}, {(4, 4): 1.0}, 1.0, 0.0)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        pareto_front({(2, 2): 1.0}, {(2, 2): 1.0}, 1.0, -1.0)
