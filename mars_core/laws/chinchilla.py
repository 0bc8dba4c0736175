"""The Chinchilla form: pre-training loss from parameters and tokens."""

from mars_core.laws.law import Law, Term, log_of

CHINCHILLA = Law(
    name="chinchilla",
    title="Chinchilla scaling law",
    equation="loss = E + A / N^alpha + B / D^beta",
    source="Hoffmann et al. 2203.15556, Eq. 2; refitted by Besiroglu et al. 2404.10102",
    units={
        "N": "parameters",
        "D": "training tokens",
        "loss": "nats per token",
        "A": "nats per token at N = 1",
        "B": "nats per token at D = 1",
        "E": "nats per token",
    },
    inputs=("N", "D"),
    target="loss",
    symbols=("A", "B", "E", "alpha", "beta"),
    terms=(
        Term("A", (("alpha", log_of("N", -1.0)),)),
        Term("B", (("beta", log_of("D", -1.0)),)),
        Term("E"),
    ),
    size_column="D",
    exponent_bounds={"alpha": (-1.0, 3.0), "beta": (-1.0, 3.0)},
    start_ranges={"alpha": (0.05, 1.0), "beta": (0.05, 1.0)},
    expected_signs={"alpha": 1, "beta": 1},
    floor="E",
    trivial_rivals=("log_linear",),
)
