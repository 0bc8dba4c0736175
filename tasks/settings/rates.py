"""Learning rates to calibrate at as a study file gives them: `auto`, one list for both modules, or one of each.

They are kept as one text, which a form can show in one field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import product
from typing import Any, Final, Literal

from mars_core.rates import LearningRates, one_rate

AUTO: Final = "auto"
MODULES = ("me", "llm")
_LARGEST_RATE = 1.0


def rates_text(value: Any) -> Any:
    """`auto`, or rates as a list, a mapping or text, as the one text that a form can show; None stays None.

    Raises:
        ValueError: it is none of these, or no choice of several rates.
    """
    if value is None or value == AUTO:
        return value
    if isinstance(value, str):
        return rates_text(_of_modules(value) if ":" in value else re.split(r"[,\s]+", value.strip()))
    if not isinstance(value, dict):
        text = _listed(value)
        if text.count(",") == 0:
            raise ValueError(_too_few(text))
        return text
    if sorted(value) != sorted(MODULES):
        raise ValueError(f"expected rates of {' and '.join(MODULES)}, got {', '.join(map(str, value)) or 'none'}")
    texts = {module: _listed(value[module]) for module in MODULES}
    if not any("," in text for text in texts.values()):
        raise ValueError(_too_few(str(texts)))
    return "; ".join(f"{module}: {texts[module]}" for module in MODULES)


def rate_grid(text: str | None) -> Literal["auto"] | tuple[LearningRates, ...] | None:
    """What such a text stands for: every combination where each module has rates of its own."""
    if text is None:
        return None
    if text == AUTO:
        return AUTO
    if ":" not in text:
        return tuple(map(one_rate, map(float, text.split(","))))
    me, llm = (map(float, own.split(",")) for own in _of_modules(text).values())
    return tuple(LearningRates(a, b, b) for a, b in product(me, llm))


def _of_modules(text: str) -> dict[str, Any]:
    parts = [part.partition(":") for part in text.split(";") if part.strip()]
    return {name.strip(): rates.strip() for name, _, rates in parts}


def _listed(values: Any) -> str:
    given = re.split(r"[,\s]+", values.strip()) if isinstance(values, str) else values
    if not isinstance(given, Sequence) or not given:
        raise ValueError(f"expected `auto` or learning rates such as [1e-4, 2e-4], got {values!r}")
    rates = [_rate(value) for value in given]
    if len(set(rates)) != len(rates):
        raise ValueError(f"learning rates must not repeat, got {', '.join(map(str, given))}")
    return ", ".join(map(repr, sorted(rates)))


def _rate(value: Any) -> float:
    # YAML reads 1e-4 as text: only 1.0e-4 is a number to it.
    try:
        rate = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 < rate <= _LARGEST_RATE:
        raise ValueError(f"a learning rate must be above 0 and at most {_LARGEST_RATE:g}, got {value!r}")
    return rate


def _too_few(given: str) -> str:
    return f"one learning rate alone, {given}, is recipe.learning_rate: give at least 2 different ones, or `auto`"
