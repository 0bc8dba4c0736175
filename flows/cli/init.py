"""`mars init`: a study file that fits model and data, or one with the paper's settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.errors import one_message
from flows.cli.output import print_json, print_names
from flows.cli.stages import AsJson


@one_message
def init(
    preset: Annotated[str | None, typer.Argument(help="Name of a study that ships, such as paper-llava.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Base checkpoint: a hub id or a folder.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Training data: a path or a URL.")] = None,
    images: Annotated[str | None, typer.Option("--images", help="Folder that image paths are relative to.")] = None,
    validation: Annotated[str | None, typer.Option("--validation", help="Validation data, if not split off.")] = None,
    test: Annotated[str | None, typer.Option("--test", help="Test data, if not split off.")] = None,
    study: Annotated[str, typer.Option("--study", help="Study folder: where results will lie.")] = "study",
    output: Annotated[Path, typer.Option("-o", "--output", help="Study file to write.")] = Path("study.yaml"),
    listed: Annotated[bool, typer.Option("--list", help="List the studies that ship.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a study file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a study file for your model and data: one that fits them and this machine, or a shipped one.

    Without a name every row is looked at and the model's shapes are read; ranks, tokens, batch, dtype, sizes and memory
    follow from them, each with its reason. A model or data that is not given is asked for.
    """
    from tasks.settings.presets.studies import Files, describe_preset, shipped_presets, write_preset

    if listed:
        print_names({name: describe_preset(name) for name in shipped_presets()}, as_json)
        return
    model, data = _answer(model, "model", "a hub id or a folder"), _answer(data, "data", "a file or a folder")
    files = Files(study=study, model=model, data=data, images=images, validation=validation, test=test)
    reasons: dict[str, str] = {}
    if preset is not None:
        write_preset(preset, files, output, replace=force)
    else:
        from tasks.planning.fitted_study import write_fitted

        reasons = write_fitted(files, output, replace=force)
    if as_json:
        print_json({"study": str(output), "reasons": reasons})
        return
    for name, reason in reasons.items():
        typer.echo(f"{name}: {reason}")
    typer.echo(f"wrote {output}: look with `mars calibrate {output} --dry-run`, then `mars run {output}`")


def _answer(given: str | None, what: str, form: str) -> str:
    """An option's value, asked for where a person sits before the terminal."""
    if given is not None:
        return given
    if not is_asked():
        raise ValueError(f"give --{what}: mars init --model MODEL --data train.json (nobody is there to be asked)")
    return str(typer.prompt(f"{what} ({form})"))


def is_asked() -> bool:
    """Whether a person sits before the terminal."""
    return sys.stdin.isatty()
