"""Law P with an over-fitting term that grows with both ranks and falls with the dataset's size.

`C * (r_me * r_llm)^mu / D^nu`: with nu > beta it is the classical price of parameters per sample; with
nu < beta large datasets prefer moderate ranks, which is what the paper reports (2.2.2 and appendix C).
"""

from mars_core.laws.law import Feature, Law, Term, log_of

PERFORMANCE_OVERFIT = Law(
    name="performance_overfit",
    title="Law P with an over-fitting term",
    equation=("loss = A / (r_me^alpha_m * r_llm^alpha_l * D^beta) + E + C * (r_me * r_llm)^mu / D^nu"),
    source="MARS, Eq. 1, 2.2.2 and appendix C; over-fitting term added here",
    units={
        "r_me": "LoRA rank of the modality encoder",
        "r_llm": "LoRA rank of the language model",
        "D": "unique training samples seen",
        "loss": "nats per answer token",
        "A": "nats per answer token at r_me = r_llm = D = 1",
        "C": "nats per answer token at r_me = r_llm = D = 1",
        "E": "nats per answer token",
    },
    inputs=("r_me", "r_llm", "D"),
    target="loss",
    symbols=("A", "alpha_m", "alpha_l", "beta", "E", "C", "mu", "nu"),
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
        Term("C", (("mu", Feature((("r_me", 1.0), ("r_llm", 1.0)))), ("nu", log_of("D", -1.0)))),
    ),
    size_column="D",
    exponent_bounds={
        "alpha_m": (-2.0, 2.0),
        "alpha_l": (-2.0, 2.0),
        "beta": (-1.0, 3.0),
        "mu": (0.0, 2.0),
        "nu": (0.0, 3.0),
    },
    start_ranges={
        "alpha_m": (-0.1, 0.4),
        "alpha_l": (-0.1, 0.4),
        "beta": (0.02, 1.5),
        "mu": (0.1, 1.0),
        "nu": (0.0, 1.0),
    },
    expected_signs={"beta": 1},
    floor="E",
    trivial_rivals=("performance_no_floor", "performance_no_rank", "log_linear"),
)
