"""`mars plan`: how much data a score needs, and what score a size of data gives, before anyone collects it."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.errors import one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson, Study

if TYPE_CHECKING:
    from mars_core.planning.scores import DataForecast, ScoreForecast
    from tasks.planning.scores import Forecaster

app = typer.Typer(help="Plan a dataset: how much data a score needs, what score a size gives.", no_args_is_help=True)

Ranks = Annotated[
    str | None, typer.Option("--pair", help="Ranks of vision encoder and LLM, as 16,16 (default: the chosen pair).")
]
PMax = Annotated[
    float | None,
    typer.Option("--p-max", help="Least score at a loss of 0, in points (the MLLM-SFT paper: 80; default: as fitted)."),
]


class LossWindow(StrEnum):
    """Steps over which a training loss is averaged."""

    interval = "interval"
    cumulative = "cumulative"


@app.callback()
def _group() -> None:
    """Plan a dataset: how much data a score needs, what score a size gives."""


@app.command("data")
@one_message
def data(
    study: Study,
    target: Annotated[float, typer.Option("--target", help="Score to reach, in points: percent of answers right.")],
    pair: Ranks = None,
    p_max: PMax = None,
    as_json: AsJson = False,
) -> None:
    """The smallest dataset whose fine-tune is expected to reach a score, from the study's own calibration."""
    asked = _asked(study, pair, p_max)
    found = asked.data(target)
    if as_json:
        print_json(found.to_json())
        return
    _print_data(asked, found)


@app.command("score")
@one_message
def score(
    study: Study,
    size: Annotated[int | None, typer.Option("--size", help="Training samples of the fine-tune.")] = None,
    loss: Annotated[
        float | None,
        typer.Option("--loss", help="Instead of a size: the validation loss of a model, in nats per answer token."),
    ] = None,
    window: Annotated[
        LossWindow | None,
        typer.Option(
            "--window",
            help="--loss is a training loss, as in the MLLM-SFT paper: its mean since the last evaluation (`interval`) "
            "or since the start (`cumulative`).",
        ),
    ] = None,
    pair: Ranks = None,
    p_max: PMax = None,
    as_json: AsJson = False,
) -> None:
    """The score that a fine-tune on so many samples will reach, or that a model with this loss has."""
    if (size is None) == (loss is None):
        raise ValueError("give --size or --loss: one of the two")
    if window is not None and loss is None:
        raise ValueError("--window says which training loss --loss is: a size is asked about by the validation loss")
    asked = _asked(study, pair, p_max, window)
    found = asked.score_at(loss) if size is None else asked.score(size)  # type: ignore[arg-type]
    if as_json:
        print_json(found.to_json())
        return
    _print_size(asked, found)
    _print_score(asked, found)
    _print_statuses(found)


def _asked(study: str, pair: str | None, p_max: float | None, window: LossWindow | None = None) -> Forecaster:
    from tasks.planning.scores import forecaster
    from tasks.settings.find import find_study

    return forecaster(find_study(study), _pair(pair), p_max, None if window is None else window.value)


def _pair(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*[,x ]\s*(\d+)\s*", text)
    if match is None:
        raise ValueError(f"--pair is two ranks such as 16,16 (vision encoder, LLM), got {text!r}")
    return int(match[1]), int(match[2])


def _print_data(asked: Forecaster, found: DataForecast) -> None:
    low, high = found.interval
    if found.size is None:
        console.print(f"{found.target:g} points: no dataset up to {found.furthest:,.0f} samples is expected to do")
    else:
        ends = [
            f"{found.smallest:,.0f} or less"
            if low is not None and low <= found.smallest
            else _end(low, found.furthest),
            _end(high, found.furthest),
        ]
        console.print(
            f"{found.target:g} points need about {found.size:,.0f} training samples "
            f"(95% interval: {ends[0]} to {ends[1]}; {found.reached:.0%} of the draws reach it at all)",
            highlight=False,
        )
    _print_size(asked, found.at_size)
    _print_score(asked, found.at_size)
    _print_statuses(found)


def _end(size: float | None, furthest: float) -> str:
    return f"more than {furthest:,.0f}" if size is None else f"{size:,.0f}"


def _print_size(asked: Forecaster, found: ScoreForecast) -> None:
    if found.size is None or found.pair is None:
        return
    low, high = found.loss_interval
    console.print(
        f"with {found.size:,.0f} samples and ranks ({found.pair[0]}, {found.pair[1]}), {asked.why}: validation loss "
        f"{found.loss:.3f} ({low:.3f} to {high:.3f})",
        highlight=False,
    )


def _print_score(asked: Forecaster, found: ScoreForecast) -> None:
    low, high = found.interval
    seen_low, seen_high = found.observed_interval
    console.print(
        f"score: {found.score:.1f} points ({low:.1f} to {high:.1f}); measured on {found.n_answers:,} test answers, "
        f"{seen_low:.1f} to {seen_high:.1f}",
        highlight=False,
    )
    law = asked.law
    shown = ", ".join(f"{symbol} {value:.4g}" for symbol, value in law.fit.coefficients.items())
    console.print(
        f"loss-to-score law of {law.fit.n_points} checkpoints in {law.fit.n_groups} runs: {shown}; scatter "
        f"{law.noise.sigma:.1f} points",
        highlight=False,
    )


def _print_statuses(found: ScoreForecast | DataForecast) -> None:
    for status in found.statuses:
        console.print(f"{status.severity}: {status.code}: {status.message}", markup=False, highlight=False)
