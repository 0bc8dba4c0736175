"""Text as it may be shown and stored: without the passwords of addresses in it, and without what a terminal obeys."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

# Up to the last @ before the path: a password may hold one.
CREDENTIALS = re.compile(r"(?<=://)[^/\s?#'\"]*@")
_SECRET = r"token|access_token|api_?key|key|sig|signature|secret|password|pwd|X-Amz-[A-Za-z-]+|X-Goog-[A-Za-z-]+"
SECRET_QUERY = re.compile(rf"(?<=[?&])((?:{_SECRET})=)[^&\s'\"#]+", re.IGNORECASE)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_password(text: str) -> str:
    """The text with `user:password@` of every URL in it, and secrets among their parameters, replaced by `***`."""
    return SECRET_QUERY.sub(r"\1***", CREDENTIALS.sub("***@", text))


def printable(text: str) -> str:
    """The same, with characters that would move a terminal's cursor or change its title written out."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", without_password(text))


def part_credentials(url: str) -> tuple[str, str | None, str | None]:
    """A URL without user name and password, and the two where it has them."""
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    if not login:
        return url, None, None
    user, colon, password = login.partition(":")
    return urlunsplit(parts._replace(netloc=host)), unquote(user), unquote(password) if colon else None
