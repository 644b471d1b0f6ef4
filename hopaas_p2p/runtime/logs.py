"""The logger of the library, which programs configure by its name, and which keeps each message on one line."""

from __future__ import annotations

import logging
from typing import Final

from hopaas_p2p.errors import visible

LOG: Final = logging.getLogger("hopaas_p2p")


def _on_one_line(record: logging.LogRecord) -> bool:
    """Put a message on one line, so that text from a server, a proxy or a peer cannot look like another message."""
    record.msg, record.args = visible(" ".join(record.getMessage().splitlines())), ()
    if record.exc_info:
        lines = logging.Formatter().formatException(record.exc_info).splitlines()
        record.exc_text = "\n".join(f"  {visible(line)}" for line in lines)
    return True


LOG.addFilter(_on_one_line)
