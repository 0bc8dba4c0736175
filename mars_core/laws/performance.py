"""Scaling Law-P, Eq. 1 of MARS: loss of a fine-tune from both ranks and the dataset's size."""

from mars_core.laws.law import Law, Term, log_of

PERFORMANCE = Law(
    name="performance",
    title="Scaling Law-P",
    equation="loss = A / (r_me^alpha_m * r_llm^alpha_l * D^beta) + E",
    source="MARS, Eq. 1 (extends Zhang et al. 2402.17193)",
    units={
        "r_me": "LoRA rank of the modality encoder",
        "r_llm": "LoRA rank of the language model",
        "D": "unique training samples seen",
        "loss": "nats per answer token",
        "A": "nats per answer token at r_me = r_llm = D = 1",
        "E": "nats per answer token",
    },
    inputs=("r_me", "r_llm", "D"),
    target="loss",
    symbols=("A", "alpha_m", "alpha_l", "beta", "E"),
    terms=(
        Term(
            "A",
            (
                ("alpha_m", log_of("r_me", -1.0)),
                ("alpha_l", log_of("r_llm", -1.0)),
                ("beta", log_of("D", -1.0)),
            ),
        ),
        Term("E"),
    ),
    size_column="D",
    exponent_bounds={"alpha_m": (-2.0, 2.0), "alpha_l": (-2.0, 2.0), "beta": (-1.0, 3.0)},
    start_ranges={"alpha_m": (-0.1, 0.4), "alpha_l": (-0.1, 0.4), "beta": (0.02, 1.5)},
    expected_signs={"alpha_m": 1, "alpha_l": 1, "beta": 1},
    floor="E",
    trivial_rivals=("performance_no_floor", "performance_no_rank", "log_linear"),
)
