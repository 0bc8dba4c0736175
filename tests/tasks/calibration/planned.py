"""An open study with a plan written by hand: no data and no model are read."""

from __future__ import annotations

from tasks.settings.study import StudyConfig
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.plan import CalibrationPlan


def planned_study(config: StudyConfig, revision: Revision, plan: CalibrationPlan) -> Study:
    study = Study(config, revision)
    study.plan = plan
    return study
