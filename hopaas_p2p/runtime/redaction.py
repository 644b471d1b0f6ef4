"""Removes the secrets from URLs, so that these can be shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from hopaas_p2p.errors import ConfigurationError, visible

_LOGIN: Final = re.compile(
    r"(?:(?<!/)//+|:/|^(?![./~]|--signal=|[\w+.-]+:/|[\w+.=-]+://)"
    r"(?:(?:postgres\w*(?:\+\w+)?|https?|s3|folder|file|memory):)?)[^/@:]*:",
    re.IGNORECASE,
)
"""What precedes a password, even in a URL that lacks one slash or both. --signal=B:USR1@330 holds no password."""
_SECRET: Final = re.compile(
    r"((?:^|[?&;\s])[a-z_]*(?:passw(?:or)?d|pwd|token|secret|secret_key|access_key)=)[^&]*", re.IGNORECASE
)

_LONGEST: Final = 2000  # characters of a server's message


def redacted(url: str) -> str:
    """The URL with `***` in place of a password."""
    before, at, after = url.rpartition("@")
    if at and (login := _LOGIN.search(before)):
        url = f"{before[: login.end()]}***@{after}"
    return _SECRET.sub(r"\1***", url)


def without_passwords(text: str) -> str:
    """A string with all its URLs `redacted`, for messages from libraries."""
    return re.sub(r"\S+", lambda word: redacted(word[0]), text)


def path_of(url: str) -> Path:
    """The path that a `file:` or `folder:` URL names; raises ConfigurationError if it is malformed or names a host."""
    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket that does not close
        raise ConfigurationError(f"{redacted(url)!r} cannot be read as a URL") from None
    if parts.netloc not in ("", "localhost"):
        raise ConfigurationError(f"{redacted(url)!r}: write three slashes, as in {parts.scheme}:///shared/campaign")
    return Path(unquote(parts.path))


def foreign(text: str) -> str:
    """What a server said, for a message: not too long, and without characters that a terminal would interpret."""
    return visible(text[:_LONGEST], keep="\n")
