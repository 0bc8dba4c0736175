"""How much data, what score: a study's own calibration, through the loss-to-score law of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from mars_core.metrics.loss_windows import Window
from mars_core.models.lora import trainable_parameters
from mars_core.planning.scores import (
    DataForecast,
    ScoreForecast,
    ScoreLaw,
    fit_score_law,
    forecast_data,
    forecast_score,
    score_at_loss,
)
from mars_core.ranks import Pair, RankPair
from mars_core.search import Question, read_points
from mars_core.search.choose import calibrate
from mars_core.search.objective import PERPLEXITY_OBJECTIVE
from mars_core.search.outlook import Calibration
from tasks.calibration.stored import stored_metrics, with_peaks
from tasks.choice.search import choice_path, read_choice
from tasks.inputs.opened import Inputs, open_inputs
from tasks.settings.study import StudyConfig
from tasks.storage.folder import Revision
from tasks.storage.location import working_folder
from tasks.storage.transfer import pull
from tasks.study.revision import newest_revision


@dataclass(frozen=True)
class Forecaster:
    """A study's calibration, ready to be asked.

    pair: the pair that is asked about. why: how it came about. n_test: answers of the study's test split.
    """

    calibration: Calibration
    law: ScoreLaw
    pair: Pair
    why: str
    n_test: int

    def data(self, target: float) -> DataForecast:
        """The smallest dataset that reaches a target score."""
        return forecast_data(self.calibration, self.law, self.pair, target, self.n_test)

    def score(self, size: float) -> ScoreForecast:
        """What a fine-tune on so many samples will score."""
        return forecast_score(self.calibration, self.law, self.pair, size, self.n_test)

    def score_at(self, loss: float) -> ScoreForecast:
        """The score of a model with this validation loss."""
        return score_at_loss(self.law, loss, self.n_test)


def forecaster(
    config: StudyConfig, pair: Pair | None, p_max_at_least: float | None, window: Window | None = None
) -> Forecaster:
    """Read a calibrated study; nothing is trained, and no weights are read.

    Args:
        config: the study.
        pair: ranks to ask about; None for the chosen pair, or the calibration's reference before there is a choice.
        p_max_at_least: least score at a loss of 0.
        window: read scores from the training loss in this window of steps; sizes cannot be asked about then.

    Raises:
        ValueError: the calibration has not finished, or it says nothing of the pair.
    """
    pull(config.study)
    revision = newest_revision(working_folder(config.study))
    metrics = with_peaks(stored_metrics(revision), config.recipe.as_recipe().learning_rates)
    inputs = open_inputs(config)
    partition = inputs.partition
    question = Question(
        target_samples=float(metrics["unique_samples"].max()),
        trainable_parameters=lambda one: trainable_parameters(partition, RankPair(*one)),
        reference=config.calibration.reference,
        objective=PERPLEXITY_OBJECTIVE,
    )
    points = read_points(metrics, PERPLEXITY_OBJECTIVE)
    calibration = calibrate(points, question)
    # At one loss a rate that is far too high answers worse, and no final run is trained at such a rate.
    near = metrics if points.rates is None else metrics[metrics["run_id"].isin(points.nearest)]
    law = fit_score_law(near, n_answers=_answers(inputs, "validation"), p_max_at_least=p_max_at_least, window=window)
    asked, why = _pair(config, revision, pair)
    return Forecaster(calibration, law, asked, why, _answers(inputs, "test"))


def _pair(config: StudyConfig, revision: Revision, pair: Pair | None) -> tuple[Pair, str]:
    if pair is not None:
        return pair, "as asked"
    if choice_path(revision).is_file():
        r_me, r_llm = read_choice(revision).pair
        return (r_me, r_llm), "the chosen pair"
    return config.calibration.reference, "the calibration's reference pair, since none is chosen yet"


def _answers(inputs: Inputs, split: str) -> int:
    """Answers of a split that are scored."""
    return sum(len(sample.answers) for sample in inputs.usable(split))
