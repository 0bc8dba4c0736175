"""What commands print: results on standard output, as text for people or JSON for programs."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mars_core.rates import LearningRates

WIDE = 200
"""Columns where no terminal says how many it has: 80 would cut tables in logs and files."""


def console_for_output() -> Console:
    """As wide as the terminal or COLUMNS say, else wide enough for every table."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console() if known else Console(width=WIDE)


console = console_for_output()


def print_json(value: Any) -> None:
    """Print a result as JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_names(names: dict[str, str], as_json: bool) -> None:
    """Print names with what they stand for."""
    if as_json:
        print_json(names)
        return
    for name, meaning in names.items():
        typer.echo(f"{name:18} {meaning}")


def print_summary(summary: dict[str, Any]) -> None:
    """Print what a finished study comes down to."""
    pair = summary["pair"]
    lines = Text()
    lines.append(f"Chosen rank pair: r_me = {pair['r_me']}, r_llm = {pair['r_llm']}", style="bold")
    lines.append(f"  ({summary['verdict']})\n")
    if (rates := summary["learning_rates"]) is not None:
        lines.append(f"Learning rate: {LearningRates(**rates)}, the best for this pair\n")
    lines.append(f"Why: {' '.join([summary['reason'], *summary['comparison']])}\n")
    for warning in summary["warnings"]:
        lines.append(f"Warning: {warning}\n")
    lines.append(
        f"Cost: {minutes(summary['calibration_seconds'])} of training in {summary['calibration_runs']} calibration "
        f"runs, {minutes(summary['final_seconds'])} in the final fine-tune\n"
    )
    lines.append(f"Adapter: {summary['adapter']}\n")
    lines.append(f"Report:  {summary['report']}")
    console.print(Panel(lines, title="MARS", expand=False))
    console.print(_scores(summary))


def _scores(summary: dict[str, Any]) -> Table:
    table = Table("test split", "perplexity", "exact match", "answers")
    uniform = summary["uniform_pair"]
    pairs = {"chosen": summary["pair"], "uniform": uniform, "uniform-tuned-rate": uniform}
    names = {role: f"{role} ({pair['r_me']}, {pair['r_llm']})" for role, pair in pairs.items()} | {"base": "before"}
    for role, score in summary["test"].items():
        accuracy, answers = f"{score['accuracy']:.1%}", str(score["n_answers"])
        table.add_row(names.get(role, role), f"{score['perplexity']:.4f}", accuracy, answers)
    return table


def minutes(seconds: float) -> str:
    """A duration as people say it."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
