import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_core.convergence import NoConvergenceTimes, convergence_times, relative_distance, steps_at_peak

STEPS = np.array([round(8 * 2 ** (i / 2)) for i in range(13)])  # 8 ... 512
RATE = {"me": 0.05, "llm": 0.02}


def cosine(n_steps):
    return 1e-4 * 0.5 * (1 + np.cos(np.pi * np.arange(n_steps) / n_steps))


def exponential_approach(tau, end, rate):
    """Relative distance from the value at `end` of x(tau) = x* (1 - exp(-rate tau))."""
    return (np.exp(-rate * tau) - np.exp(-rate * end)) / (1 - np.exp(-rate * end))


def time_within(eps, end, rate):
    """Closed form: when that distance is eps."""
    return -np.log(np.exp(-rate * end) + eps * (1 - np.exp(-rate * end))) / rate


@pytest.fixture
def metrics(metrics_of):
    return metrics_of([(4, 8), (16, 8)], lambda m, n, s: 3.0 - 0.1 * np.log(s), steps=tuple(STEPS))


def distances_of(metrics, learning_rates=None, anchors=(512,)):
    """Every module of every run approaches its end exponentially in steps at peak, rate * r^0.5."""
    rows = []
    for run_id, r_me, r_llm in metrics[["run_id", "r_me", "r_llm"]].drop_duplicates().itertuples(index=False):
        for module, r in (("me", r_me), ("llm", r_llm)):
            for anchor in anchors:
                steps = STEPS[anchor >= STEPS]
                tau = steps_at_peak(steps.astype(float), learning_rates)
                distance = exponential_approach(tau, tau[-1], RATE[module] * r**0.5)
                rows += [
                    {"run_id": run_id, "module": module, "step": s, "distance": d, "anchor_step": anchor}
                    for s, d in zip(steps, distance, strict=True)
                ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("learning_rates", [None, cosine(512)], ids=["constant", "cosine"])
def test_time_is_the_closed_form_once_the_schedule_is_divided_out(metrics, learning_rates):
    distances = distances_of(metrics, learning_rates)
    times = convergence_times(
        metrics, signal="trajectory", distances=distances, learning_rates=learning_rates, eps=0.05
    )
    end = steps_at_peak(np.array([512.0]), learning_rates)[0]
    expected = [time_within(0.05, end, RATE[row.module] * row.r**0.5) for row in times.itertuples()]
    assert len(times) == 4
    assert not times.censored.any()
    # snapshots are a factor 1.41 apart and the curve between them is taken as linear in log steps
    np.testing.assert_allclose(times.steps, expected, rtol=0.08)


def test_the_schedule_alone_would_look_like_convergence(metrics):
    """A module that moves at full speed to the end never arrives. Under cosine decay its distance per step
    shrinks all the same: undivided it looks nearly at rest, divided it is censored."""
    rates = cosine(512)
    tau = steps_at_peak(STEPS.astype(float), rates)
    one = pd.DataFrame({"run_id": "4-8-0", "module": "llm", "step": STEPS, "distance": 1 - tau / tau[-1]})
    divided = convergence_times(metrics, signal="trajectory", distances=one, learning_rates=rates, eps=0.2)
    naive = convergence_times(metrics, signal="trajectory", distances=one, eps=0.2)
    assert divided.censored.all()
    assert divided.steps[0] == pytest.approx(tau[-1])
    assert not naive.censored.any()


def test_anchors_give_several_sizes(metrics):
    times = convergence_times(
        metrics, signal="trajectory", distances=distances_of(metrics, anchors=(128, 256, 512)), eps=0.05
    )
    assert sorted(set(times.D)) == [8 * 128, 8 * 256, 8 * 512]
    assert sorted(set(times.S_D)) == [128, 256, 512]


def test_nothing_is_balanced_by_construction(metrics):
    times = convergence_times(metrics, signal="trajectory", distances=distances_of(metrics))
    both = times[times.run_id == "4-8-0"].set_index("module").steps
    assert both["me"] != both["llm"]


def test_a_module_still_moving_is_censored(metrics):
    moving = pd.DataFrame({"run_id": "4-8-0", "module": "me", "step": STEPS, "distance": 1 - STEPS / 512})
    times = convergence_times(metrics, signal="trajectory", distances=moving)
    assert times.censored.all()
    assert (times.steps == 512).all()


def test_modules_without_adapter_give_no_time(metrics_of):
    alone = metrics_of([(4, 0)], lambda m, n, s: 3.0 - 0.1 * np.log(s), steps=tuple(STEPS))
    times = convergence_times(alone, signal="trajectory", distances=distances_of(alone.assign(r_llm=1)))
    assert set(times.module) == {"me"}


def test_mistakes_are_named(metrics):
    good = distances_of(metrics)
    cases = [
        (None, {}, "needs distances="),
        (good.drop(columns="distance"), {}, "missing column"),
        (good[good.module == "me"].assign(module="projector"), {}, "unknown module 'projector'"),
        (pd.concat([good, good.head(1)]), {}, "one row per"),
        (good, {"learning_rates": [1e-4] * 10}, "one rate >= 0 per optimizer step up to step 512"),
        (good, {"eps": 0.0}, "eps"),
        (good[good.run_id == "4-8-0"].assign(run_id="other"), {}, "the checkpoint metrics have 0 rows"),
    ]
    for distances, options, says in cases:
        with pytest.raises(ValueError, match=says):
            convergence_times(metrics, signal="trajectory", distances=distances, **options)
    with pytest.raises(NoConvergenceTimes):
        convergence_times(metrics, signal="trajectory", distances=good[good.step > 200])


@given(st.integers(1, 5), st.integers(1, 5), st.floats(1e-7, 10.0), st.integers(0, 10_000))
def test_distance_matches_the_full_products(r_one, r_other, scale, seed):
    """Oracle: form the products. Ranks may differ between snapshots."""
    rng = np.random.default_rng(seed)
    shapes = [(6, 4), (3, 8)]
    last = [(rng.standard_normal((o, r_one)), rng.standard_normal((r_one, i))) for o, i in shapes]
    moved = [(B + scale * rng.standard_normal(B.shape), A) for B, A in last]
    other = [(rng.standard_normal((o, r_other)), rng.standard_normal((r_other, i))) for o, i in shapes]
    for snapshot in (moved, other):
        apart = [B @ A - C @ F for (B, A), (C, F) in zip(snapshot, last, strict=True)]
        size = [C @ F for C, F in last]
        expected = np.sqrt(sum((x**2).sum() for x in apart) / sum((x**2).sum() for x in size))
        # forming the products loses digits where snapshots are close, so the oracle is good to about 1e-15 / 1e-7
        assert relative_distance(snapshot, last) == pytest.approx(expected, rel=1e-6)


def test_distance_ignores_how_the_product_is_factored():
    rng = np.random.default_rng(0)
    B, A, G = rng.standard_normal((6, 3)), rng.standard_normal((3, 5)), rng.standard_normal((3, 3))
    assert relative_distance([(B @ G, np.linalg.inv(G) @ A)], [(B, A)]) == pytest.approx(0.0, abs=1e-12)
    assert relative_distance([(np.zeros((6, 3)), A)], [(B, A)]) == pytest.approx(1.0)
    assert relative_distance([(1.5 * B, A)], [(B, A)]) == pytest.approx(0.5)


def test_distance_refuses_other_layers():
    B, A = np.ones((6, 3)), np.ones((3, 5))
    with pytest.raises(ValueError, match="same layers"):
        relative_distance([(B, A)], [(B, A), (B, A)])
    with pytest.raises(ValueError, match="all zero"):
        relative_distance([(B, A)], [(0 * B, A)])
