"""Laws from imported runs against the known laws that the runs were made from."""

import dataclasses
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mars_core.importing import Question, Sizes, analyse, read_runs
from mars_core.laws import get_law
from mars_core.report.decision import rival_sentences
from mars_core.search import Choice

RANKS = (8, 16, 32, 64)
FEWER, FEWEST = (8, 16, 32), (8, 16)  # where the fit is not what is tested
PLANTED = {"A": 3.0, "alpha_m": 0.05, "alpha_l": 0.2, "beta": 0.3, "E": 1.0}
FEW = Question(target_samples=20_000, starts=16, bootstrap=60)
QUICK = Question(target_samples=20_000, starts=4, bootstrap=20)


def losses(seeds=(0, 1, 2), noise=0.002, draw=1, ranks=RANKS):
    """Losses of law P with the planted coefficients; a relative error per run and one per row."""
    rng = np.random.default_rng(draw)
    sizes = 64 * 2.0 ** np.arange(6)
    rows = [(m, n, s, D) for s in seeds for m in ranks for n in ranks for D in sizes]
    table = pd.DataFrame(rows, columns=["r_me", "r_llm", "seed", "D"])
    of_run = np.repeat(rng.standard_normal(len(table) // len(sizes)), len(sizes))
    error = noise * (of_run + rng.standard_normal(len(table)))
    table["loss"] = get_law("performance").predict(list(PLANTED.values()), table) * np.exp(error)
    return table


def with_times(table, gamma_me=-0.3, gamma_llm=-0.5, noise=0.01):
    """Times of law C: equal at r_me^-0.3 * 10 = r_llm^-0.5 * c, so the balance rank can be worked out by hand."""
    rng = np.random.default_rng(2)
    for module, gamma, k in (("me", gamma_me, 0.1), ("llm", gamma_llm, 0.1 * 16**0.2)):
        error = noise * rng.standard_normal(len(table))
        table[f"t_{module}"] = k * table[f"r_{module}"] ** gamma * table["D"] * np.exp(error)
    return table


def covered(draw):
    """Which planted coefficients lie in their interval, and how far the estimates are off."""
    fit = analyse(read_runs(losses(draw=draw), Sizes()), FEW).laws.performance
    inside = {s: fit.intervals[s][0] <= value <= fit.intervals[s][1] for s, value in PLANTED.items()}
    return inside, {s: abs(fit.coefficients[s] / value - 1) for s, value in PLANTED.items()}


def test_planted_coefficients_are_recovered_within_their_intervals():
    inside, off = covered(draw=2)
    assert all(inside.values()), inside
    assert max(off.values()) < 0.1


@pytest.mark.slow
def test_intervals_cover_the_planted_coefficients_as_often_as_they_say():
    """Of 50 intervals at 95%, 47.5 are expected to cover; those of one fit go together, so 40 must."""
    inside = [value for draw in range(10) for value in covered(draw)[0].values()]
    assert sum(inside) >= 40


def test_given_times_give_law_c_and_the_balance_worked_out_by_hand():
    """r_me^-0.3 = 16^0.2 r_llm^-0.5 at balance: r_me = 16^(-2/3) r_llm^(5/3), that is 16 at 16 and 5.04 at 8."""
    found = analyse(read_runs(with_times(losses(seeds=(0,))), Sizes()), QUICK)
    gammas = {m: found.laws.convergence[m].coefficients["gamma"] for m in ("me", "llm")}
    assert gammas == pytest.approx({"me": -0.3, "llm": -0.5}, abs=0.02)
    balance = {point.r_llm: point.r_me for point in found.choice.balance_curve}
    for r_llm, r_me in balance.items():
        assert np.log(r_me) == pytest.approx(np.log(16 ** (-2 / 3) * r_llm ** (5 / 3)), abs=0.15)
    balanced = {candidate.pair for candidate in found.choice.candidates if candidate.source.balanced}
    assert (16, 16) in balanced
    assert (64, 8) not in balanced
    assert found.laws.signal == "given"


def test_one_time_per_run_speaks_for_a_module_on_its_slice_only():
    table = losses(seeds=(0,), ranks=FEWEST)
    table["t"] = 0.1 * table["r_me"] ** -0.3 * table["r_llm"] ** -0.2 * table["D"]
    found = analyse(read_runs(table, Sizes()), replace(QUICK, reference=(8, 16)))
    times = pd.DataFrame(list(found.laws.convergence_times))
    assert set(times.loc[times.module == "me", "r_llm"]) == {16}
    assert set(times.loc[times.module == "llm", "r_me"]) == {8}


def test_curves_with_enough_checkpoints_give_law_c():
    """loss = 1 + 2 (1 + s / tau)^-0.35 with tau = 20 r_me^-0.3 r_llm^-0.25: times are proportional to tau."""
    steps = [round(8 * 2 ** (i / 2)) for i in range(11)]
    rng = np.random.default_rng(0)
    rows = []
    for seed in (0, 1, 2):
        for m in RANKS:
            for n in RANKS:
                tau, of_run = 20 * m**-0.3 * n**-0.25, rng.standard_normal()
                for s in steps:
                    error = 0.001 * (of_run + rng.standard_normal())
                    rows.append((m, n, seed, s, (1 + 2 * (1 + s / tau) ** -0.35) * np.exp(error)))
    table = pd.DataFrame(rows, columns=["r_me", "r_llm", "seed", "step", "loss"])
    found = analyse(read_runs(table, Sizes(batch_size=8)), QUICK)
    for module, gamma in (("me", -0.3), ("llm", -0.25)):
        fit = found.laws.convergence[module]
        assert fit.coefficients["gamma"] == pytest.approx(gamma, abs=0.03)
    assert (found.choice.pair, found.choice.verdict) == ((64, 64), "best")


@pytest.fixture(scope="module")
def late():
    """Laws of runs that were measured late alone, and whose parameters nobody counted."""
    table = losses(seeds=(0,), ranks=FEWEST)
    return analyse(read_runs(table[table["D"] >= 1024], Sizes()), QUICK)


def test_too_few_checkpoints_say_why_there_is_no_law_c(late):
    found = late
    assert found.laws.convergence["me"] is None
    assert "checkpoints" in found.laws.causes["me"]
    assert found.choice.balance_curve == ()
    assert found.choice.decided_by == "posterior"  # the measurements decide without law C
    assert found.choice.regret >= 0


def test_recorded_parameter_counts_give_the_cost_of_pairs_that_were_not_run():
    table = losses(seeds=(0,), ranks=FEWEST)
    table["trainable_parameters"] = 1000 * table["r_me"] + 3000 * table["r_llm"]
    found = analyse(read_runs(table, Sizes()), replace(QUICK, ranks_me=(8, 128), ranks_llm=(8, 16)))
    counts = {c.pair: c.trainable_parameters for c in found.choice.candidates}
    assert counts
    assert all(count == 1000 * pair[0] + 3000 * pair[1] for pair, count in counts.items())
    assert not any("parameters-per-rank" in note for note in found.notes)


def test_without_counts_the_cost_is_said_to_be_assumed(late):
    assert any("--parameters-per-rank" in note for note in late.notes)


def test_later_epochs_leave_one_point_per_size():
    table = losses(seeds=(0,), ranks=FEWEST).rename(columns={"D": "step"}).astype({"step": int})
    found = analyse(read_runs(table, Sizes(batch_size=1, dataset_size=1024)), QUICK)
    assert found.laws.performance.n_points == 4 * 5


def test_a_reference_without_runs_is_refused():
    with pytest.raises(ValueError, match=r"--reference \(5, 5\)"):
        analyse(read_runs(losses(seeds=(0,)), Sizes()), Question(reference=(5, 5)))


def test_runs_at_several_rates_choose_pair_and_rate():
    """A rate of 1e-3 is planted as the best one of every pair; the runs without vision adapter are 0.3 nats worse."""
    table = losses(seeds=(0,), ranks=FEWER)
    frozen = table[table["r_me"] == 8].assign(r_me=0, loss=lambda rows: rows["loss"] + 0.3)
    table = pd.concat([table, frozen], ignore_index=True)
    parts = [
        table.assign(peak_lr=rate, loss=table["loss"] + 0.1 * np.log(rate / 1e-3) ** 2) for rate in (5e-4, 1e-3, 2e-3)
    ]
    runs = read_runs(pd.concat(parts, ignore_index=True), Sizes())
    question = replace(QUICK, target_samples=2048, learning_rate=1e-4)
    choice = analyse(runs, question).choice
    assert choice.pair == (32, 32)
    assert choice.rates.learning_rates.llm == pytest.approx(1e-3, rel=0.2)
    assert choice.rates.fixed.was_the_limit
    assert choice.candidate((0, 32)).excess > 0.2


def test_without_parameter_counts_a_cost_is_a_rank_and_is_called_so():
    """No noise and a wide margin: the cheapest pair is as good, and nothing of it may be called parameters."""
    runs = read_runs(losses(seeds=(0,), ranks=FEWEST), Sizes())
    question = dataclasses.replace(QUICK, margin=0.5)
    plain = analyse(runs, question).choice
    counted = analyse(runs, dataclasses.replace(question, parameters_per_rank=(10.0, 20.0))).choice
    assert (plain.cost_unit, counted.cost_unit) == ("ranks", "parameters")
    assert plain.pair == (8, 8)
    assert "less rank in all than" in plain.reason
    assert "parameters" not in " ".join([plain.reason, *rival_sentences(plain)])
    assert "fewer parameters than" in counted.reason
    assert Choice.from_json(plain.to_json()).cost_unit == "ranks"
