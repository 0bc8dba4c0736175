"""The `mars` command."""

from __future__ import annotations

import gc
import os
from typing import Annotated

import typer

from flows.cli import (
    bench,
    clean,
    compare,
    correlate,
    data,
    demo,
    doctor,
    export,
    forgetting,
    importing,
    init,
    model,
    nightly,
    plan,
    published,
    refine,
    schedule,
    stack,
    stages,
    tune,
)
from flows.cli.app import App
from flows.cli.environment import prepare_environment
from flows.cli.errors import DEBUG_VARIABLE
from flows.cli.laws import laws_app

app = App(
    name="mars",
    help="Find the best pair of LoRA ranks (vision encoder, LLM) for a vision-language model, then fine-tune with it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from mars_core import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' own logs.")] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    prepare_environment(debug=debug)


app.command("demo")(demo.demo)
app.command("run")(stages.run)
app.command("calibrate")(stages.calibrate)
app.command("tune-lr")(tune.tune_lr)
app.command("fit")(stages.fit)
app.command("search")(stages.search)
app.command("finetune")(stages.finetune)
app.command("evaluate")(stages.evaluate)
app.command("report")(stages.report)
app.command("init")(init.init)
app.command("compare")(compare.compare)
app.command("refine")(refine.refine)
app.command("forgetting")(forgetting.forgetting)
app.command("export")(export.export)
app.command("correlate")(correlate.correlate)
app.command("import")(importing.import_)
app.command("clean")(clean.clean)
app.command("nightly")(nightly.nightly)
app.command("accept")(nightly.accept)
app.command("up")(stack.up)
app.command("down")(stack.down)
app.command("doctor")(doctor.doctor)
app.add_typer(bench.bench_app, name="bench")
app.add_typer(schedule.app, name="schedule")
app.add_typer(model.app, name="model")
app.add_typer(data.app, name="data")
laws_app.command("published")(published.published)
app.add_typer(plan.app, name="plan")
app.add_typer(laws_app, name="laws")


def main() -> None:
    """Entry point of the `mars` command."""
    try:
        app()
    finally:
        # Else Python ends by looking for garbage among all objects of torch and its kin: seconds, in every command.
        gc.freeze()
