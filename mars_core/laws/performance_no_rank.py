"""Trivial rival of law P: the dataset's size alone, rank has no effect."""

from mars_core.laws.law import Law, Term, log_of

PERFORMANCE_NO_RANK = Law(
    name="performance_no_rank",
    title="Law P without ranks (trivial rival)",
    equation="loss = A / D^beta + E",
    source="MARS, Eq. 1 with alpha_m = alpha_l = 0",
    units={
        "D": "unique training samples seen",
        "loss": "nats per answer token",
        "A": "nats per answer token at D = 1",
        "E": "nats per answer token",
    },
    inputs=("D",),
    target="loss",
    symbols=("A", "beta", "E"),
    terms=(Term("A", (("beta", log_of("D", -1.0)),)), Term("E")),
    size_column="D",
    exponent_bounds={"beta": (-1.0, 3.0)},
    start_ranges={"beta": (0.02, 1.5)},
    expected_signs={"beta": 1},
    floor="E",
    trivial_rivals=("log_linear",),
)
