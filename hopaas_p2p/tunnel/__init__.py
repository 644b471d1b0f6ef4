"""The client side of Postgres through HTTPS, and what it and `hopaas_p2p.gateway` have to agree on."""

from __future__ import annotations

import base64
import binascii
import logging
from typing import Final

SUBPROTOCOL: Final = "hopaas.pg.v1"
"""Raw Postgres bytes in binary frames, cut anywhere. One WebSocket is one Postgres session."""
PATH: Final = "/v1/pg"
FRAME: Final = 1 << 16
"""Bytes of payload in a frame, at most."""
PING: Final = 20.0
"""Seconds between the gateway's pings. It announces them in `Hopaas-Ping`; without them a client takes the connection
for dead."""
ASK_FOR_ANOTHER: Final = (
    "Ask an administrator of the store for a new one (hopaas-p2p token create), and name its file in HOPAAS_TOKEN_FILE"
)
"""What to do about a token that is not valid."""
SILENT: Final = logging.Logger("hopaas_p2p.websocket")  # noqa: LOG001  # see below
"""For `websockets`, which logs headers, and so tokens, when it debugs. It is not registered with `logging`, so that no
configuration enables it."""
SILENT.disabled = True


def encode_header(text: str) -> str:
    """A text in a form that may stand in a header: base64url without padding."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_header(text: str) -> str:
    """The text that was encoded; empty if it was not."""
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, ValueError):
        return ""
