"""What a finished study comes down to."""

from __future__ import annotations

from typing import Any

from mars_core.report.decision import rival_sentences
from tasks.calibration.stored import calibration_cost
from tasks.choice.approval import pair_to_train
from tasks.choice.search import read_choice
from tasks.final.evaluate import read_evaluation
from tasks.final.pair import final_folder, read_final
from tasks.report.write import report_path
from tasks.study.opened import Study


def summarise(study: Study) -> dict[str, Any]:
    """The chosen pair, why, what it cost, how it scores, and where adapter and report are."""
    choice, pair = read_choice(study.revision), pair_to_train(study.revision)
    calibration = calibration_cost(study)
    uniform = study.config.calibration.reference_rank
    return {
        "pair": pair._asdict(),
        "uniform_pair": {"r_me": uniform, "r_llm": uniform},
        "verdict": choice.verdict,
        "reason": choice.reason,
        "regret": choice.regret,
        "regret_bound": choice.regret_bound,
        "seeds_needed": choice.seeds_needed,
        "warnings": list(choice.warnings),
        "comparison": rival_sentences(choice),
        "revision": study.revision.number,
        "calibration_runs": calibration["runs"],
        "calibration_seconds": calibration["seconds"],
        "final_seconds": read_final(study.revision, pair)["seconds"],
        "test": {role: score["overall"] for role, score in read_evaluation(study.revision).items()},
        "adapter": study.address(final_folder(study.revision, pair) / "adapter"),
        "report": study.address(report_path(study.revision)),
    }
