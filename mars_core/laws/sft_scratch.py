"""Benchmark score after multimodal SFT, where the LLM's own pre-training is known (MLLM-SFT paper, Eq. 1)."""

from mars_core.laws.combination import SignedSum
from mars_core.laws.law import Law, Term, log_of

SFT_SCRATCH = Law(
    name="sft-scratch",
    title="From-scratch law of multimodal SFT",
    equation="score = A - B / N^alpha - C / D_pretrain^beta - E / D_SFT^gamma",
    source="Scaling Law for Multimodal LLM Supervised Fine-Tuning, Eq. 1",
    units={
        "N": "parameters of the LLM",
        "D_pretrain": "tokens that the LLM was pre-trained on, in the unit of your choice (the paper: billions)",
        "D_SFT": "image-text tokens of the fine-tune, in the same unit",
        "score": "points, 0 to 100",
        "A": "points, the score that no amount of parameters and data passes",
        "B": "points lost at N = 1",
        "C": "points lost at D_pretrain = 1",
        "E": "points lost at D_SFT = 1",
    },
    inputs=("N", "D_pretrain", "D_SFT"),
    target="score",
    symbols=("A", "B", "C", "E", "alpha", "beta", "gamma"),
    terms=(
        Term("A"),
        Term("B", (("alpha", log_of("N", -1.0)),)),
        Term("C", (("beta", log_of("D_pretrain", -1.0)),)),
        Term("E", (("gamma", log_of("D_SFT", -1.0)),)),
    ),
    size_column="D_SFT",
    exponent_bounds={"alpha": (0.0, 3.0), "beta": (0.0, 3.0), "gamma": (0.0, 3.0)},
    start_ranges={"alpha": (0.01, 1.0), "beta": (0.01, 1.0), "gamma": (0.01, 1.0)},
    expected_signs={"alpha": 1, "beta": 1, "gamma": 1},
    trivial_rivals=("score-power",),
    combination=SignedSum((1, -1, -1, -1)),
    scale_bounds={"A": (1e-3, 1e4), "B": (1e-4, 1e4), "C": (1e-4, 1e4), "E": (1e-4, 1e4)},
    n_starts=100,
)
