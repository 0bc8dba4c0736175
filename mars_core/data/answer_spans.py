"""Where a conversation's answers stand among its tokens.

The tokens of the text before an answer, and of the text up to its end, are compared with the tokens of the whole: both
must be prefixes of it, so that no label stands on a token that the prompt has a share in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mars_core.data.chat import ChatText
from mars_core.data.processing import Expansion, token_ids


def answer_spans(
    chat: ChatText, ids: Sequence[int], expansion: Expansion, processor: Any
) -> tuple[tuple[int, int], ...]:
    """The tokens [start, end) of each answer in `ids`, the tokens of the whole conversation.

    Raises:
        ValueError: tokens up to an answer or its end change with what follows.
    """

    def tokens_before(end: int) -> int:
        if end == len(chat.text):
            return len(ids)
        before = token_ids(chat.text[:end], expansion, processor)
        if before != ids[: len(before)]:
            raise ValueError(
                f"the tokens up to {chat.text[max(end - 30, 0) : end]!r} change with what follows "
                f"({chat.text[end : end + 30]!r}), so labels would be inexact: use a chat template that "
                "ends its generation prompt, and each answer, with a special token or a line break"
            )
        return len(before)

    return tuple((tokens_before(start), tokens_before(end)) for start, end in chat.answers)
