"""Scaling Law-C, Eq. 2 of MARS: steps a module needs to converge, from its rank and the dataset's size."""

from mars_core.laws.law import Law, Term, log_of

CONVERGENCE = Law(
    name="convergence",
    title="Scaling Law-C",
    equation="steps = k * r^gamma * D^delta + E",
    source="MARS, Eq. 2",
    units={
        "r": "LoRA rank of the module",
        "D": "unique training samples of the dataset",
        "steps": "optimizer steps",
        "k": "optimizer steps at r = D = 1",
        "E": "optimizer steps, never negative",
    },
    inputs=("r", "D"),
    target="steps",
    symbols=("k", "gamma", "delta", "E"),
    terms=(Term("k", (("gamma", log_of("r")), ("delta", log_of("D")))), Term("E")),
    size_column="D",
    exponent_bounds={"gamma": (-3.0, 3.0), "delta": (-1.0, 3.0)},
    start_ranges={"gamma": (-0.8, 0.1), "delta": (0.2, 1.6)},
    expected_signs={"gamma": -1, "delta": 1},
    floor="E",
    trivial_rivals=("steps_per_rank",),
)
