"""CIDEr-D: how well a caption agrees with references (Vedantam et al., arXiv 1411.5726, Eq. 3 to 6).

| symbol | meaning |
|---|---|
| g_n(c) | tf-idf vector of the n-grams of caption c, n = 1..4; document frequency over the reference sets |
| l(c) | words of a caption |

CIDEr-D_n(c, R) = 10 / |R| sum_r exp(-(l(c) - l(r))^2 / (2 sigma^2)) min(g_n(c), g_n(r)) . g_n(r) / (|g_n(c)| |g_n(r)|),
sigma = 6; the score is the mean over n. As in the authors' implementation, idf is ln(number of reference sets / max(1,
sets that have the n-gram)) and lengths are counted in bigrams. Words are runs of letters and digits in lower case, and
punctuation is dropped. COCO's tokenizer differs where a word has a mark inside: it keeps "t-shirt" and "3.5" whole and
splits "man's". Points are CIDEr-D times 100, as papers report it: a caption of at least four words that equals its only
reference has 1000, good captions of photographs 100 to 150.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
N_MAX, SIGMA = 4, 6.0
SCALE, POINTS = 10.0, 100.0
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")

Grams = Counter[tuple[str, ...]]


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """CIDEr-D of each caption in points, (n,).

    Args:
        candidates: one caption per picture; a picture that stands twice counts twice in the frequencies.
        references: at least one true caption per picture, in the same order. Document frequencies come from them, so
            scores of two models compare only over the same pictures.

    Raises:
        ValueError: the two differ in length, a picture has no reference, or there is but one picture: every word
            would then be in every reference set and count nothing.
    """
    if len(candidates) != len(references):
        raise ValueError(f"need one list of references per caption, got {len(candidates)} and {len(references)}")
    if len(candidates) < 2 or not all(references):
        raise ValueError(
            f"CIDEr-D needs at least 2 pictures with at least one reference each, got {len(candidates)} pictures, "
            f"{sum(not own for own in references)} without"
        )
    counted = [[_grams(text) for text in own] for own in references]
    frequency = Counter(gram for own in counted for gram in set().union(*own))
    n_sets = math.log(len(references))
    return np.array(
        [
            POINTS * SCALE * np.mean([_similarity(_grams(text), one, frequency, n_sets) for one in own])
            for text, own in zip(candidates, counted, strict=True)
        ]
    )


def words_of(text: str) -> list[str]:
    """Words of a caption as they are compared."""
    return _WORD.findall(text.lower())


def _grams(text: str) -> Grams:
    words = words_of(text)
    return Counter(tuple(words[i : i + n]) for n in range(1, N_MAX + 1) for i in range(len(words) - n + 1))


def _similarity(candidate: Grams, reference: Grams, frequency: Counter[tuple[str, ...]], n_sets: float) -> float:
    """Mean over n of the clipped cosine, times the penalty of unequal lengths; 1 is the same caption."""
    sizes = [sum(count for gram, count in grams.items() if len(gram) == 2) for grams in (candidate, reference)]
    penalty = math.exp(-((sizes[0] - sizes[1]) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for n in range(1, N_MAX + 1):
        own, true = (_weighted(grams, n, frequency, n_sets) for grams in (candidate, reference))
        norms = math.sqrt(sum(v * v for v in own.values())) * math.sqrt(sum(v * v for v in true.values()))
        if norms > 0:
            total += sum(min(value, true.get(gram, 0.0)) * true.get(gram, 0.0) for gram, value in own.items()) / norms
    return penalty * total / N_MAX


def _weighted(grams: Grams, n: int, frequency: Counter[tuple[str, ...]], n_sets: float) -> dict[tuple[str, ...], float]:
    return {
        gram: count * (n_sets - math.log(max(1, frequency[gram]))) for gram, count in grams.items() if len(gram) == n
    }
