"""One line of `hopaas-p2p doctor`."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """What was looked at, whether it is well, and what to do if not."""

    check: str
    passed: bool
    detail: str
    cure: str = ""
