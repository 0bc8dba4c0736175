"""Addresses as they may be shown and stored: without the password in them."""

from __future__ import annotations

import re

CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def without_password(text: str) -> str:
    """The text with `user:password@` of every URL in it replaced by `***@`."""
    return CREDENTIALS.sub("***@", text)
