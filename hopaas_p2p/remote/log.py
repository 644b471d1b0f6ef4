"""The server's log: one line of JSON per event.

The log contains nothing that a client sent, except the name of an accepted token.
"""

from __future__ import annotations

import datetime
import json
import logging
from typing import Final

LOGGER: Final = logging.getLogger("hopaas_p2p.server")


def event(what: str, *, level: int = logging.INFO, **about: object) -> None:
    """Log that something happened."""
    LOGGER.log(level, what, extra={"about": about})


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps({**line, **getattr(record, "about", {})}, default=str)


def to_stderr() -> None:
    """Write the log to stderr, where systemd and containers collect it."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
