"""Trivial rival of the laws of multimodal SFT: a straight line of log score against log data."""

from mars_core.laws.law import Law, Term, log_of

SCORE_POWER = Law(
    name="score-power",
    title="Straight line of score against data in log-log (trivial rival)",
    equation="score = A * D_SFT^gamma",
    source="the pure power law, as a rival of Eq. 1 and 3 of the MLLM-SFT paper",
    units={"D_SFT": "data of the fine-tune", "score": "points, 0 to 100", "A": "points at D_SFT = 1"},
    inputs=("D_SFT",),
    target="score",
    symbols=("A", "gamma"),
    terms=(Term("A", (("gamma", log_of("D_SFT")),)),),
    size_column="D_SFT",
    exponent_bounds={"gamma": (-1.0, 3.0)},
    start_ranges={"gamma": (0.0, 0.5)},
    expected_signs={"gamma": 1},
)
