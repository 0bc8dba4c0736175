"""Every method on every cell: regret and cost, verdicts and predictions, and tables of them. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from mars_core.rankbench.balance import balance_record
from mars_core.rankbench.blocks import CALIBRATION_SEEDS
from mars_core.rankbench.cells import MANY_RANKS, RULES, Cell
from mars_core.rankbench.methods import METHODS
from mars_core.rankbench.replay import Replay
from mars_core.rankbench.signal import MATTERS, signal_of
from mars_core.rankbench.truth import Truth, judged, truth_of
from mars_core.ranks import RankPair
from mars_core.search.choice import Choice

GRID, LARGEST, PRODUCT = "naive grid of full runs", "largest, rate tuned", "MARS"
SEED_SETS = {rule: tuple((seed,) for seed in seeds) for rule, seeds in CALIBRATION_SEEDS.items()}
_RESAMPLES = 2000


def is_whole(cell: Cell, rows: pd.DataFrame, rule: str) -> bool:
    """Whether all that replay needs of a cell and rule is stored."""
    if rows.empty or cell.ranks == MANY_RANKS:
        return False
    own = rows[rows["rule"] == rule]
    seeds = own.loc[own["kind"] == "judge", "seed"].nunique()
    return seeds >= 2 and {"calibration", "rates"} <= set(own["kind"])


def truths_of(cell: Cell, rows: pd.DataFrame) -> Iterator[tuple[str, Truth]]:
    """The truth under every alpha rule of which enough is stored."""
    return ((rule, truth_of(rows, rule)) for rule in RULES if is_whole(cell, rows, rule))


@dataclass(frozen=True, eq=False)
class Job:
    """One alpha rule and set of calibration seeds of a cell. least: the smallest true loss under any stored rule."""

    cell: Cell
    rows: pd.DataFrame
    rule: str
    seeds: tuple[int, ...]
    least: float


def jobs_of(cell: Cell, rows: pd.DataFrame) -> list[Job]:
    """What of a cell can be replayed."""
    least = min((truth.loss(truth.best) for _, truth in truths_of(cell, rows)), default=np.nan)
    calibrations = rows[rows["kind"] == "calibration"] if len(rows) else rows
    return [
        Job(cell, rows, rule, seeds, least)
        for rule, _ in truths_of(cell, rows)
        for seeds in SEED_SETS[rule]
        if set(seeds) <= set(calibrations.loc[calibrations["rule"] == rule, "seed"])
    ]


def replay_job(job: Job) -> list[dict[str, object]]:
    """One record per method: what it chose, its regret and its cost; that of MARS with the test of law C."""
    truth, ends = truth_of(job.rows, job.rule), judged(job.rows, job.rule)
    signal = signal_of(ends).tells_pairs_apart
    replay = Replay(job.cell, job.rows, job.rule, job.seeds)
    records = [record_of(replay, truth, name) | {"signal": signal, "least": job.least} for name in METHODS]
    predicted = {candidate.pair: candidate.loss for candidate in replay.choice.candidates if candidate.loss is not None}
    return _with_balance(records, balance_record(ends, truth, predicted))


def _with_balance(records: list[dict[str, object]], found: Mapping[str, float] | None) -> list[dict[str, object]]:
    added = {f"balance_{name}": value for name, value in (found or {}).items()}
    return [record | added if record["method"] == PRODUCT else record for record in records]


def record_of(replay: Replay, truth: Truth, name: str) -> dict[str, object]:
    """What a method chose, its regret and its cost; for MARS what it said of itself as well."""
    decision = METHODS[name](replay)
    loss = truth.loss(decision.pair, decision.rate)
    record: dict[str, object] = {
        "cell": replay.cell.name,
        "role": replay.cell.role,
        "rule": replay.rule,
        "seed": replay.seeds[0],
        "method": name,
        "r_me": decision.pair.r_me,
        "r_llm": decision.pair.r_llm,
        "rate": decision.rate,
        "loss": loss,
        "regret": truth.regret(decision.pair, decision.rate),
        "noise": truth.noise,
        "pair_steps": decision.pair_steps,
        "parameters": replay.parameters[decision.pair],
    }
    return record if decision.choice is None else record | _promises(decision.choice, replay, truth)


def _promises(choice: Choice, replay: Replay, truth: Truth) -> dict[str, object]:
    """What the choice said of itself, and whether it came true: verdict, order of pairs, predicted final loss."""
    ends = judged(replay.rows, replay.rule)
    known = {RankPair(*one.pair): one for one in choice.candidates if one.loss is not None}
    predicted = {pair: known[pair] for pair in truth.losses if pair in known}
    inside = [
        candidate.loss_interval[0] <= value <= candidate.loss_interval[1]
        for pair, candidate in predicted.items()
        if candidate.loss_interval is not None
        for value in _reached(ends, pair)
    ]
    pair = RankPair(*choice.pair)
    over = truth.best if choice.preferred_over is None else RankPair(*choice.preferred_over)
    return {
        "verdict": choice.verdict,
        "excess_over_best": float(np.expm1(truth.losses[pair] - truth.losses[over])),
        "tau": _tau([one.loss for one in predicted.values()], [truth.losses[one] for one in predicted]),
        "covered": float(np.mean(inside)) if inside else np.nan,
        "predicted": known[pair].loss if pair in known else np.nan,
        "reached": float(_reached(ends, pair).mean()),
        "seen_regret": np.nan if choice.regret is None else choice.regret,
    }


def _reached(ends: pd.DataFrame, pair: RankPair) -> pd.Series[float]:
    """Final validation losses of a pair's runs that judge."""
    return ends.loc[(ends["r_me"] == pair.r_me) & (ends["r_llm"] == pair.r_llm), "val_loss"]


def _tau(predicted: Sequence[float | None], true: Sequence[float]) -> float:
    return float(kendalltau(predicted, true).statistic) if len(true) > 2 else np.nan


def describe_cell(cell: Cell, rows: pd.DataFrame) -> list[dict[str, object]]:
    """One record per alpha rule: best pair, spread, and how much either module's rank matters."""
    found: list[dict[str, object]] = []
    for rule, truth in truths_of(cell, rows):
        low, high = _edges(rows, rule)
        best = truth.best_rate(truth.best)
        signal = signal_of(judged(rows, rule))
        found.append(
            {
                "cell": cell.name,
                "role": cell.role,
                "rule": rule,
                "best": truth.best,
                "best_rate": best,
                "interior": low * 1.05 < best < high / 1.05,
                "perplexity": float(np.exp(truth.losses[truth.best])),
                "spread": truth.regret(max(truth.losses, key=lambda pair: truth.losses[pair])),
                "noise": truth.noise,
                "signal_p": signal.p_value,
                "tells_pairs_apart": signal.tells_pairs_apart,
                "vision_effect": signal.vision,
                "vision_matters": signal.vision > MATTERS,
                "llm_effect": signal.llm,
                "frozen_tower": min(truth.regret(pair) for pair in truth.losses if pair.r_me == 0),
                "frozen_llm": min(truth.regret(pair) for pair in truth.losses if pair.r_llm == 0),
                "judges": truth.seeds,
            }
        )
    return found


def _edges(rows: pd.DataFrame, rule: str) -> tuple[float, float]:
    rates = rows.loc[(rows["kind"] == "rates") & (rows["rule"] == rule), "peak_lr"]
    return float(rates.min()), float(rates.max())


def of_default(records: pd.DataFrame) -> pd.DataFrame:
    """The records that tables of regret are made from: the default alpha rule, cells with a rank signal."""
    return records[(records["rule"] == "constant") & records["signal"]]


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """Methods in order of mean regret: median, mean with its 95% interval, share within seed noise, cost and size.

    Cost is pair-steps as a share of the naive grid's on the same cell, size the chosen pair's parameters as a share of
    those of the largest pair's choice. The interval is over cells and calibration seeds, drawn with replacement.
    """
    keys = ["cell", "rule", "seed"]
    grid = records[records["method"] == GRID].set_index(keys)["pair_steps"]
    size = records[records["method"] == LARGEST].set_index(keys)["parameters"]
    index = pd.MultiIndex.from_frame(records[keys])
    table = records.assign(
        cost=records["pair_steps"] / grid.reindex(index).to_numpy(),
        size=records["parameters"] / size.reindex(index).to_numpy(),
        within=records["regret"] <= records["noise"],
    )
    aggregated: Mapping[str, tuple[str, str]] = {
        "choices": ("regret", "size"),
        "median_regret": ("regret", "median"),
        "mean_regret": ("regret", "mean"),
        "worst_regret": ("regret", "max"),
        "within_noise": ("within", "mean"),
        "cost": ("cost", "mean"),
        "pair_steps": ("pair_steps", "mean"),
        "size": ("size", "mean"),
    }
    found = table.groupby("method").agg(**aggregated)
    intervals = {name: _interval(own) for name, own in table.groupby("method")}
    found["low"] = [intervals[name][0] for name in found.index]
    found["high"] = [intervals[name][1] for name in found.index]
    return found.sort_values("mean_regret")


def _interval(own: pd.DataFrame) -> tuple[float, float]:
    """95% interval of the mean regret: cells are drawn, then a calibration seed in each."""
    rng = np.random.default_rng(0)
    cells = [group["regret"].to_numpy() for _, group in own.groupby("cell")]
    drawn = np.stack([rng.choice(one, (_RESAMPLES, len(cells))) for one in cells])
    picked = rng.integers(len(cells), size=(_RESAMPLES, len(cells)))
    means = drawn[picked, np.arange(_RESAMPLES)[:, None], np.arange(len(cells))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def verdict_table(records: pd.DataFrame) -> pd.DataFrame:
    """How often each verdict of MARS was given, and how often it was right.

    `best` is right where no pair is better by more than seed noise; `as good and cheaper` where the pair's excess over
    the one it was preferred to stays within the margin and seed noise; `cannot tell` promises nothing, and only its
    regret is told.
    """
    own = records[records["method"] == PRODUCT]
    right = np.where(
        own["verdict"] == "as good and cheaper",
        own["excess_over_best"] <= 0.0025 + own["noise"],
        own["regret"] <= own["noise"],
    )
    table = own.assign(right=right, seen=own["seen_regret"])
    found = table.groupby("verdict").agg(
        choices=("right", "size"), right=("right", "mean"), mean_regret=("regret", "mean"), expected=("seen", "mean")
    )
    found["right"] = [np.nan if verdict == "cannot tell" else value for verdict, value in found["right"].items()]
    return found


def prediction_table(records: pd.DataFrame) -> pd.DataFrame:
    """Per cell: whether the 95% intervals of the final loss cover the runs that judge, its bias, the order of pairs."""
    own = records[records["method"] == PRODUCT]
    table = own.assign(bias=np.expm1(own["predicted"] - own["reached"]))
    return table.groupby(["cell", "rule"], sort=False).agg(
        covered=("covered", "mean"), bias=("bias", "mean"), tau=("tau", "mean")
    )


def balance_table(records: pd.DataFrame) -> pd.DataFrame:
    """The test of law C per cell; see `balance_record`."""
    own = records[(records["method"] == PRODUCT) & (records["rule"] == "constant")]
    names = [name for name in own.columns if name.startswith("balance_")]
    if not names:
        return pd.DataFrame()
    table = own.dropna(subset=names).groupby("cell", sort=False)[names].mean()
    return table.rename(columns=lambda name: name.removeprefix("balance_"))


def ablation(records: pd.DataFrame, methods: Sequence[str] = ()) -> pd.DataFrame:
    """What each part of MARS is worth: mean regret of a variant less that of MARS on the same cells and seeds.

    The last line gives MARS under the other alpha rule, both against the best pair under any rule.
    """
    names = methods or [name for name in METHODS if name.startswith(("MARS", "best", "main"))]
    default = of_default(records)
    base = default[default["method"] == PRODUCT].set_index(["cell", "seed"])["regret"]
    found = []
    for name in names:
        own = default[default["method"] == name].set_index(["cell", "seed"])["regret"]
        gain = (own - base).mean()
        found.append({"variant": name, "mean_regret": own.mean(), "difference": gain, "choices": len(own)})
    found.append(_other_rule(records))
    return pd.DataFrame([line for line in found if line["choices"]]).set_index("variant")


def _other_rule(records: pd.DataFrame) -> dict[str, object]:
    own = records[(records["method"] == PRODUCT) & records["signal"]]
    over_all = np.expm1(own["loss"] - own["least"])
    table = own.assign(over_all=over_all).pivot_table(index=["cell", "seed"], columns="rule", values="over_all")
    both = table.reindex(columns=["constant", "2r"]).dropna()
    return {
        "variant": "MARS under alpha = 2 r",
        "mean_regret": both["2r"].mean(),
        "difference": (both["2r"] - both["constant"]).mean(),
        "choices": len(both),
    }
