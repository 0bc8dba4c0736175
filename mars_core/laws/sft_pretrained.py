"""Benchmark score after multimodal SFT of an LLM whose pre-training is unknown (MLLM-SFT paper, Eq. 2 and 3)."""

from mars_core.laws.base_terms import BASE_EXPONENTS, BASE_SCORES, BASE_STARTS, BASE_UNITS, FINE_TUNE_UNITS, base_terms
from mars_core.laws.combination import SignedSum
from mars_core.laws.law import Law, Term, log_of

SFT_PRETRAINED = Law(
    name="sft-pretrained",
    title="Pre-trained law of multimodal SFT",
    equation=(
        "score = F_w1 * nli^k1 + F_w2 * commonsense^k2 + F_w3 * reasoning^k3 - G / N^delta - H / D_SFT^zeta; "
        "F = F_w1 + F_w2 + F_w3, w_i = F_wi / F"
    ),
    source="Scaling Law for Multimodal LLM Supervised Fine-Tuning, Eq. 2 and 3",
    units={
        **BASE_UNITS,
        **FINE_TUNE_UNITS,
    },
    inputs=(*BASE_SCORES, "N", "D_SFT"),
    target="score",
    symbols=("F_w1", "F_w2", "F_w3", "k1", "k2", "k3", "G", "H", "delta", "zeta"),
    terms=(
        *base_terms(("F_w1", "F_w2", "F_w3")),
        Term("G", (("delta", log_of("N", -1.0)),)),
        Term("H", (("zeta", log_of("D_SFT", -1.0)),)),
    ),
    size_column="D_SFT",
    exponent_bounds={**BASE_EXPONENTS, "delta": (0.0, 3.0), "zeta": (0.0, 3.0)},
    start_ranges={**BASE_STARTS, "delta": (0.001, 0.6), "zeta": (0.01, 0.8)},
    expected_signs={"delta": 1, "zeta": 1},
    trivial_rivals=("score-power",),
    combination=SignedSum((1, 1, 1, -1, -1)),
    scale_bounds=dict.fromkeys(("F_w1", "F_w2", "F_w3", "G", "H"), (1e-4, 1e4)),
    n_starts=100,
)
