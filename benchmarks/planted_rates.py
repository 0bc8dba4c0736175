"""Is the pair right where the best learning rate moves with the ranks, so that one rate for all picks a wrong one?

Planted studies as in `planted_studies.py`, with a learning rate that matters (`planted/rates.py`). Only those count
where one fixed rate picks wrong: even who knew the truth would take a pair there that, at its own best rate, has more
than 0.5% more perplexity than the best one. MARS sees a calibration by the rounds of `learning_rates: auto`, its range
test off by up to a factor of three, and states a pair and a rate. It is right where that pair at that rate has at most
0.5% more perplexity than the best pair at its best rate. Beside it: the best cell of the same table.

    python benchmarks/planted_rates.py               # 200 studies; those stored by the same code are not chosen again
    python benchmarks/planted_rates.py --studies 20  # fewer
    python benchmarks/planted_rates.py --confirm-runs 8  # up to 8 further runs for each pair and seed
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from doc_table import DOCS, markdown, with_table
from planted.ground import LARGEST, Pair
from planted.rates import RateStudy, Run, make_rate_study
from planted_studies import CODE, hash_of

from mars_core import __version__
from mars_core.ranks import RankPair
from mars_core.rate_search import MOST_ROUNDS, anchors, first_rates
from mars_core.rates import one_rate
from mars_core.search import Points, Question, read_points
from mars_core.search.choose import calibrate, choose_with
from mars_core.search.confirm import Budget, confirmations
from mars_core.search.fitted_laws import FittedLaws
from mars_core.search.next_rates import next_rates
from mars_core.search.objective import PERPLEXITY_OBJECTIVE
from mars_core.search.outlook import Calibration
from tasks.settings.calibration import CalibrationConfig

RESULTS = Path(__file__).parent / "results"
RECORD, LINES = RESULTS / "planted_rates.json", RESULTS / "planted_rates.jsonl"
PAGE, MARK = DOCS / "ranks-and-learning-rates.md", "planted-rates"
RIGHT = 0.005  # excess perplexity
TARGETS = (LARGEST, 16_384)
BUDGETS = (0, 1, 2, 4, 8)
SEARCH = Path(__file__).parents[1] / "mars_core" / "rate_search"


def fixed_rate(study: RateStudy, number: int) -> float:
    """A user's rate: up to a factor of four from the middle of the pairs' best ones, as its logarithm."""
    middle = float(np.median(list(study.rates.best.values())))
    return middle + float(np.random.default_rng([number, 11]).uniform(-2, 2)) * float(np.log(2))


def excess_of_pair(study: RateStudy, pair: Pair) -> float:
    """Excess perplexity of a pair over the best one, each at its best rate."""
    return float(np.expm1(study.study.truth(pair, LARGEST) - study.best_truth(LARGEST)))


def studies() -> Iterator[tuple[int, RateStudy]]:
    """Studies in which the fixed rate picks wrong."""
    number = 0
    while True:
        study = make_rate_study(number)
        if excess_of_pair(study, study.best_at(fixed_rate(study, number), LARGEST)) > RIGHT:
            yield number, study
        number += 1


def widened(study: RateStudy, number: int) -> dict[Pair, list[float]]:
    """Rates of each pair after the rounds of a calibration that find and widen them."""
    pairs, reference = [RankPair(*pair) for pair in study.study.pairs], RankPair(*study.study.reference)
    off = np.random.default_rng([number, 12]).uniform(-0.2, 1.1)
    start = float(np.exp(study.rates.best.get(reference, np.median(list(study.rates.best.values()))) + off))
    tried: dict[Pair, list[float]] = {pair: list(rates) for pair, rates in first_rates(pairs, reference, start).items()}
    for _ in range(MOST_ROUNDS - 1):
        points = read_points(study.metrics(tried), PERPLEXITY_OBJECTIVE)
        missing = next_rates(points, tried, anchors(pairs, reference))
        if not missing:
            break
        for pair, rates in missing.items():
            tried[pair] += rates
    return tried


def score(number: int, study: RateStudy, confirm_runs: int) -> dict[str, Any]:
    """What MARS, the best cell of the same table and the fixed rate come to.

    rounds: after the rates are found, and after each round that trains likely pairs again, how many runs that took for
    a pair and seed, and what would be stated.
    """
    fixed, planted = fixed_rate(study, number), study.study
    tried, again = widened(study, number), list[Run]()
    question = Question(LARGEST, planted.count, planted.reference, learning_rates=one_rate(float(np.exp(fixed))))
    rounds: list[dict[str, Any]] = []
    budget = Budget.of(len(planted.pairs), planted.n_seeds, confirm_runs)
    while True:
        metrics = study.metrics(tried, again)
        points = read_points(metrics, PERPLEXITY_OBJECTIVE)
        posterior = calibrate(points, question)
        assert points.rates is not None
        regret, inside = _stated(study, posterior, points, LARGEST)
        rounds.append(
            {"further": len(again) / (len(planted.pairs) * planted.n_seeds), "regret": regret, "inside": inside}
        )
        outlook = posterior.at(LARGEST, planted.pairs)
        found = confirmations(outlook, points.rates, metrics["seed"].unique().tolist(), len(again), budget)
        if not found:
            break
        again += [(one.pair, one.seed, one.rate) for one in found]
    pair = study.best_at(fixed, LARGEST)
    row: dict[str, Any] = {
        "number": number,
        "confirm_runs": confirm_runs,
        "shape": planted.shape,
        "pairs": len(planted.pairs),
        "runs": sum(map(len, tried.values())),
        "seeds": planted.n_seeds,
        "rounds": rounds,
        "fixed": study.regret(pair, fixed, LARGEST),
        "best_cell": study.regret(*_best_cell(metrics), LARGEST),
    }
    for target in TARGETS:
        row[f"mars_{target}"], row[f"rate_inside_{target}"] = _stated(study, posterior, points, target)
    return row


def _stated(study: RateStudy, posterior: Calibration, points: Points, target: int) -> tuple[float, bool]:
    """Regret of the pair that is chosen, at its stated rate, and whether the rate's interval holds the true best."""
    planted = study.study
    question = Question(target, planted.count, planted.reference)
    choice = choose_with(posterior, _no_laws(planted.reference), points, question)
    assert choice.rates is not None
    (best,) = choice.rates.chosen
    true = study.rates.best[choice.pair] + study.rates.slope * float(np.log(target / LARGEST))
    inside = bool(np.log(best.interval[0]) <= true <= np.log(best.interval[1]))
    return study.regret(choice.pair, float(np.log(best.rate)), target), inside


def _best_cell(metrics: pd.DataFrame) -> tuple[Pair, float]:
    """The pair and the log rate that ended lowest, over seeds."""
    ends = metrics[metrics["step"] == metrics["step"].max()].groupby(["r_me", "r_llm", "peak_lr"])["val_loss"].mean()
    r_me, r_llm, rate = ends.idxmin()
    return (int(r_me), int(r_llm)), float(np.log(rate))


def _no_laws(reference: Pair) -> FittedLaws:
    """Law P and law C decide nothing here, and take longer to fit than all the rest."""
    return FittedLaws(None, {"me": None, "llm": None}, {}, (), reference, "slice", "common", "perplexity", ())


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares that are right and mean regrets."""
    table = pd.DataFrame(rows)
    named = [name for name in table.columns if name.startswith(("mars_", "fixed", "best_cell"))]
    return {
        "studies": len(table),
        "runs_per_pair": float((table["runs"] / table["pairs"]).mean()),
        "by_budget": by_budget(rows),
        "right": {name: float((table[name] <= RIGHT).mean()) for name in named},
        "mean_regret": {name: float(table[name].mean()) for name in named},
        "right_by_noise": {f"{noise:.1%}": float(share) for noise, share in _right_by_noise(table).items()},
        "rate_inside": {str(target): float(table[f"rate_inside_{target}"].mean()) for target in TARGETS},
    }


def by_budget(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What each limit of further runs for a pair and seed comes to, read off the rounds that stay below it.

    taken: further runs on average. right: share of studies. rate_inside: how often the best rate lies in its interval.
    """
    found = []
    for most in BUDGETS:
        at = pd.DataFrame([[one for one in row["rounds"] if one["further"] <= most][-1] for row in rows])
        found.append(
            {
                "at_most": most,
                "taken": float(at["further"].mean()),
                "right": float((at["regret"] <= RIGHT).mean()),
                "mean_regret": float(at["regret"].mean()),
                "rate_inside": float(at["inside"].mean()),
            }
        )
    return found


def _right_by_noise(table: pd.DataFrame) -> pd.Series:
    """Share of studies in which MARS is right at the calibrated size, by the noise of a run as a share of its loss."""
    noise = [make_rate_study(int(number)).study.noise.run for number in table["number"]]
    return (table["mars_2048"] <= RIGHT).groupby(np.array(noise)).mean()


def main() -> None:
    """Choose in what is missing, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200, help="how many studies (default: 200)")
    default = CalibrationConfig().confirm_runs
    parser.add_argument("--confirm-runs", type=int, default=default, help=f"as calibration.confirm_runs ({default})")
    options = parser.parse_args()
    wanted, confirm_runs = options.studies, options.confirm_runs
    stored = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()] if LINES.exists() else []
    code = hash_of((*CODE, SEARCH))
    done = {row["number"]: row for row in stored if row["confirm_runs"] == confirm_runs and row.get("code") == code}
    rows: list[dict[str, Any]] = []
    for number, study in studies():
        if number in done:
            rows.append(done[number])
        else:
            rows.append(score(number, study, confirm_runs) | {"code": code})
            with LINES.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(rows[-1]) + "\n")
        if len(rows) == wanted:
            break
    record = {
        "command": f"python benchmarks/planted_rates.py --studies {wanted} --confirm-runs {confirm_runs}",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"mars": __version__, "Python": platform.python_version(), "NumPy": np.__version__},
        "confirm_runs": confirm_runs,
        **summary(rows),
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), MARK, table(record)), encoding="utf-8")
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """What the page says of a record."""
    names = {
        "mars_2048": "MARS, at the calibrated size",
        "mars_16384": "MARS, at 8 times that size",
        "best_cell": "best cell of the same table",
        "fixed": "the fixed rate, with the pair that is truly best at it",
    }
    rows = [[name, f"{record['right'][key]:.1%}", f"{record['mean_regret'][key]:.2%}"] for key, name in names.items()]
    inside = ", ".join(f"{share:.0%} at {int(size):,} samples" for size, share in record["rate_inside"].items())
    noise = ", ".join(f"{share:.0%} at {level}" for level, share in record["right_by_noise"].items())
    budgets = [one for one in record["by_budget"] if one["at_most"] <= record["confirm_runs"]]
    by_limit = [
        [
            str(one["at_most"]),
            f"{one['taken']:.2f}",
            f"{one['right']:.1%}",
            f"{one['mean_regret']:.2%}",
            f"{one['rate_inside']:.0%}",
        ]
        for one in budgets
    ]
    headings = ["at most", "taken on average", "right", "mean regret", "best rate inside its interval"]
    return (
        f"{record['studies']} studies, {record['runs_per_pair']:.2f} rates per pair until they are found, then at most "
        f"{record['confirm_runs']} further runs for each pair and seed:\n\n"
        f"{markdown(['', 'right', 'mean regret'], rows)}\n\n"
        f"By how many further runs a pair and seed may have (`calibration.confirm_runs`), at the calibrated size:\n\n"
        f"{markdown(headings, by_limit)}\n\n"
        f"By the noise of a run, as a share of its loss, MARS is right at the calibrated size in {noise}. "
        f"The 95% interval of the best rate of the chosen pair holds the true one in {inside}."
    )


if __name__ == "__main__":
    main()
