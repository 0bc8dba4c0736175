import json

import numpy as np
import pandas as pd
import pytest

from mars_core.convergence import separability, with_separability
from mars_core.fitting import fit_law

SIZES = np.array([256, 362, 512, 724, 1024, 1448, 2048])
RANKS = (8, 16, 32, 64)


def times_of(slope_of_rank, noise=0.0, seeds=1, floor=0.0, seed=0, sizes=SIZES):
    """t = 0.5 r^-0.3 D^slope(r) e^noise + floor, one run per rank and seed."""
    rng = np.random.default_rng(seed)
    rows = []
    for r in RANKS:
        for s in range(seeds):
            t = 0.5 * r**-0.3 * sizes ** slope_of_rank(r) * np.exp(noise * rng.standard_normal(len(sizes))) + floor
            rows.append(pd.DataFrame({"run_id": f"{r}-{s}", "r": r, "D": sizes, "S_D": sizes / 8, "steps": t}))
    return pd.concat(rows, ignore_index=True).assign(censored=False)


def parallel(r):
    return 0.8


def fanning(r):
    return 0.6 + 0.1 * np.log2(r / 8)


def test_parallel_lines_are_separable():
    found = separability(times_of(parallel, noise=0.02, seeds=3))
    assert found.verdict == "separable"
    assert found.interval[0] < 0 < found.interval[1]
    assert all(slope == pytest.approx(0.8, abs=0.1) for slope in found.slopes.values())


def test_fanning_lines_are_not_separable_and_the_change_is_measured():
    found = separability(times_of(fanning, noise=0.02, seeds=3))
    assert found.verdict == "not separable"
    assert found.interval[0] < 0.3 < found.interval[1]
    assert separability(times_of(fanning)).slope_change == pytest.approx(0.3)


def test_a_floor_bends_the_lines_unless_it_is_taken_off():
    times = times_of(parallel, floor=60.0)
    assert separability(times).slope_change < -0.1
    assert separability(times, floor=60.0).slope_change == pytest.approx(0.0, abs=1e-9)


def test_noise_leaves_it_undecided():
    assert separability(times_of(parallel, noise=0.3)).verdict == "undecided"


def test_sizes_with_a_censored_run_are_left_out():
    """Censored times of one rank, cut at 60 steps, would fake a bend."""
    times = times_of(parallel, seeds=2)
    cut = times.assign(censored=times.steps > 60, steps=times.steps.clip(upper=60))
    assert cut.censored.any()
    assert separability(cut).slope_change == pytest.approx(0.0, abs=1e-9)
    naive = separability(cut.assign(censored=False))
    assert abs(naive.slope_change) > 0.05


def test_too_little_is_undecided_with_its_reason():
    few = times_of(parallel)
    found = separability(few[few.r < 32])
    assert found.verdict == "undecided"
    assert found.slope_change is None
    assert "2 runs of 2 ranks" in found.message
    assert json.loads(json.dumps(found.to_json()))["interval"] is None


def test_the_verdict_stands_on_the_fit():
    for slope, code in ((parallel, "separable"), (fanning, "not_separable")):
        times = times_of(slope, noise=0.02, seeds=3)
        fit = with_separability(fit_law("convergence", times, n_bootstrap=20, n_starts=8), times)
        assert fit.has(code)


@pytest.mark.slow
def test_false_alarms_and_detections():
    """400 and 100 planted surfaces. With 3 seeds and 5% noise in t the flag `not separable` is raised on at most 5%
    of separable surfaces and on at least 95% of those whose slope changes by 0.3."""
    alarms = np.mean([separability(times_of(parallel, 0.05, 3, seed=s)).verdict == "not separable" for s in range(400)])
    found = np.mean([separability(times_of(fanning, 0.05, 3, seed=s)).verdict == "not separable" for s in range(100)])
    assert alarms <= 0.05
    assert found >= 0.95
