"""URLs that can be shown: without their secrets."""

from __future__ import annotations

import re
from typing import Final

_PASSWORD: Final = re.compile(r"(?is)(://[^/@:]*:).*@|([?&][a-z_]*(?:password|token|secret)=)[^&]*")


def redacted(url: str) -> str:
    """The URL with `***` in place of a password."""
    return _PASSWORD.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", url)
