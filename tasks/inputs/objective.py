"""The search's objective: a study's metric, bound to its validation set."""

from __future__ import annotations

from functools import partial

from mars_core.data.encode import encode_sample
from mars_core.evaluation.objectives.measurement import Measurement, first_answer_tokens, known_answers, letter_tokens
from mars_core.evaluation.objectives.registry import NamedMetric, find_metric
from mars_core.metrics.schema import PERPLEXITY
from tasks.inputs.opened import Inputs
from tasks.settings.study import StudyConfig


def objective_metric(config: StudyConfig) -> NamedMetric | None:
    """The metric that the search minimises, None where that is perplexity.

    Raises:
        ValueError: no such metric is installed.
    """
    name = config.search.objective
    return None if name == PERPLEXITY else find_metric(name)


def objective_identity(config: StudyConfig) -> str | None:
    """What tells the objective from other ones, its package's version included; None for perplexity."""
    metric = objective_metric(config)
    return metric.identity if metric else None


def measurement(inputs: Inputs) -> Measurement | None:
    """The metric over the calibration validation set, tried on perfect answers; None where perplexity is the objective.

    Raises:
        ValueError: the metric is not installed, or cannot be taken on this data.
    """
    metric = objective_metric(inputs.config)
    if metric is None:
        return None
    samples, processor = inputs.usable("validation"), inputs.processor
    answers = known_answers(samples)
    letters = letter_tokens(
        answers,
        lambda place: first_answer_tokens(encode_sample(samples[place], processor).labels),
        processor.tokenizer,
    )
    decode = partial(processor.tokenizer.decode, skip_special_tokens=True)
    found = Measurement(metric, answers, letters, decode)
    found.check()
    return found
