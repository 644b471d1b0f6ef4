"""One line of `hopaas-p2p doctor`."""

from __future__ import annotations

from typing import Final, NamedTuple

AGAIN: Final = "fix that, and run the doctor again"
"""The cure if the detail already says what to change."""


class Finding(NamedTuple):
    """What was checked, whether it passed, and what to do if not."""

    check: str
    passed: bool
    detail: str
    cure: str = ""

    @classmethod
    def judged(cls, check: str, detail: str, *, passed: bool, cure: str) -> Finding:
        """A finding whose cure is given only if it failed."""
        return cls(check, passed, detail, "" if passed else cure)
