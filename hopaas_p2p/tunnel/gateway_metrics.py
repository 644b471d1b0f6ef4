"""What the gateway counts, in Prometheus' text format. No roles, addresses or secrets: metrics are read by many."""

from __future__ import annotations

from collections import Counter
from typing import Final

_PREFIX: Final = "hopaas_gateway"
_HELP: Final = {
    "handshakes_total": "Answers to requests for a tunnel, by status",
    "ended_total": "Tunnels that ended, by close code",
    "bytes_total": "Payload carried, by direction",
    "shed_total": "Connections closed before they asked for anything, by cause",
    "connections": "Tunnels open now",
    "pending": "Connections that have not asked yet",
    "token_logins_total": "Logins at Postgres to check tokens",
    "postgres_up": "Whether Postgres answered the last time",
    "certificate_expiry_seconds": "When the certificate ends, in seconds since 1970",
    "draining": "Whether the gateway is about to end",
}


class Metrics:
    """Counters by name and label."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, name: str, label: str = "", by: int = 1) -> None:
        """Add to a counter; `label` as in `status="101"`."""
        self._counts[name, label] += by

    def get(self, name: str, label: str = "") -> int:
        """A counter's value."""
        return self._counts[name, label]

    def render(self, gauges: dict[str, float]) -> str:
        """All of them, and these that are as they are now."""
        lines = []
        values = {**{(name, ""): value for name, value in gauges.items()}, **self._counts}
        for name, text in _HELP.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {_PREFIX}_{name} {text}.", f"# TYPE {_PREFIX}_{name} {kind}"]
            found = sorted((label, value) for (one, label), value in values.items() if one == name)
            lines += [
                f"{_PREFIX}_{name}{{{label}}} {value}" if label else f"{_PREFIX}_{name} {value}"
                for label, value in found
            ]
        return "\n".join(lines) + "\n"
