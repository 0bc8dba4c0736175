"""`mars tune-lr`: the learning rate of one pair."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from rich.table import Table

from flows.cli.errors import one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson, Study, load_for_flow


@one_message
def tune_lr(
    study: Study,
    pair: Annotated[
        str | None,
        typer.Option("--pair", help="Ranks of vision encoder and LLM, as 16,16 (default: the uniform default)."),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option("--rates", help="Peak rates to try, as 1e-4,2e-4 (default: about the best of a range test)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the best learning rate of one rank pair: short runs over a wide range, then full-length runs about the best.

    The runs are calibration runs of the study: a later calibration takes them as they are.
    """
    wanted, given = _pair(pair), asked_rates(rates)
    config = load_for_flow(study)
    from flows.tune import tune_flow

    found = tune_flow(config, *(wanted or config.calibration.reference), given)
    if as_json:
        print_json(found)
        return
    console.print(_table(found))
    low, high = found["interval"]
    ranks = f"({found['pair'][0]}, {found['pair'][1]})"
    typer.echo(
        f"best learning rate for {ranks}, over {found['steps']} steps: {found['learning_rate']:g} "
        f"(95% interval {low:.2g} to {high:.2g})"
    )
    for note in found["notes"]:
        typer.echo(f"note: {note}")


def _pair(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*[,x ]\s*(\d+)\s*", text)
    if match is None or match.groups() == ("0", "0"):
        raise ValueError(f"--pair is two ranks such as 16,16 (vision encoder, LLM), not both 0; got {text!r}")
    return int(match[1]), int(match[2])


def asked_rates(text: str | None) -> list[float]:
    """The peak learning rates of an option `--rates`, none where it was not given.

    Raises:
        ValueError: it is not a list of at least two.
    """
    if text is None:
        return []
    from tasks.settings.rates import rate_grid, rates_text

    grid = None if text == "auto" or ":" in text else rate_grid(rates_text(text))
    if grid is None or grid == "auto":
        raise ValueError(f"--rates is at least two learning rates such as 1e-4,2e-4, got {text!r}")
    return [rates.llm for rates in grid]


def _table(found: dict[str, Any]) -> Table:
    name = "validation loss" if found["objective"] == "perplexity" else found["objective"]
    table = Table("runs", "steps", "learning rate", name)
    test = found["range_test"] or {"losses": {}, "steps": 0}
    for rate, loss in test["losses"].items():
        table.add_row("range test", str(test["steps"]), f"{float(rate):g}", _shown(loss))
    for tried in found["tried"]:
        count = "" if tried["runs"] == 1 else f" ({tried['runs']} seeds)"
        table.add_row(f"full length{count}", str(found["steps"]), f"{tried['learning_rate']:g}", _shown(tried["loss"]))
    return table


def _shown(loss: float | None) -> str:
    return "diverged" if loss is None else f"{loss:.4f}"
