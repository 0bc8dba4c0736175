"""Times from tables in which every size has runs of its own: each run speaks for the size that it was made for."""

import json

import numpy as np
import pandas as pd
import pytest

from mars_core.convergence import (
    LossLevels,
    NoConvergenceTimes,
    convergence_times,
    freeze_levels,
    has_runs_per_size,
    separability,
)
from mars_core.convergence.times import LevelName

BATCH = 8
SIZES = (64, 128, 256, 512)
PAIRS = [(r_me, r_llm) for r_me in (2, 4, 8) for r_llm in (2, 4, 8)]


def run(pair, D, loss, seed=0) -> pd.DataFrame:
    """A run of D samples, evaluated from an eighth of its steps on, whose loss is `loss(pair, steps, last step)`."""
    last = D // BATCH
    steps = np.array(sorted({round(last * 2 ** (-k / 2)) for k in range(7)} - {0}))
    return pd.DataFrame(
        {
            "run_id": f"{pair[0]}-{pair[1]}-{seed}-{D}",
            "step": steps,
            "unique_samples": BATCH * steps,
            "r_me": pair[0],
            "r_llm": pair[1],
            "seed": seed,
            "val_loss": loss(pair, steps.astype(float), float(last)),
        }
    )


def table(loss, sizes=SIZES, seeds=(0,)) -> pd.DataFrame:
    return pd.concat([run(pair, D, loss, seed) for seed in seeds for D in sizes for pair in PAIRS], ignore_index=True)


def falling(pair, steps, last):
    """Linear in log steps, so that interpolation is exact; lower by the end the longer the run."""
    return 3.0 - 0.2 * np.log(steps) - 0.1 * np.log(last) - 0.01 * pair[0]


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.5])
def test_own_level_gives_the_closed_form_time_within_each_run(eps):
    """The drop is linear in log s from S / 8 to S, so that a share eps of it is left at S * 8^-eps."""
    times = convergence_times(table(falling), level="own", eps=eps)
    np.testing.assert_allclose(times.steps, times.S_D * 8.0**-eps)
    assert (times.D == BATCH * times.S_D).all()
    assert not times.censored.any()  # the run is over, however late it came down
    assert (times.run_id.str.rpartition("-")[2].astype(int) == times.D).all()
    assert sorted(set(times.D)) == list(SIZES)
    assert (times.groupby(["module", "run_id"]).size() == 1).all()


def test_eps_0_is_the_step_of_the_lowest_perplexity():
    def dipping(pair, steps, last):
        return 2.0 + (np.log(steps) - np.log(last * 0.3 * pair[1] ** 0.25)) ** 2

    metrics = table(dipping)
    times = convergence_times(metrics, level="own", eps=0.0).set_index("run_id")
    lowest = metrics.assign(ppl=np.exp(metrics.val_loss)).sort_values("ppl").groupby("run_id").head(1)
    expected = lowest.set_index("run_id").step.loc[times.index]
    np.testing.assert_allclose(times.steps, expected)
    assert (times.steps < times.S_D).any()


def test_common_level_is_taken_among_the_runs_of_a_size_alone():
    """Longer runs pass through a size on their way: where they stand there moves neither levels nor times."""
    metrics = table(falling)
    levels = freeze_levels(metrics)
    for D in SIZES:
        ends = metrics[metrics.run_id.str.endswith(f"-{D}") & (metrics.unique_samples == D)].val_loss
        (level,) = levels.by_scope[f"pairs, D = {D}"]
        assert (level.D, level.S_D) == (D, D / BATCH)
        assert level.loss == pytest.approx(np.quantile(ends, 0.9))
    longer = metrics.run_id.str.endswith(f"-{SIZES[-1]}")
    moved = metrics.assign(val_loss=metrics.val_loss + np.where(longer, 7.0, 0.0))
    largest, before, after = SIZES[-1], *(convergence_times(each) for each in (metrics, moved))
    pd.testing.assert_frame_equal(before[before["D"] < largest], after[after["D"] < largest])
    # t: 3 - 0.2 ln t - 0.1 ln S - 0.01 r_me = level
    level_of = {D: levels.by_scope[f"pairs, D = {D}"][0].loss for D in SIZES}
    expected = np.exp((3.0 - 0.1 * np.log(before.S_D) - 0.01 * before.r_me - before.D.map(level_of)) / 0.2)
    seen = ~before.censored
    np.testing.assert_allclose(before.steps[seen], expected[seen])
    assert (expected[before.censored] > before.S_D[before.censored]).all()
    assert (before.steps[before.censored] == before.S_D[before.censored]).all()


def test_frozen_levels_read_back_and_give_the_same_times():
    metrics = table(falling, seeds=(0, 1))
    levels = LossLevels.from_json(json.loads(json.dumps(freeze_levels(metrics).to_json())))
    pd.testing.assert_frame_equal(convergence_times(metrics, levels=levels), convergence_times(metrics))


def test_a_run_that_diverged_before_its_end_gives_no_time():
    metrics = table(falling)
    diverged = (metrics.run_id == "4-4-0-256") & (metrics.step > 20)
    times = convergence_times(metrics.assign(val_loss=metrics.val_loss.mask(diverged)), level="own")
    assert "4-4-0-256" not in set(times.run_id)
    whole = convergence_times(metrics, level="own")
    expected = whole[whole.run_id != "4-4-0-256"].reset_index(drop=True)
    pd.testing.assert_frame_equal(times, expected)


def test_a_size_whose_runs_have_too_few_checkpoints_has_no_time():
    short = (16, 64, 128)  # a run of 16 samples is 2 steps
    assert sorted(set(convergence_times(table(falling, short), level="own").D)) == [64, 128]
    with pytest.raises(NoConvergenceTimes, match="at least 5 checkpoints"):
        convergence_times(table(falling, (8, 16)))


def test_isolated_runs_have_levels_by_module_and_size():
    pairs = [(r, 0) for r in (2, 4, 8)] + [(0, r) for r in (2, 4, 8)]
    metrics = pd.concat([run(pair, D, falling) for D in SIZES for pair in pairs], ignore_index=True)
    times = convergence_times(metrics, signal="isolated", level="own", eps=0.5)
    np.testing.assert_allclose(times.steps, times.S_D * 8.0**-0.5)
    assert len(times) == len(pairs) * len(SIZES)
    scopes = {f"{module}, D = {D}" for module in ("me", "llm") for D in SIZES}
    assert set(freeze_levels(metrics, signal="isolated").by_scope) == scopes


def test_lines_for_separability_run_through_the_runs_of_a_pair_and_seed():
    """t = 0.5 S for every rank: each of three lines per module and seed has slope 1, so they are parallel."""
    times = convergence_times(table(falling, seeds=(0, 1)), level="own", eps=np.log(2) / np.log(8))
    found = separability(times[times.module == "me"])
    assert (found.verdict, found.n_runs) == ("separable", 6)
    assert list(found.slopes.values()) == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("level", ["common", "own"])
def test_a_table_of_one_run_per_pair_is_read_at_every_size(metrics_of, level: LevelName):
    """Also where a run stopped early, or was made twice: neither is a run of another size of its pair and seed."""

    def loss(r_me, r_llm, s):
        return 3.0 - np.log(np.minimum(s, 16.0)) - 0.01 * r_me

    once = metrics_of(PAIRS, loss)
    stopped = once[~((once.r_me == 8) & (once.step > 64))]
    twice = pd.concat([once, once.assign(run_id=once.run_id + "-again")], ignore_index=True)
    for metrics in (once, stopped, twice):
        assert not has_runs_per_size(metrics)
        assert convergence_times(metrics, level=level).D.nunique() > 1
    assert has_runs_per_size(table(falling))
