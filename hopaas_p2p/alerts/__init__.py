"""Alerts about a campaign, posted to a webhook by one process at a time.

`rules` decides what is due: State -> alerts, pure. `sender` posts it. The sender is elected, and an attribute of the
study holds its name and what was posted, so that its successor does not post the same again.
"""

from __future__ import annotations

from hopaas_p2p.alerts.rules import Alert, AlertMemory
from hopaas_p2p.alerts.sender import AlertSender, posted, webhook

__all__ = ["Alert", "AlertMemory", "AlertSender", "posted", "webhook"]
