"""Published fits on real points: the Chinchilla table and three fine-tuning tables.

The fine-tuning tables lie in published/. The Chinchilla points name no licence, so they lie beside the repository, not
in it; without them their tests skip. The same behaviour is tested on generated surfaces in test_fit_law.py and
test_diagnostics.py.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mars_core.fitting import fit_law
from mars_core.fitting.solve import solve
from mars_core.fitting.table import read_table
from mars_core.laws import get_law

DATA = Path(__file__).parents[3].parent / "shared" / "data"
PUBLISHED = Path(__file__).parent / "published"
needs_points = pytest.mark.skipif(
    not (DATA / "chinchilla_points_epoch.csv").is_file(), reason="the published points are not beside the repository"
)
COMPUTE_SPLIT = 3e20  # FLOP


def chinchilla_points(drop=5):
    table = pd.read_csv(DATA / "chinchilla_points_epoch.csv")
    table = table.assign(N=table["Model Size"], C=table["Training FLOP"])
    table["D"] = table.C / (6 * table.N)
    return table.sort_values("loss").iloc[: len(table) - drop].reset_index(drop=True)


def optimum(points, delta):
    law = get_law("chinchilla")
    solution = solve(law, read_table(law, points, None), delta, 64, 0)
    return dict(zip(law.symbols, solution.theta, strict=True)), solution


@needs_points
def test_the_converged_optimum_is_reached():
    found, solution = optimum(chinchilla_points(), delta=1e-3)
    assert solution.objective == pytest.approx(0.001018274018, rel=1e-6)
    assert found["E"] == pytest.approx(1.817218, abs=1e-4)
    assert found["alpha"] == pytest.approx(0.347310, abs=1e-4)
    assert found["beta"] == pytest.approx(0.367172, abs=1e-4)
    assert found["A"] == pytest.approx(477.826, rel=5e-3)
    assert found["B"] == pytest.approx(2143.417, rel=5e-3)
    assert solution.start_agreement > 0.9


@needs_points
def test_the_published_headline_is_the_least_absolute_deviation_fit():
    found, _ = optimum(chinchilla_points(), delta=1e-7)
    assert found["E"] == pytest.approx(1.81686, abs=1e-4)
    assert found["alpha"] == pytest.approx(0.34781, abs=1e-4)
    assert found["beta"] == pytest.approx(0.36585, abs=1e-4)
    assert found["A"] == pytest.approx(482.01, rel=5e-3)
    assert found["B"] == pytest.approx(2085.43, rel=5e-3)


@needs_points
def test_all_points_give_the_other_published_row():
    found, _ = optimum(chinchilla_points(drop=0), delta=1e-3)
    assert found["E"] == pytest.approx(1.8913, abs=2e-4)
    assert found["alpha"] == pytest.approx(0.3493, abs=2e-4)
    assert found["beta"] == pytest.approx(0.4531, abs=2e-4)
    assert found["A"] == pytest.approx(495.7, rel=5e-3)
    assert found["B"] == pytest.approx(12845.6, rel=5e-3)


@needs_points
def test_extrapolation_in_compute_has_the_recorded_error():
    points = chinchilla_points()
    fit = fit_law("chinchilla", points, hold_out=(points.C >= COMPUTE_SPLIT).to_numpy(), n_bootstrap=2)
    assert round(100 * fit.held_out.train_mape, 2) == 0.40
    assert round(100 * fit.held_out.mape, 2) == 1.00
    assert round(100 * fit.held_out.largest_error, 1) == 4.1


@needs_points
def test_bootstrap_errors_are_of_the_published_size():
    fit = fit_law("chinchilla", chinchilla_points(), n_bootstrap=300, hold_out=False)
    published = {"E": 0.02566, "alpha": 0.01540, "beta": 0.02060}
    for symbol, standard_error in published.items():
        own = fit.draws[:, get_law("chinchilla").index(symbol)].std()
        # Theirs comes from another resampling scheme and threshold, and 300 draws know a standard deviation to 4%; a
        # quarter tells size, not digits.
        assert own == pytest.approx(standard_error, rel=0.25)


@needs_points
def test_centring_brings_the_condition_number_from_millions_to_thousands():
    fit = fit_law("chinchilla", chinchilla_points(), n_bootstrap=2, hold_out=False)
    assert fit.condition_number == pytest.approx(3.8e3, rel=0.02)
    raw = get_law("chinchilla").log_gradient(get_law("chinchilla").internal(fit.theta), chinchilla_points())
    assert np.linalg.cond(raw) ** 2 == pytest.approx(4.0e6, rel=0.02)


@pytest.mark.parametrize(
    ("task", "expected", "n_series"),
    [
        pytest.param("flan", 29, 30, marks=pytest.mark.slow),
        pytest.param("wmt19", 28, 30, marks=pytest.mark.slow),
        pytest.param("gigaword", 22, 30, marks=pytest.mark.slow),
    ],
)
def test_collapsed_floors_of_fine_tuning_curves_are_flagged(task, expected, n_series):
    table = pd.read_csv(PUBLISHED / f"finetuning_{task}.csv")
    sizes = [column for column in table.columns if column.isdigit() and 0 < int(column) <= 102_400]
    flagged = []
    for _, row in table.iterrows():
        points = {"D": [float(size) for size in sizes], "loss": row[sizes].to_numpy(dtype=float)}
        fit = fit_law("performance_no_rank", points, n_bootstrap=2, hold_out=False)
        assert fit.has("floor_collapsed") or fit.coefficients["E"] >= 1e-3
        flagged.append(fit.coefficients["E"] < 1e-3)
    assert len(flagged) == n_series
    assert sum(flagged) == expected
