"""One line of `hopaas-p2p doctor`."""

from __future__ import annotations

from typing import Final, NamedTuple

AGAIN: Final = "set that right, and ask the doctor again"
"""The cure where the detail has said already what is to be changed."""


class Finding(NamedTuple):
    """What was looked at, whether it is well, and what to do if not."""

    check: str
    passed: bool
    detail: str
    cure: str = ""
