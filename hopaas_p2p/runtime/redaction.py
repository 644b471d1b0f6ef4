"""URLs that can be shown: without their secrets."""

from __future__ import annotations

import re
from typing import Final

_PASSWORD: Final = re.compile(
    r"(?is)((?:(?<!/)//|:/)[^/@:]*:).*@|([?&;][a-z_]*(?:password|token|secret|secret_key|access_key)=)[^&;]*"
)
"""A password in a URL, also in one with a slash or the colon too few."""


def redacted(url: str) -> str:
    """The URL with `***` in place of a password."""
    return _PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", url)


def without_passwords(text: str) -> str:
    """A text with all its URLs `redacted`, for what libraries say."""
    return re.sub(r"\S+", lambda word: redacted(word[0]), text)
