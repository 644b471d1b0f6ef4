"""One line of `hopaas-p2p doctor`."""

from __future__ import annotations

from typing import Final, NamedTuple

AGAIN: Final = "fix that, and run the doctor again"
"""The cure if the detail already says what to change."""


class Finding(NamedTuple):
    """What was checked, whether it passed, and what to do if not."""

    check: str
    detail: str
    passed: bool = True
    cure: str = ""
    """Said only if it did not pass."""
