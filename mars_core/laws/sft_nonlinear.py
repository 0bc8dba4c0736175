"""The variant of the MLLM-SFT paper's section 8.3: P_base is a power of the weighted sum of the LLM's scores."""

from mars_core.laws.base_terms import BASE_EXPONENTS, BASE_SCORES, BASE_STARTS, BASE_UNITS, FINE_TUNE_UNITS, base_terms
from mars_core.laws.combination import PoweredBase
from mars_core.laws.law import Law, Term, log_of

SFT_NONLINEAR = Law(
    name="sft-nonlinear",
    title="Pre-trained law of multimodal SFT, scores combined non-linearly",
    equation=(
        "score = (F_w1 * nli^k1 + F_w2 * commonsense^k2 + F_w3 * reasoning^k3)^gamma - G / N^delta - H / D_SFT^zeta"
    ),
    source="Scaling Law for Multimodal LLM Supervised Fine-Tuning, Eq. 3 and section 8, item 3",
    units={
        **BASE_UNITS,
        **FINE_TUNE_UNITS,
        "gamma": "a number; 1 is the law sft-pretrained",
    },
    inputs=(*BASE_SCORES, "N", "D_SFT"),
    target="score",
    symbols=("F_w1", "F_w2", "F_w3", "k1", "k2", "k3", "G", "H", "delta", "zeta", "gamma"),
    terms=(
        *base_terms(("F_w1", "F_w2", "F_w3")),
        Term("G", (("delta", log_of("N", -1.0)),)),
        Term("H", (("zeta", log_of("D_SFT", -1.0)),)),
        Term("gamma"),
    ),
    size_column="D_SFT",
    exponent_bounds={**BASE_EXPONENTS, "delta": (0.0, 3.0), "zeta": (0.0, 3.0)},
    start_ranges={**BASE_STARTS, "delta": (0.001, 0.6), "zeta": (0.01, 0.8)},
    expected_signs={"delta": 1, "zeta": 1},
    trivial_rivals=("score-power", "sft-pretrained"),
    combination=PoweredBase(3),
    scale_bounds={**dict.fromkeys(("F_w1", "F_w2", "F_w3", "G", "H"), (1e-4, 1e4)), "gamma": (0.1, 4.0)},
    n_starts=100,
)
