"""CIDEr-D against pycocoevalcap 1.2's CiderScorer(n=4, sigma=6.0), whose numbers are times 100 here."""

import numpy as np
import pytest

from mars_core.evaluation.forgetting.cider import cider_d, words_of

REFERENCES = [
    [
        "a large red food at the top left and a small grey animal at the bottom right on a blue ground",
        "a big red food top left and a small animal",
    ],
    ["a small green plant on a white ground"],
    ["two dogs run over wet grass", "dogs running on the grass", "a pair of dogs in a field"],
    ["a man rides a brown horse"],
]
CANDIDATES = [
    "a large red food at the top left on a blue ground",
    "a small green plant on a white ground",
    "dogs run on grass",
    "a woman reads a book",
]
SCORED = [192.99832556044625, 1000.0, 147.59384719652924, 0.0]


def test_worked_example_of_the_reference_implementation():
    np.testing.assert_allclose(cider_d(CANDIDATES, REFERENCES), SCORED, rtol=1e-12)


def test_case_and_punctuation_do_not_count():
    shouted = [f"{text.upper()}." for text in CANDIDATES]
    np.testing.assert_allclose(cider_d(shouted, REFERENCES), SCORED, rtol=1e-12)
    assert words_of("The dog's ball, (red) isn’t here.") == ["the", "dog's", "ball", "red", "isn’t", "here"]


def test_only_captions_of_four_words_reach_the_full_score():
    """With three words there is no 4-gram: 3 of the 4 terms of the mean are 1."""
    scores = cider_d(["a red dog", "green birds fly high"], [["a red dog"], ["green birds fly high"]])
    np.testing.assert_allclose(scores, [750, 1000])


def test_an_empty_caption_scores_0():
    assert cider_d(["", *CANDIDATES[1:]], REFERENCES)[0] == 0.0


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "got 1 and 2"),
        (["a"], [["a"]], "at least 2 pictures"),
        (["a", "b"], [["a"], []], "1 without"),
    ],
)
def test_mistakes_are_named(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        cider_d(candidates, references)
