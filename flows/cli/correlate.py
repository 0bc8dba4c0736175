"""`mars correlate`: whether perplexity tells accuracy on this data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.errors import one_message
from flows.cli.output import print_json
from flows.cli.stages import AsJson

if TYPE_CHECKING:
    import pandas as pd


@one_message
def correlate(
    study: Annotated[
        str | None, typer.Argument(help="A STUDY.yaml, or the folder of a study that exists; a path or a URL.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="A CSV or Parquet table with columns perplexity and accuracy, instead of a study."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Correlate perplexity with accuracy over runs (Pearson, Spearman): calibration runs at their last checkpoint.

    Nothing is trained: calibration has measured both on its validation set.
    """
    from mars_core.evaluation.correlation import correlate as correlate_points
    from mars_core.evaluation.correlation import in_words

    points = _points(study, data)
    found = correlate_points(points)
    if as_json:
        print_json(found.to_json() | {"points": points.to_dict("records")})
        return
    typer.echo(in_words(found))
    for doubt in found.doubts if found.pearson else ():
        typer.echo(f"note: {doubt}")


def _points(study: str | None, data: str | None) -> pd.DataFrame:
    if (study is None) == (data is None):
        raise ValueError("give a study, or --data with a table: one of the two")
    if data is not None:
        from flows.cli.laws import read_points

        return read_points(Path(data))
    from mars_core.evaluation.correlation import last_scores
    from tasks.calibration.stored import stored_metrics
    from tasks.settings.find import find_study
    from tasks.storage.location import working_folder
    from tasks.storage.transfer import pull
    from tasks.study.revision import newest_revision

    config = find_study(str(study))
    pull(config.study)
    return last_scores(stored_metrics(newest_revision(working_folder(config.study))))
