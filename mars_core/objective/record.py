"""The old address of `mars_core.evaluation.objectives.record`."""

from mars_core.evaluation.objectives.record import AnswerRecord, Metric

__all__ = ["AnswerRecord", "Metric"]
