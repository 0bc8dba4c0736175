"""`mars tune-lr`: the learning rate of one pair."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.calibrate import train_step
from flows.here import Here
from flows.results import JSON_RESULTS
from mars_core.ranks import RankPair
from tasks.calibration.tuning import begin_tuning
from tasks.inputs.opened import open_inputs
from tasks.running.kept import kept_open
from tasks.settings.study import StudyConfig
from tasks.storage.location import working_folder
from tasks.study.lock import at_work_on
from tasks.study.opened import open_study
from tasks.study.parent_run import parent_run
from tasks.study.plan import plan_rates


@flow(name="mars-tune-lr", flow_run_name="tune rate of me{r_me}-llm{r_llm} {config.short_name}", **JSON_RESULTS)
def tune_flow(config: StudyConfig, r_me: int, r_llm: int, rates: list[float]) -> dict[str, Any]:
    """Find the best learning rate of one pair by calibration runs in this process; returns it with what was tried.

    Args:
        config: The study.
        r_me: Rank of the vision encoder.
        r_llm: Rank of the language model.
        rates: Peak rates to try, none for those about the best of a range test.
    """
    pair = RankPair(r_me, r_llm)
    with kept_open(), at_work_on(working_folder(config.study)):
        plan_rates(
            open_inputs(config), pair, rates
        )  # refuses what cannot be planned before a revision is opened for it
        tuning = begin_tuning(open_study(config), pair, rates)
        with parent_run(tuning.study) as parent:
            for step in tuning.steps():
                train_step(tuning.study, Here(), step, parent)
        return tuning.answer().to_json()
