"""The server's counters, in Prometheus' text format. No roles, addresses or secrets: many people can read metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

_PREFIX: Final = "hopaas_server"
_HELP: Final = {
    "requests_total": "Answers, by status",
    "shed_total": "Connections closed before they asked for anything, by cause",
    "connections": "Connections of callers whose token is known",
    "pending": "Connections that have shown no token yet",
    "token_logins_total": "Logins at Postgres to check tokens",
    "postgres_up": "Whether Postgres answered the last request",
    "certificate_expiry_seconds": "When the certificate expires, in seconds since 1970",
    "draining": "Whether the server is about to stop",
}


class Metrics(Counter[tuple[str, str]]):
    """Counters by name and label, such as `status="101"`."""

    def render(self, gauges: Mapping[str, float]) -> str:
        """The counters, and these values as they are now."""
        lines = []
        values = [*(((name, ""), value) for name, value in gauges.items()), *self.items()]
        for name, text in _HELP.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {_PREFIX}_{name} {text}.", f"# TYPE {_PREFIX}_{name} {kind}"]
            found = sorted((label, value) for (one, label), value in values if one == name)
            lines += [f"{_PREFIX}_{name}{f'{{{label}}}' if label else ''} {value}" for label, value in found]
        return "\n".join(lines) + "\n"
