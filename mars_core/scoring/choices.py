"""Multiple choice: the letters that a question offers, and the letter that an answer gives.

The rules for answers are those that ScienceQA is scored by in LLaVA and lmms-eval: the letter alone, the letter and
a full stop in front of more text, or "The answer is" and the letter. Anything else is no letter, and wrong.
"""

from __future__ import annotations

import re

_OFFER = re.compile(r"(?:^|(?<=\s))\(([A-Z])\)\s|^([A-Z])[.):]\s", re.MULTILINE)
_LETTER_FIRST = re.compile(r"([A-Z])(?:\.(?:\s|$)|$)")
_THE_ANSWER_IS = re.compile(r"The answer is \(?([A-Z])\b")


def offered_letters(question: str) -> str:
    """Letters of the options that a question lists, in order from A; empty where it lists fewer than two.

    Options are lines such as `A. yes`, `A) yes` or `A: yes`, or stand anywhere as `(A) yes`.
    """
    letters = ""
    for match in _OFFER.finditer(question):
        letter = match[1] or match[2]
        if letter == chr(ord("A") + len(letters)):
            letters += letter
        elif letter == "A":  # what looked like options before was text
            letters = letter
    return letters if len(letters) >= 2 else ""


def given_letter(answer: str, letters: str) -> str | None:
    """The one of `letters` that an answer gives, None if it gives none of them."""
    text = answer.strip()
    match = _LETTER_FIRST.match(text.replace("\n", ". ")) or _THE_ANSWER_IS.search(text)
    return match[1] if match and match[1] in letters else None
