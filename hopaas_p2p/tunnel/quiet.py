"""A logger that lets nothing through: `websockets` writes headers, and so tokens, into its log of debugging."""

from __future__ import annotations

import logging
from typing import Final


class _Silent(logging.Logger):
    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # the standard library's name
        return False


LOGGER: Final[logging.Logger] = _Silent("hopaas_p2p.tunnel.websocket")
"""Not registered anywhere, so no configuration of logging reaches it."""
