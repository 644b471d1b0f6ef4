"""Posting alerts: the election of the one sender, and the webhook.

The leadership is an attribute of the study: who sends, and what was posted. A candidate that finds it free, or its
holder silent for a lease's ttl, writes its own name into it, waits a moment, and checks that the log still names it.
The holder also checks before every alert. An alert is recorded after the receiver has accepted it, so if a sender dies
in between, its successor posts it again: at least once, with the same `id`.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.alerts.rules import NEW_BEST, conditions
from hopaas_p2p.core.attributes import ALERTS
from hopaas_p2p.core.leases import FailureDetector, ttl_of
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.net.trust import client_context
from hopaas_p2p.open import redacted
from hopaas_p2p.peer.election import Election
from hopaas_p2p.peer.liveness import owners_of
from hopaas_p2p.runtime.process import new_uuid
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.base import Beat

if TYPE_CHECKING:
    from hopaas_p2p.study import Study

_URL: Final = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?([/?][!-~]*)?", re.IGNORECASE)
_SETTLE: Final = 1.0  # seconds between taking the leadership and checking it
_TIMEOUT: Final = 10.0
_RETRY_INTERVAL: Final = 30.0  # seconds

Send = Callable[[dict[str, Any]], None]


class AlertSender:
    """Watches one study and posts due alerts, while it is the elected sender.

    Args:
        study: needs the right to write to it.
        send: delivers one message, or raises OSError.
        complain: called with a text when the receiver cannot be reached.
        settle: seconds to wait for rival candidates.

    """

    def __init__(
        self,
        study: Study,
        send: Send,
        *,
        complain: Callable[[str], None] = lambda _text: None,
        settle: float = _SETTLE,
    ) -> None:
        self.study = study
        self.id = new_uuid()
        self._send, self._complain = send, complain
        self._election = Election(
            study.storage.peer, lambda: study.state, study.handle.say, ALERTS, candidate=self.id, settle=settle
        )
        self._owners = FailureDetector()
        self._last_beat = 0.0
        self._retry_at = 0.0

    @property
    def is_leader(self) -> bool:
        """Whether this is the elected sender, as of the last read of the log."""
        return self._election.won

    def look(self) -> list[str]:
        """Stand for election if there is no sender; post due alerts. Returns the keys of the posted ones.

        Raises:
            Denied: this user may only read.
            StoreUnreachable: nothing more was posted.

        """
        now = time.monotonic()
        if not self._election.stand():
            return []
        state, store = self.study.state, self.study.storage.peer.store
        if not self._last_beat or now - self._last_beat >= state.policy.ttl / 3:
            self._last_beat = now
            store.beat(Beat(self.id, repr(now)))
        if now < self._retry_at:
            return []
        before = self._election.said.get("posted")  # None: no sender has looked yet; the present best is not news
        owners = owners_of(state)
        self._owners.look(store.beats(owners), owners, now)
        silent = {owner for owner in owners if self._owners.silence(owner, now) >= ttl_of(state, owner)}
        holds = conditions(state, silent)
        known = {key for key in holds if key.startswith(NEW_BEST)}
        if isinstance(before, list):
            known = set(map(str, before))
        sent: list[str] = []
        for key, text in holds.items():
            if key not in known:
                if not self.is_leader or not self._post(key, text):
                    break
                sent.append(key)
        after = sorted(holds.keys() & {*known, *sent})
        if after != before and self.is_leader:
            self._election.say(posted=after)
        return sent

    def resign(self) -> None:
        """Give up the leadership, so that another sender need not wait until this one is silent."""
        self._election.resign()

    def _post(self, key: str, text: str) -> bool:
        study = self.study
        message = {
            "text": f"{study.name}: {text}",  # shown by chat programs
            "id": f"{study.handle.uuid}:{key}",
            "kind": key.partition(":")[0],
            "study": study.name,
            "store": redacted(study.storage.url),
        }
        try:
            self._send(message)
        except OSError as error:
            self._retry_at = time.monotonic() + _RETRY_INTERVAL
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
                why = f"it answered {error.code}"
            else:  # the cause, without the URL
                reason = getattr(error, "reason", error)
                why = str(getattr(reason, "strerror", None) or type(reason).__name__)
            self._complain(f"the webhook does not accept alerts ({why}); trying again in {_RETRY_INTERVAL:.0f} s")
            return False
        return True


def webhook(url: Secret) -> Send:
    """Delivers messages by POST, as JSON. The URL is a secret: most services accept posts from anyone who knows it.

    Raises:
        ConfigurationError: it is not an http or https URL, or HOPAAS_CA_FILE cannot be used.

    """
    if not _URL.fullmatch(url.reveal()):  # an error about another URL could show it
        raise ConfigurationError("the webhook is not an http or https URL; see HOPAAS_WEBHOOK and HOPAAS_WEBHOOK_FILE")
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=client_context()))

    def send(message: dict[str, Any]) -> None:
        request = urllib.request.Request(  # noqa: S310  # the scheme was checked
            url.reveal(),
            data=json.dumps(message).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "hopaas-p2p"},
        )
        with opener.open(request, timeout=_TIMEOUT):
            pass

    return send


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a message goes to the configured host only."""

    def redirect_request(self, *_args: Any) -> None:
        return None
