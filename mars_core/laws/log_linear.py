"""Trivial rival: the straight line of log loss against log size, neither floor nor rank."""

from mars_core.laws.law import Law, Term, log_of

LOG_LINEAR = Law(
    name="log_linear",
    title="Straight line in log-log (trivial rival)",
    equation="loss = A / D^beta",
    source="the pure power law; Kaplan et al. 2001.08361, Eq. 1.2",
    units={"D": "unique training samples seen", "loss": "nats per token", "A": "nats per token at D = 1"},
    inputs=("D",),
    target="loss",
    symbols=("A", "beta"),
    terms=(Term("A", (("beta", log_of("D", -1.0)),)),),
    size_column="D",
    exponent_bounds={"beta": (-1.0, 3.0)},
    start_ranges={"beta": (0.0, 0.5)},
    expected_signs={"beta": 1},
)
