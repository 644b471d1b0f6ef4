"""Telling people what they would want to know of a campaign, by a webhook, from one place at a time.

`rules` decides what there is to say: State -> alerts, pure. `post` says it: it holds the seat of the sender, which is
an attribute of the study, and remembers there what was said, so that whoever takes the seat over does not say it again.
"""

from __future__ import annotations

from hopaas_p2p.alerts.post import Post, posted, webhook
from hopaas_p2p.alerts.rules import Alert, Limits, Memory

__all__ = ["Alert", "Limits", "Memory", "Post", "posted", "webhook"]
