"""What a fine-tune gained on its own task (E) and lost elsewhere (F), and the average of both scores (O). No torch."""

from mars_core.evaluation.forgetting.measures import Estimate, Forgetting, TaskResult, TaskScores, measure
from mars_core.evaluation.forgetting.pareto import Tradeoff, pareto_front
from mars_core.evaluation.forgetting.signs import Sign, failure_signs

__all__ = [
    "Estimate",
    "Forgetting",
    "Sign",
    "TaskResult",
    "TaskScores",
    "Tradeoff",
    "failure_signs",
    "measure",
    "pareto_front",
]
