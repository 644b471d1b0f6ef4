"""A finding, which `hopaas-p2p doctor` shows as one line."""

from __future__ import annotations

from typing import Final, NamedTuple

AGAIN: Final = "fix this, and run doctor again"
"""The cure if the detail already says what to change."""
_CLOCKS_AGREE: Final = 60.0  # seconds


class Finding(NamedTuple):
    """The subject of a check, its result, and the cure if it failed."""

    check: str
    detail: str
    passed: bool = True
    cure: str = ""
    """Shown only if the check failed."""


def clock(ahead: float) -> Finding:
    """The finding about a store's clock, `ahead` seconds ahead of this machine's; some clocks show only whole
    seconds.
    """
    said = "agrees with ours to the second" if abs(ahead) < 1.5 else f"differs from ours by {ahead:+.0f} s"
    cure = "run NTP; leases do not depend on it, but times are shown wrongly and certificates may seem expired"
    return Finding("clock", f"the store's clock {said}", passed=abs(ahead) < _CLOCKS_AGREE, cure=cure)
