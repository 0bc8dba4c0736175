"""`mars laws`: the library of scaling laws on its own, without a study. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.app import App
from flows.cli.errors import one_message
from flows.cli.output import console, print_json

if TYPE_CHECKING:
    import pandas as pd

    from mars_core.fitting import LawFit
    from mars_core.laws.law import Law

laws_app = App(help="Scaling laws: list them, fit one to a table.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@laws_app.callback()
def _group() -> None:
    """Scaling laws: list them, fit one to a table."""


@laws_app.command("list")
@one_message
def list_laws(as_json: AsJson = False) -> None:
    """List every law with its equation, columns and source."""
    from mars_core.laws import LAWS, describe

    rows = describe(list(LAWS.values()))
    if as_json:
        print_json(rows)
        return
    for row in rows:
        console.print(f"[bold]{row['name']}[/bold]  {row['title']}")
        console.print(f"  {row['equation']}", markup=False, highlight=False)
        columns = ", ".join([*row["inputs"], row["target"]])  # type: ignore
        console.print(f"  columns {columns}; from {row['source']}", markup=False, highlight=False)


@laws_app.command("fit")
@one_message
def fit(
    law: Annotated[str, typer.Option("--law", help="Name of a law; `mars laws list` shows them.")],
    data: Annotated[Path, typer.Option("--data", help="CSV or Parquet table with the law's columns.")],
    hold_out: Annotated[
        str,
        typer.Option(
            "--hold-out",
            help="Points to test on: `largest` (the largest size), `none`, or a condition like 'D>=102400'.",
        ),
    ] = "largest",
    group: Annotated[
        str | None,
        typer.Option("--group", help="Column naming the run of each row; by default run_id."),
    ] = None,
    delta: Annotated[float, typer.Option("--delta", help="Huber threshold on log residuals.")] = 1e-3,
    starts: Annotated[
        int | None, typer.Option("--starts", help="Starting points (default: the law's own, 64 or 100).")
    ] = None,
    bootstrap: Annotated[int, typer.Option("--bootstrap", help="Bootstrap draws.")] = 1000,
    level: Annotated[float, typer.Option("--level", help="Coverage of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option("--seed", help="Seed of starts and bootstrap.")] = 0,
    at_least: Annotated[
        list[str] | None,
        typer.Option("--at-least", help="Least value of a constant, as P_max=80; may be given several times."),
    ] = None,
    base: Annotated[
        list[Path] | None,
        typer.Option(
            "--base",
            help="The LLM's own scores, joined by column `model`: a table (model, nli, commonsense, reasoning) or a "
            "result file of lm-evaluation-harness; may be given several times.",
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            "--window",
            help="Make the column loss from train_loss: its mean since the last score (`interval`) or since the start "
            "(`cumulative`).",
        ),
    ] = None,
    noise: Annotated[
        bool, typer.Option("--noise", help="Estimate the noise of single points around the law as well.")
    ] = False,
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Folder for plots of fit, residuals, profiles and bootstrap.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a law to a table: coefficients with intervals, held-out error and what to beware of."""
    from mars_core.fitting import fit_law
    from mars_core.fitting.table import DEFAULT_GROUP
    from mars_core.laws import get_law

    limits = _limits(at_least or [])
    form = get_law(law).at_least(limits)
    points = _prepared(read_points(data), base or [], window)
    n_starts = form.n_starts if starts is None else starts
    fitted = fit_law(
        form,
        points,
        delta=delta,
        n_starts=n_starts,
        n_bootstrap=bootstrap,
        seed=seed,
        group=group or DEFAULT_GROUP,
        level=level,
        hold_out=parse_hold_out(hold_out, points),
    )
    if plots is not None:
        from mars_core.fitting.plots import save_plots

        save_plots(fitted, points, plots)
    added = _added(form, fitted, points, n_starts, seed, noise=noise)
    if as_json:
        shown = {key: value for key, value in fitted.to_json().items() if key != "draws"}
        print_json(shown | {"at_least": limits} | added)
    else:
        print_fit(fitted)
        if limits:
            held = ", ".join(f"{symbol} at {value:g} or more" for symbol, value in limits.items())
            console.print(f"held by --at-least: {held}", markup=False, highlight=False)
        _print_added(added, form)


def _limits(texts: list[str]) -> dict[str, float]:
    """`P_max=80` as a symbol and its least value."""
    limits = {}
    for text in texts:
        symbol, found, value = text.partition("=")
        try:
            limits[symbol.strip()] = float(value)
        except ValueError as error:
            raise ValueError(f"--at-least {text!r}: expected SYMBOL=NUMBER such as P_max=80") from error
        if not found:
            raise ValueError(f"--at-least {text!r}: expected SYMBOL=NUMBER such as P_max=80")
    return limits


def _prepared(points: pd.DataFrame, base: list[Path], window: str | None) -> pd.DataFrame:
    """The table with base scores and windowed losses where they were asked for."""
    if base:
        from mars_core.importing.base_scores import read_base_scores, with_base_scores

        points = with_base_scores(points, read_base_scores(base))
    if window is not None:
        from mars_core.metrics.loss_windows import with_window

        points = with_window(points, window)  # type: ignore[arg-type]
    return points


def _added(form: Law, fitted: LawFit, points: pd.DataFrame, n_starts: int, seed: int, *, noise: bool) -> dict[str, Any]:
    """The best independent fits of a law whose terms may trade off, and the noise where it was asked for."""
    added: dict[str, Any] = {}
    if form.combination is not None:
        from mars_core.fitting.best_fits import KEPT, best_fits

        kept = min(KEPT, n_starts)
        added["best_fits"] = [
            one.to_json()
            for one in best_fits(form, points, delta=fitted.delta, n_fits=n_starts, keep=kept, seed=seed, group=None)
        ]
    if noise:
        from mars_core.fitting.noise_term import noise_term

        added["noise"] = noise_term(fitted, points).to_json()
    return added


def _print_added(added: dict[str, Any], form: Law) -> None:
    if best := added.get("best_fits"):
        table = Table("independent fit", "objective", "R2", *form.symbols)
        for number, one in enumerate(best, 1):
            values = [f"{value:.5g}" for value in one["coefficients"].values()]
            table.add_row(str(number), f"{one['objective']:.6g}", f"{one['r_squared']:.4f}", *values)
        console.print(table)
    if found := added.get("noise"):
        console.print(
            f"noise of one point: sigma = {found['sigma']:.4g} {form.target} ({found['freedom']} degrees of freedom)",
            highlight=False,
        )


def read_points(path: Path) -> pd.DataFrame:
    """A table from CSV or Parquet.

    Raises:
        ValueError: there is no such file or it is no table.
    """
    import pandas as pd

    from mars_core.importing.csv_form import read_numbers

    if not path.is_file():
        raise ValueError(f"no file {path}: give --data a CSV or Parquet table")
    readers: dict[str, Any] = {".parquet": pd.read_parquet, ".csv": read_numbers}
    if path.suffix.lower() not in readers:
        raise ValueError(f"cannot read {path.name}: expected .csv or .parquet")
    try:
        table: pd.DataFrame = readers[path.suffix.lower()](path)
    except (ValueError, OSError, NotImplementedError, KeyError, TypeError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} is not a readable table: {error}") from error
    return table


def parse_hold_out(text: str, points: pd.DataFrame) -> Any:
    """What `fit_law` expects for `largest`, `none` or a condition `COLUMN>=VALUE` (also >, <=, <, ==).

    Raises:
        ValueError: not one of these, or the column is not in the table.
    """
    if text in ("largest", "none"):
        return text == "largest"
    comparisons = {">=": "ge", "<=": "le", "==": "eq", ">": "gt", "<": "lt"}
    operator = next((symbol for symbol in comparisons if symbol in text), None)
    if operator is None:
        raise ValueError(f"--hold-out {text!r}: expected largest, none or a condition like 'D>=102400'")
    column, value = (part.strip() for part in text.split(operator, 1))
    if column not in points:
        raise ValueError(f"--hold-out {text!r}: no column {column!r}; the table has {list(points.columns)}")
    try:
        limit = float(value)
    except ValueError as error:
        raise ValueError(f"--hold-out {text!r}: {value!r} is not a number") from error
    return getattr(points[column], comparisons[operator])(limit).to_numpy()


def print_fit(fitted: LawFit) -> None:
    """Print a fit: equation, coefficients with intervals, held-out error and what to beware of."""
    from mars_core.laws import get_law

    law = get_law(fitted.law)
    console.print(f"{law.title}: {law.equation}  ({law.source})", markup=False, highlight=False)
    table = Table("coefficient", "value", f"{fitted.level:.0%} interval", "unit")
    for symbol, value in fitted.coefficients.items():
        low, high = fitted.intervals[symbol]
        table.add_row(symbol, f"{value:.6g}", f"{low:.4g} .. {high:.4g}", law.units.get(symbol, ""))
    console.print(table)
    console.print(
        f"{fitted.n_points} points ({fitted.n_censored} censored), {fitted.n_groups} groups by {fitted.grouped_by}; "
        f"objective {fitted.objective:.6g} (sum of Huber losses on log residuals, delta {fitted.delta:g}); "
        f"{fitted.start_agreement:.0%} of starts agree",
        highlight=False,
    )
    _print_held_out(fitted)
    for status in fitted.statuses:
        console.print(f"{status.severity}: {status.code}: {status.message}", markup=False, highlight=False)


def _print_held_out(fitted: LawFit) -> None:
    held_out = fitted.held_out
    if held_out is None:
        console.print("nothing held out")
        return
    rivals = ", ".join(f"{name} {error:.2%}" for name, error in held_out.rivals.items())
    console.print(
        f"held out ({held_out.rule}, {held_out.n_test} points): mean error {held_out.mape:.2%}, "
        f"largest {held_out.largest_error:.2%}; on fitted points {held_out.train_mape:.2%}"
        + (f"; trivial rivals: {rivals}" if rivals else ""),
        markup=False,
        highlight=False,
    )
