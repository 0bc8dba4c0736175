"""Trivial rival of the loss-to-score law: a straight line of log score against log loss."""

from mars_core.laws.law import Law, Term, log_of

LOSS_TO_SCORE_POWER = Law(
    name="loss-to-score-power",
    title="Straight line of score against loss in log-log (trivial rival)",
    equation="score = A / loss^alpha",
    source="the pure power law, as a rival of Eq. 4 of the MLLM-SFT paper",
    units={"loss": "nats per answer token", "score": "points, 0 to 100", "A": "points at a loss of 1"},
    inputs=("loss",),
    target="score",
    symbols=("A", "alpha"),
    terms=(Term("A", (("alpha", log_of("loss", -1.0)),)),),
    size_column="loss",
    exponent_bounds={"alpha": (-1.0, 6.0)},
    start_ranges={"alpha": (0.0, 2.0)},
    expected_signs={"alpha": 1},
    smallest_last=True,
)
