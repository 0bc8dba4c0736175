"""What two short answers may differ in and still count as the same."""

from __future__ import annotations

import unicodedata

_AROUND = " \t\n\"'`“”‘’"
_FINAL = ".,;:!?"


def normalised(text: str) -> str:
    """The text as it is compared: NFKC, case folded, white space joined, without quotes around and final punctuation.

    Articles, number words and inner punctuation are left: "two" is not "2", and "the cat" is not "cat". So is a text
    of nothing but quotes and punctuation: "?" is not "...", nor an empty answer.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip(_AROUND).rstrip(_FINAL).strip(_AROUND) or folded
