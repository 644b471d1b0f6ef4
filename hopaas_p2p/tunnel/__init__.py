"""Postgres through HTTPS: `client` on a peer's node, `gateway` beside the database, and what both have to agree on."""

from __future__ import annotations

import base64
import binascii
import os
import socket
from typing import Final

SUBPROTOCOL: Final = "hopaas.pg.v1"
"""Raw Postgres bytes in binary frames, cut anywhere. One WebSocket is one Postgres session."""
PATH: Final = "/v1/pg"
FRAME: Final = 1 << 16
"""Bytes of payload in a frame, at most."""
PING: Final = 20.0
"""Seconds between the gateway's pings; it says so in `Hopaas-Ping`, and a client knows a dead line by their absence."""


def wrapped(text: str) -> str:
    """A text as it may stand in a header: base64url, without its padding."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def unwrapped(text: str) -> str:
    """What was wrapped; nothing if it was not."""
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, ValueError):
        return ""


def plainly(error: OSError) -> str:
    """What the system says is wrong, without the words that event loops put around it."""
    if error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)
