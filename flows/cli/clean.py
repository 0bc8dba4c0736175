"""`mars clean`: what a study's retention policy would delete, and deleting it."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.errors import FAILURE, one_message
from flows.cli.output import console, print_json
from flows.cli.stages import AsJson, Study

if TYPE_CHECKING:
    from tasks.retention.find import Cleaning


@one_message
def clean(
    study: Study,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only say what would be deleted.")] = False,
    include_resume: Annotated[
        bool, typer.Option("--include-resume", help="Also what unfinished stages would resume from.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what the study's `retention` policy does not keep, and delete it with --yes."""
    # A person waits: MLflow's own retries would take minutes to say that no registry is there.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from tasks.retention.delete import Deletion, delete
    from tasks.retention.find import plan_cleaning, require_study
    from tasks.settings.find import find_study
    from tasks.storage.location import is_remote
    from tasks.storage.transfer import pull
    from tasks.study.lock import at_work_on
    from tasks.tracking.champion import find_champions

    config = find_study(study)
    pull(config.study)
    champions = find_champions(require_study(config))
    cleaning = plan_cleaning(config, champions, include_resume=include_resume)
    failed = []
    if yes:
        deletions = [Deletion(item.path, item.manifests) for item in cleaning.items]
        with at_work_on(cleaning.study):
            failed = delete(config.study, cleaning.study, deletions)
    if as_json:
        where = config.study if is_remote(config.study) else str(cleaning.study)
        print_json({"study": where} | _as_json(cleaning) | {"deleted": yes, "failed": failed})
    else:
        _print(cleaning, yes)
        for line in failed:
            console.print(f"could not delete {line}", markup=False, highlight=False)
    if failed:
        raise typer.Exit(FAILURE)


def _as_json(cleaning: Cleaning) -> dict[str, Any]:
    items = [
        {
            "path": str(item.path.relative_to(cleaning.study)),
            "kind": item.kind,
            "bytes": item.size,
            "modified": datetime.fromtimestamp(item.modified, UTC).isoformat(timespec="seconds"),
            "why": item.why,
        }
        for item in cleaning.items
    ]
    return {"items": items, "bytes": cleaning.size, "notes": list(cleaning.notes)}


def _print(cleaning: Cleaning, deleted: bool) -> None:
    if cleaning.items:
        table = Table("path", "kind", "size", "age", "why")
        for item in cleaning.items:
            path = str(item.path.relative_to(cleaning.study))
            table.add_row(path, item.kind, _size(item.size), _age(item.modified), item.why)
        console.print(table)
    for note in cleaning.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    count = len(cleaning.items)
    if not count:
        console.print("nothing to delete")
    elif deleted:
        console.print(f"deleted {count} entries, {_size(cleaning.size)}", highlight=False)
    else:
        console.print(f"{count} entries, {_size(cleaning.size)}: nothing is deleted without --yes", highlight=False)


def _size(amount: int) -> str:
    return f"{amount / 1e9:.2f} GB" if amount >= 1e9 else f"{amount / 1e6:.2f} MB"


def _age(modified: float) -> str:
    hours = max(0.0, time.time() - modified) / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"
