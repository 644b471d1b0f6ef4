"""Posts alerts to a webhook, each condition once, when it becomes true.

An alert that the receiver did not accept is posted again, with the same `id`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.alerts.rules import NEW_BEST, conditions
from hopaas_p2p.core.leases import FailureDetector, ttl_of
from hopaas_p2p.errors import ConfigurationError, HopaasError
from hopaas_p2p.net.answers import post
from hopaas_p2p.net.proxies import server_of
from hopaas_p2p.net.trust import client_context
from hopaas_p2p.open import redacted
from hopaas_p2p.peer.liveness import owners_of
from hopaas_p2p.runtime.settings import Secret

if TYPE_CHECKING:
    from hopaas_p2p.study import Study

_LABEL: Final = "[A-Za-z0-9_-]{1,63}"
_HOST: Final = rf"{_LABEL}(\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\]"
_URL: Final = re.compile(rf"https?://({_HOST})(:[0-9]{{1,5}})?([/?][!-~]*)?", re.IGNORECASE)
_ANGLES: Final = str.maketrans("<>", "«»")
"""Replaces < and >, between which chat programs expect links and mentions. Escapes would be shown literally by other
receivers."""
_TIMEOUT: Final = 10.0  # seconds for a whole message
_RETRY_INTERVAL: Final = 30.0  # seconds

Send = Callable[[dict[str, Any]], int]
"""Delivers a message, and returns the HTTP status of the answer, or raises like `net.answers.post`."""


class AlertSender:
    """Watches one study and posts due alerts.

    Args:
        study: the study; the right to read it is enough.
        send: delivers one message.
        complain: called with a message when the receiver cannot be reached.

    """

    def __init__(self, study: Study, send: Send, *, complain: Callable[[str], None] = lambda _text: None) -> None:
        self.study = study
        self._send, self._complain = send, complain
        self._owners = FailureDetector()
        self._known: set[str] | None = None
        """The conditions that held and were posted; None before the first look."""
        self._retry_at = 0.0
        self.owes = False
        """True if an alert is due that the receiver has not accepted yet, or if this is unknown."""

    def look(self) -> list[str]:
        """Post due alerts; returns the keys of the posted ones.

        Raises:
            StoreUnreachable: the store did not answer, so nothing was posted.

        """
        if time.monotonic() < self._retry_at:
            return []
        state, now = self.study.state, time.monotonic()
        owners = owners_of(state)
        self._owners.look(self.study.storage.peer.store.beats(owners), owners, now)
        silent = {one for one in owners if self._owners.silence(one, now) >= ttl_of(state, one)}
        holds = conditions(state, silent, over=self.study.is_over())
        if self._known is None:  # the best trial at the start is not a new one
            self._known = {key for key in holds if key.startswith(NEW_BEST)}
        self._known &= holds.keys()
        sent: list[str] = []
        self.owes = False
        for key, text in holds.items():
            if key not in self._known:
                self.owes = not self._post(key, text)
                if self.owes:
                    break
                self._known.add(key)
                sent.append(key)
        return sent

    def store_was_away(self) -> None:
        """Measure the peers' silence from now on, because an unreachable store showed no signs of life."""
        self._owners = FailureDetector()
        self.owes = True  # unknown, because the store could not be read

    def _post(self, key: str, text: str) -> bool:
        study = self.study
        message = {
            "text": f"{study.name}: {text}".translate(_ANGLES),
            "id": f"{study.handle.uuid}:{key}",
            "kind": key.partition(":")[0],
            "study": study.name,
            "store": redacted(study.storage.url),
        }
        try:
            status = self._send(message)
            why = "" if 200 <= status < 300 else f"it answered {status}"
        except HopaasError as error:
            why = str(error).rstrip(".")
        except (OSError, http.client.HTTPException) as error:  # the cause, without the URL
            why = str(getattr(error, "strerror", None) or type(error).__name__)
        if why:
            self._retry_at = time.monotonic() + _RETRY_INTERVAL
            self._complain(f"the webhook does not accept alerts ({why}); trying again in {_RETRY_INTERVAL:.0f} s")
        return not why


def webhook(url: Secret) -> Send:
    """A function that delivers messages by POST, as JSON, each within 10 s.

    The URL is a secret, because most services accept posts from anyone who knows it.

    Raises:
        ConfigurationError: this is not an http or https URL, or HOPAAS_CA_FILE cannot be used.

    """
    valid = False
    with contextlib.suppress(ValueError):  # of a port or an address that cannot be one
        valid = _URL.fullmatch(url.reveal()) is not None and bool(server_of(url.reveal()))
    if not valid:  # a later error about the URL could show it
        raise ConfigurationError(
            "the webhook is not an http or https URL in ASCII, without a login; see HOPAAS_WEBHOOK and "
            "HOPAAS_WEBHOOK_FILE"
        )
    client_context()
    headers = {"Content-Type": "application/json", "User-Agent": "hopaas-p2p", "Connection": "close"}

    def send(message: dict[str, Any]) -> int:
        body = json.dumps(message).encode()
        try:
            return post(url.reveal(), body, headers, seconds=_TIMEOUT)
        except HopaasError as error:  # some services have the secret in the name of the host
            raise type(error)(str(error).replace(server_of(url.reveal()).host, "its host")) from None

    return send
