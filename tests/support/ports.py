"""TCP ports of 127.0.0.1 for servers that are told theirs. One that can choose its own listens on port 0 instead."""

from __future__ import annotations

import os
import random
import socket

_FIRST, _END = 10_000, 32_000
"""Below those that Linux gives to outgoing connections: one of these may take a port before its server listens."""
_SHARES = 16
_SHARE = (_END - _FIRST) // _SHARES
"""Tests that run side by side take theirs from a share each."""

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _SHARES
_last = random.randrange(_SHARE)  # another run of the tests may be under way


def free_ports(number: int) -> list[int]:
    """So many ports, one after another, that nobody listens on and that this process has not given out."""
    global _last  # noqa: PLW0603
    for _ in range(_SHARE):
        first = (_last + 1) % (_SHARE - number)
        _last = first + number - 1
        ports = [_FIRST + _worker * _SHARE + first + more for more in range(number)]
        if all(_is_free(port) for port in ports):
            return ports
    raise AssertionError(f"no {number} free ports beside each other")


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
