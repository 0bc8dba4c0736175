"""`mars init`: a study file with the paper's settings."""

from __future__ import annotations

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
    """Write a study file with the paper's settings for your model and data, every setting spelled out."""
    from tasks.settings.presets.studies import Files, describe_preset, shipped_presets, write_preset

    if listed:
        print_names({name: describe_preset(name) for name in shipped_presets()}, as_json)
        return
    if preset is None or model is None or data is None:
        raise ValueError("give a name, a model and data: mars init paper-llava --model MODEL --data train.json")
    files = Files(study=study, model=model, data=data, images=images, validation=validation, test=test)
    write_preset(preset, files, output, replace=force)
    if as_json:
        print_json({"study": str(output)})
        return
    typer.echo(f"wrote {output}: look with `mars data check {output}`, then `mars run {output}`")
