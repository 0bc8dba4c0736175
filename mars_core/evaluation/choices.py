"""Multiple choice: the letters that a question offers, and the letter that an answer gives.

The rules for answers are those that ScienceQA is scored by in LLaVA and lmms-eval: the letter alone, the letter and
a full stop in front of more text, or "The answer is" and the letter. Anything else is no letter, and wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LINE = re.compile(r"^([A-Z])[.):]\s", re.MULTILINE)
_IN_BRACKETS = re.compile(r"(?:^|(?<=\s))\(([A-Z])\)\s", re.MULTILINE)
_LETTER_FIRST = re.compile(r"([A-Z])(?:\.(?:\s|$)|$)")
_THE_ANSWER_IS = re.compile(r"The answer is \(?([A-Z])\b")


def offered_letters(question: str) -> str:
    """Letters of the options that a question lists, in order from A; empty where it lists fewer than two.

    Options are lines such as `A. yes`, `A) yes` or `A: yes`, or, where there are no such lines, stand anywhere as
    `(A) yes`. Of several lists the last counts: what looks like one before may be text.
    """
    return _last_list(_LINE.findall(question)) or _last_list(_IN_BRACKETS.findall(question))


def _last_list(found: Iterable[str]) -> str:
    """The last run A, B, ... of at least two letters."""
    last = letters = ""
    for letter in found:
        if letter == chr(ord("A") + len(letters)):
            letters += letter
        elif letter == "A":
            letters = letter
        if len(letters) >= 2:
            last = letters
    return last


def given_letter(answer: str, letters: str) -> str | None:
    """The one of `letters` that an answer gives, None if it gives none of them."""
    text = answer.strip()
    match = _LETTER_FIRST.match(text.replace("\n", ". ")) or _THE_ANSWER_IS.search(text)
    return match[1] if match and match[1] in letters else None
