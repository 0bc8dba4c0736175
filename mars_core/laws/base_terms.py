"""P_base of the MLLM-SFT paper (Eq. 2) as terms of a law: what the LLM could do before it saw an image."""

from __future__ import annotations

from collections.abc import Mapping

from mars_core.laws.law import Term, log_of

BASE_SCORES = ("nli", "commonsense", "reasoning")
"""Columns of P_base: mean score of the LLM on each kind of task, in points."""

BASE_UNITS = {
    "nli": "the LLM's natural language inference score, points, 0 to 100 (the paper: COPA, RTE)",
    "commonsense": "the LLM's commonsense score, points (the paper: WinoGrande, OpenBookQA)",
    "reasoning": "the LLM's reasoning score, points (the paper: MMLU, SciQ, ARC-Easy)",
}
FINE_TUNE_UNITS = {
    "N": "parameters of the LLM, in the unit of your choice",
    "D_SFT": "image-text tokens (or samples) of the fine-tune",
    "score": "points, 0 to 100",
    "G": "points lost at N = 1",
    "H": "points lost at D_SFT = 1",
}
BASE_EXPONENTS = {"k1": (0.0, 2.0), "k2": (0.0, 2.0), "k3": (0.0, 2.0)}
BASE_STARTS = {"k1": (0.1, 1.2), "k2": (0.1, 1.2), "k3": (0.1, 1.2)}


def base_terms(scales: tuple[str, str, str]) -> tuple[Term, ...]:
    """`scale_i * score_i ** k_i` for the three kinds of task."""
    return tuple(
        Term(scale, ((f"k{number}", log_of(column)),))
        for number, (scale, column) in enumerate(zip(scales, BASE_SCORES, strict=True), 1)
    )


def factor_and_weights(coefficients: Mapping[str, float], prefix: str) -> tuple[float, tuple[float, ...]]:
    """F (or K) and w_1..w_3 of the paper, which add up to 1, from fitted products such as `F_w1`.

    The paper's F and weights are only known as products; its Table 2 has weights that add up to 1.
    """
    products = [coefficients[f"{prefix}_w{number}"] for number in (1, 2, 3)]
    total = sum(products)
    return total, tuple(product / total for product in products)
