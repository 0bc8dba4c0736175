"""The variant of the MLLM-SFT paper's section 8.2: model size and data act through their product."""

from mars_core.laws.base_terms import BASE_EXPONENTS, BASE_SCORES, BASE_STARTS, BASE_UNITS, base_terms
from mars_core.laws.combination import SignedSum
from mars_core.laws.law import Feature, Law, Term

SFT_JOINT = Law(
    name="sft-joint",
    title="Law of multimodal SFT with a joint term",
    equation=(
        "score = K_w1 * nli^k1 + K_w2 * commonsense^k2 + K_w3 * reasoning^k3 + 1 - F / (N * D_SFT)^gamma; "
        "K = K_w1 + K_w2 + K_w3, w_i = K_wi / K"
    ),
    source="Scaling Law for Multimodal LLM Supervised Fine-Tuning, section 8, item 2 (its 1 is one point)",
    units={
        **BASE_UNITS,
        "N": "parameters of the LLM, in the unit of your choice",
        "D_SFT": "image-text tokens (or samples) of the fine-tune",
        "score": "points, 0 to 100",
        "F": "points lost at N * D_SFT = 1",
    },
    inputs=(*BASE_SCORES, "N", "D_SFT"),
    target="score",
    symbols=("K_w1", "K_w2", "K_w3", "k1", "k2", "k3", "F", "gamma"),
    terms=(
        *base_terms(("K_w1", "K_w2", "K_w3")),
        Term("F", (("gamma", Feature((("N", -1.0), ("D_SFT", -1.0)))),)),
    ),
    size_column="D_SFT",
    exponent_bounds={**BASE_EXPONENTS, "gamma": (0.0, 3.0)},
    start_ranges={**BASE_STARTS, "gamma": (0.01, 0.6)},
    expected_signs={"gamma": 1},
    trivial_rivals=("score-power",),
    combination=SignedSum((1, 1, 1, -1), constant=1.0),
    scale_bounds=dict.fromkeys(("K_w1", "K_w2", "K_w3", "F"), (1e-4, 1e4)),
    n_starts=100,
)
