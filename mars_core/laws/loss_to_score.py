"""Benchmark score from training loss (MLLM-SFT paper, Eq. 4): the score without running the benchmark."""

from mars_core.laws.combination import Saturation
from mars_core.laws.law import Law, Term, log_of

LOSS_TO_SCORE = Law(
    name="loss-to-score",
    title="Loss-to-score law",
    equation="score = P_min + (P_max - P_min) / (1 + k * loss^gamma)",
    source="Scaling Law for Multimodal LLM Supervised Fine-Tuning, Eq. 4; appendix G holds P_max at 80 or more",
    units={
        "loss": "nats per answer token, averaged over a window of training steps or a validation set",
        "score": "points, 0 to 100",
        "P_max": "points, the score at a loss of 0",
        "P_min": "points, the score at any large loss",
        "k": "a number, at a loss of 1",
    },
    inputs=("loss",),
    target="score",
    symbols=("P_max", "P_min", "k", "gamma"),
    terms=(Term("P_max"), Term("P_min"), Term("k", (("gamma", log_of("loss")),))),
    size_column="loss",
    exponent_bounds={"gamma": (0.05, 12.0)},
    start_ranges={"gamma": (0.5, 6.0)},
    expected_signs={"gamma": 1},
    trivial_rivals=("loss-to-score-power",),
    combination=Saturation(),
    scale_bounds={"P_max": (1e-3, 100.0), "P_min": (1e-3, 100.0), "k": (1e-4, 1e4)},
    smallest_last=True,
    n_starts=100,
)
