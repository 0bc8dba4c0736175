"""The MLflow run of a revision, under which all runs of its stages lie."""

from __future__ import annotations

from contextlib import AbstractContextManager

from tasks.study.opened import Study
from tasks.tracking import runs as tracking


def parent_run(study: Study) -> AbstractContextManager[str]:
    """The revision's MLflow run, open; gives its id."""
    return tracking.study_run(study.folder, study.revision.number, study.config.model_dump(mode="json"))
