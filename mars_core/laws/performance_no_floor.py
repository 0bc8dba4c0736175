"""Trivial rival of law P: a straight line in all logarithms, no floor."""

from mars_core.laws.law import Law, Term, log_of
from mars_core.laws.performance import PERFORMANCE

PERFORMANCE_NO_FLOOR = Law(
    name="performance_no_floor",
    title="Law P without a floor (trivial rival)",
    equation="loss = A / (r_me^alpha_m * r_llm^alpha_l * D^beta)",
    source="MARS, Eq. 1 with E = 0",
    units=PERFORMANCE.units,
    inputs=("r_me", "r_llm", "D"),
    target="loss",
    symbols=("A", "alpha_m", "alpha_l", "beta"),
    terms=(
        Term(
            "A",
            (
                ("alpha_m", log_of("r_me", -1.0)),
                ("alpha_l", log_of("r_llm", -1.0)),
                ("beta", log_of("D", -1.0)),
            ),
        ),
    ),
    size_column="D",
    exponent_bounds={"alpha_m": (-2.0, 2.0), "alpha_l": (-2.0, 2.0), "beta": (-1.0, 3.0)},
    start_ranges={"alpha_m": (-0.1, 0.2), "alpha_l": (-0.1, 0.2), "beta": (0.0, 0.5)},
    expected_signs={"beta": 1},
)
