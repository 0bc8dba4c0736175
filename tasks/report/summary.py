"""What a finished study comes down to."""

from __future__ import annotations

from typing import Any

from mars_core.report.decision import rival_sentences
from tasks.calibration.stored import calibration_cost
from tasks.choice.search import read_choice
from tasks.final.evaluate import read_evaluation
from tasks.final.pair import final_folder
from tasks.final.pairs import final_arms
from tasks.final.record import read_final
from tasks.report.write import report_path
from tasks.study.opened import Study


def summarise(study: Study) -> dict[str, Any]:
    """The chosen pair, why, what it cost, how it scores, and where adapter and report are."""
    choice, arm = read_choice(study.revision), final_arms(study)["chosen"]
    calibration = calibration_cost(study)
    return {
        "pair": arm.pair._asdict(),
        "learning_rates": None if arm.learning_rates is None else arm.learning_rates._asdict(),
        "uniform_pair": study.config.calibration.reference._asdict(),
        "verdict": choice.verdict,
        "reason": choice.reason,
        "regret": choice.regret,
        "regret_bound": choice.regret_bound,
        "seeds_needed": choice.seeds_needed,
        "warnings": list(choice.warnings),
        "comparison": rival_sentences(choice),
        "revision": study.revision.number,
        "calibration_runs": calibration.runs,
        "calibration_seconds": calibration.seconds,
        "final_seconds": read_final(study.revision, arm).seconds,
        "test": {role: score.overall.to_json() for role, score in read_evaluation(study.revision).items()},
        "adapter": study.address(final_folder(study.revision, arm) / "adapter"),
        "report": study.address(report_path(study.revision)),
    }
