"""Letters offered and given, by the rules of LLaVA's and lmms-eval's ScienceQA scoring."""

from __future__ import annotations

import pytest

from mars_core.data.readers.scienceqa import turns_of
from mars_core.evaluation.choices import given_letter, offered_letters
from mars_core.evaluation.generation.normalise import normalised


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("B.", "B"),
        ("B. because it floats", "B"),
        ("B\nIt floats.", "B"),
        ("The answer is B.", "B"),
        ("It floats. The answer is B", "B"),
        ("The answer is (B).", "B"),
        ("b", None),
        ("B)", None),
        ("Because", None),
        ("The answer is Because it floats", None),
        ("E", None),
        ("", None),
        ("the magnets attract", None),
    ],
)
def test_the_letter_of_an_answer(answer, letter):
    assert given_letter(answer, "ABCD") == letter


@pytest.mark.parametrize(
    ("question", "letters"),
    [
        ("Which?\nA. yes\nB. no", "AB"),
        ("Which?\nA) yes\nB) no\nC) perhaps", "ABC"),
        ("Which?\nOptions: (A) yes (B) no", "AB"),
        ("Context: A. Lincoln wrote:\nB. good.\nWhich?\nA. yes\nB. no\nC. perhaps", "ABC"),
        ("What is a DNA. test?", ""),
        ("Only\nA. one", ""),
        ("Which?\nA. iron\nB. vitamin (A) pill\nAnswer", "AB"),
        ("Which?\nA. the map (A) of 1900\nB. the map (B) of 1950\nC. the map (C) of 2000", "ABC"),
        ("Which?\nA. a\nB. b\nC. c\nA. x", "ABC"),
        ("A. Lincoln said so. (A) yes (B) no", "AB"),
        ("Of (A) 1900 and (B) 1950.\nWhich? (A) one (B) two (C) three. See plate (A) below.", "ABC"),
    ],
)
def test_the_letters_of_a_question(question, letters):
    assert offered_letters(question) == letters


def test_the_reader_asks_as_the_standard_protocol_does():
    """The prompt of lmms-eval's task `scienceqa`, format `default`, and of LLaVA's `llava_test_CQM-A.json`."""
    problem = {"question": "Which floats?", "choices": ["wood", "iron", "lead"], "answer": 0, "hint": "Look at them."}
    question, answer = turns_of(problem, 1)
    assert question.text == (
        "<image>\nContext: Look at them.\nWhich floats?\nA. wood\nB. iron\nC. lead\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (answer.text, offered_letters(question.text)) == ("A", "ABC")
    without = turns_of(problem | {"hint": ""}, 0)[0].text
    assert without.startswith("Which floats?\nA. wood")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Red.", "red", True),
        (" top  left ", "Top left", True),
        ('"red"', "red", True),
        ("two", "2", False),
        ("a cat", "cat", False),
        ("3.5", "35", False),
        ("ＡＢ", "ab", True),
        ("redder", "red", False),
        ("?", "...", False),
        ("", "?", False),
        ("''", "?", False),
        ("…", "...", True),
    ],
)
def test_what_counts_as_the_same_short_answer(one, other, same):
    assert (normalised(one) == normalised(other)) is same
