"""Law P with a penalty for leaving the balance curve: the floor rises with the ratio of the ranks.

`E * exp(kappa * w^2 - tilt * w)` with `w = ln(r_me / r_llm)` is, up to a constant, `E' * exp(kappa * (w - w*)^2)`
with `w* = tilt / (2 kappa)`: the balance curve is r_me = exp(w*) * r_llm, and the penalty does not shrink
with more data, as in Fig. 2a and appendix D ("abrupt increases in perplexity in the large-data regime").
"""

from mars_core.laws.law import Law, Term, log_of, log_ratio

PERFORMANCE_IMBALANCE = Law(
    name="performance_imbalance",
    title="Law P with an imbalance term",
    equation=(
        "loss = A / (r_me^alpha_m * r_llm^alpha_l * D^beta) + E * exp(kappa * w^2 - tilt * w), w = ln(r_me / r_llm)"
    ),
    source="MARS, Eq. 1 and appendix D; imbalance term added here",
    units={
        "r_me": "LoRA rank of the modality encoder",
        "r_llm": "LoRA rank of the language model",
        "D": "unique training samples seen",
        "loss": "nats per answer token",
        "A": "nats per answer token at r_me = r_llm = D = 1",
        "E": "nats per answer token at r_me = r_llm",
        "kappa": "per squared log ratio of ranks",
        "tilt": "per log ratio of ranks",
    },
    inputs=("r_me", "r_llm", "D"),
    target="loss",
    symbols=("A", "alpha_m", "alpha_l", "beta", "E", "kappa", "tilt"),
    terms=(
        Term(
            "A",
            (
                ("alpha_m", log_of("r_me", -1.0)),
                ("alpha_l", log_of("r_llm", -1.0)),
                ("beta", log_of("D", -1.0)),
            ),
        ),
        Term("E", (("kappa", log_ratio("r_me", "r_llm", power=2)), ("tilt", log_ratio("r_llm", "r_me")))),
    ),
    size_column="D",
    exponent_bounds={
        "alpha_m": (-2.0, 2.0),
        "alpha_l": (-2.0, 2.0),
        "beta": (-1.0, 3.0),
        "kappa": (0.0, 1.0),
        "tilt": (-1.0, 1.0),
    },
    start_ranges={
        "alpha_m": (-0.1, 0.4),
        "alpha_l": (-0.1, 0.4),
        "beta": (0.02, 1.5),
        "kappa": (0.0, 0.05),
        "tilt": (-0.05, 0.05),
    },
    expected_signs={"beta": 1},
    floor="E",
    trivial_rivals=("performance_no_floor", "performance_no_rank", "log_linear"),
)
