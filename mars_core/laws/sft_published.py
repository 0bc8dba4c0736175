"""Coefficients that the MLLM-SFT paper prints, by name and place.

"Scaling Law for Multimodal Large Language Model Supervised Fine-Tuning". The paper prints F and weights that add up to
1; the library's laws have their products. Its LLM scores and targets are in points, 0 to 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from mars_core.laws.law import Floats
from mars_core.laws.registry import get_law


@dataclass(frozen=True)
class Published:
    """One printed set of coefficients.

    Attributes:
        name: what `published` and the command line call it.
        law: the law they belong to.
        coefficients: under the law's symbols, except that of sft-pretrained F and w1..w3 stand as printed.
        source: where in the paper.
        units: of sizes and scores, as far as the paper's numbers tell.
        r_squared: the fit's R^2 where the paper gives one.
    """

    name: str
    law: str
    coefficients: Mapping[str, float]
    source: str
    units: str
    r_squared: float | None = None

    @property
    def theta(self) -> Floats:
        """Coefficients in the law's symbol order."""
        printed = dict(self.coefficients)
        if "F" in printed and self.law == "sft-pretrained":
            F = printed.pop("F")
            printed |= {f"F_{weight}": F * printed.pop(weight) for weight in ("w1", "w2", "w3")}
        return np.array([printed[symbol] for symbol in get_law(self.law).symbols])


_SCRATCH = {"A": 256.76, "B": 143.75, "C": 288.56, "E": 96.17, "alpha": 0.039, "beta": 0.054, "gamma": 0.074}

_TABLE_2_ORDER = ("w1", "w2", "w3", "k1", "k2", "k3", "F", "G", "H", "delta", "zeta")
_TABLE_2 = {
    "overall": ((0.2512, 0.7018, 0.0470, 0.4841, 0.8895, 1.0045, 4.4104, 34.4322, 99.9371, 0.0016, 0.0350), 0.9129),
    "chart-document": (
        (0.0232, 0.9195, 0.0573, 0.0272, 0.7483, 0.7269, 7.8389, 92.6541, 88.2644, 0.0050, 0.0651),
        0.8931,
    ),
    "general-knowledge": (
        (0.2169, 0.2982, 0.4849, 0.4703, 0.9200, 0.5539, 6.4711, 35.1324, 132.0660, 0.0085, 0.0665),
        0.8223,
    ),
    "ocr": ((0.0072, 0.8320, 0.1608, 0.2094, 0.9861, 0.9326, 3.0259, 27.1967, 146.2460, 0.0675, 0.0208), 0.9267),
    "real-world": ((0.5323, 0.3813, 0.0864, 0.7043, 1.0221, 0.5556, 2.6240, 46.5741, 75.1569, 0.1342, 0.0220), 0.8340),
}

_LOSS_ORDER = ("P_min", "P_max", "k", "gamma")
_LOSS = {
    "mean-over-interval": ((4.64, 80.0, 1.75, 1.95), None, "section 7, strategy 1: mean loss of the last 1000 steps"),
    "cumulative-mean": ((6.64, 80.0, 1.57, 2.12), None, "section 7, strategy 2: mean loss since the start"),
    "general-knowledge": ((4.35, 80.0, 0.85, 1.41), 0.8777, "appendix G.1, cumulative mean loss"),
    "chart-document": ((5.95, 80.0, 1.99, 2.50), 0.974, "appendix G.2, cumulative mean loss"),
    "ocr": ((0.0, 80.0, 1.56, 2.75), 0.9831, "appendix G.3, cumulative mean loss"),
    "real-world": ((9.59, 80.0, 2.61, 1.90), 0.9296, "appendix G.4, cumulative mean loss"),
}

SCRATCH_UNITS = "not said: the relation of appendix E holds in billions of tokens, but the score in no unit"
PRETRAINED_UNITS = (
    "not said: N and D_SFT in single parameters and tokens, scores in points; in billions the score is about 0"
)
LOSS_UNITS = "nats per answer token, scores in points"

SECTION_6_1 = MappingProxyType(
    {
        "F": 4.3585,
        "w1": 0.1404,
        "w2": 0.7598,
        "w3": 0.0996,
        "G": 64.3677,
        "delta": 0.0032,
        "H": 170.2884,
        "zeta": 0.0995,
    }
)
"""What section 6.1 says of the overall fit; Table 2 prints other values under the same symbols."""


def _all() -> tuple[Published, ...]:
    scratch = Published("sft-scratch", "sft-scratch", MappingProxyType(_SCRATCH), "section 5", SCRATCH_UNITS)
    pretrained = tuple(
        Published(
            f"sft-pretrained/{subset}",
            "sft-pretrained",
            MappingProxyType(dict(zip(_TABLE_2_ORDER, values, strict=True))),
            "Table 2" if subset == "overall" else "Table 2, the same in appendix F",
            PRETRAINED_UNITS,
            r_squared,
        )
        for subset, (values, r_squared) in _TABLE_2.items()
    )
    losses = tuple(
        Published(
            f"loss-to-score/{name}",
            "loss-to-score",
            MappingProxyType(dict(zip(_LOSS_ORDER, values, strict=True))),
            source,
            LOSS_UNITS,
            r_squared,
        )
        for name, (values, r_squared, source) in _LOSS.items()
    )
    return (scratch, *pretrained, *losses)


PUBLISHED: Mapping[str, Published] = MappingProxyType({preset.name: preset for preset in _all()})


def published(name: str) -> Published:
    """The printed coefficients of this name.

    Raises:
        ValueError: there are none; the message lists those there are.
    """
    if name not in PUBLISHED:
        raise ValueError(f"the paper prints no coefficients called {name!r}; there are: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
