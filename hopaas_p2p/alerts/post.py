"""Saying it: the seat of the one sender, and the webhook.

The seat is an attribute of the study: who sends, and what was said. Whoever finds it empty, or its holder silent for a
lease's time, writes itself into it, waits a moment, and looks whether it is still the one: the log's last word counts.
A holder looks before every alert too. An alert is noted after the receiver has taken it, so a sender that dies between
the two leaves it to be said again: at least once, and with the same `id`.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from hopaas_p2p.alerts.rules import Alert, Limits, Memory, after_saying, due
from hopaas_p2p.core.leases import Watch, ttl_of
from hopaas_p2p.core.records import StudySet
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.peer.identity import new_uuid
from hopaas_p2p.settings import Secret
from hopaas_p2p.stores.base import Beat
from hopaas_p2p.stores.url import redacted

if TYPE_CHECKING:
    from hopaas_p2p.study import Study

SEAT: Final = "hopaas:alerts"
"""The attribute that says who sends, and what was said."""
_SETTLE: Final = 1.0  # seconds between taking the seat and looking whether it is still ours
_TIMEOUT: Final = 10.0
_TRIES_APART: Final = 30.0  # seconds before a receiver that failed is tried again

Send = Callable[[dict[str, Any]], None]


class _Seat(msgspec.Struct, frozen=True):
    sender: str = ""
    memory: Memory = Memory()


def _seat_in(state: State) -> _Seat:
    text = state.system.get(SEAT, "")
    try:
        return msgspec.json.decode(text, type=_Seat) if text else _Seat()
    except msgspec.MsgspecError:  # another version's, or garbage
        return _Seat()


def posted(state: State) -> tuple[str, ...] | None:
    """Keys of what was posted of this study and is still so; None when nobody has the seat of the sender.

    Read off the log alone: a sender that fell silent keeps the seat until another takes it.
    """
    seat = _seat_in(state)
    return seat.memory.active if seat.sender else None


class Post:
    """Looks at one study and says what there is to say, as long as this is the one that does.

    Args:
        study: needs the right to write to it.
        send: delivers one message, or raises OSError.
        limits: when something is worth saying.
        complain: told, as text, when the receiver cannot be reached.
        settle: seconds that others get to take the seat at the same moment.

    """

    def __init__(
        self,
        study: Study,
        send: Send,
        *,
        limits: Limits | None = None,
        complain: Callable[[str], None] = lambda _text: None,
        settle: float = _SETTLE,
    ) -> None:
        self.study = study
        self.id = new_uuid()
        self._send, self._limits, self._complain, self._settle = send, limits, complain, settle
        self._holders = Watch()
        self._owners = Watch()
        self._beaten = 0.0
        self._rest_until = 0.0

    @property
    def holds_the_seat(self) -> bool:
        """Whether this is the one that sends, as far as it has read."""
        return self._seat().sender == self.id

    def look(self) -> list[Alert]:
        """Take the seat if it is free; say what is due. Returns what was said.

        Raises:
            Denied: this user may only read.
            StoreUnreachable: nothing more was said.

        """
        now = time.monotonic()
        if not self.holds_the_seat and not self._take(now):
            return []
        self._beat(now)
        if now < self._rest_until:
            return []
        seat = self._seat()
        alerts, after = due(self.study.state, self._silences(now), seat.memory, self._limits)
        said: list[Alert] = []
        for alert in alerts:
            if not self.holds_the_seat or not self._say(alert):
                after = after_saying(said, seat.memory, after)
                break
            said.append(alert)
        if after != seat.memory and self.holds_the_seat:
            self._write(_Seat(self.id, after))
        return said

    def leave(self) -> None:
        """Free the seat, so that another need not wait until this one is silent."""
        if self.holds_the_seat:
            self._write(_Seat("", self._seat().memory))

    # --- the seat ---

    def _seat(self) -> _Seat:
        return _seat_in(self.study.state)

    def _write(self, seat: _Seat) -> None:
        self.study.storage.say(self.study.study_id, StudySet(system={SEAT: msgspec.json.encode(seat).decode()}))

    def _take(self, now: float) -> bool:
        seat = self._seat()
        if seat.sender:
            beats = self.study.storage.courier.store.beats([seat.sender])
            self._holders.look(beats, [seat.sender], now)
            if self._holders.silence(seat.sender, now) < self.study.state.policy.ttl:
                return False
        self._beat(now)
        self._write(_Seat(self.id, seat.memory))
        time.sleep(self._settle)
        return self.holds_the_seat

    def _beat(self, now: float) -> None:
        if not self._beaten or now - self._beaten >= self.study.state.policy.ttl / 3:
            self._beaten = now
            self.study.storage.courier.store.beat(Beat(self.id, repr(now)))

    # --- what is said ---

    def _silences(self, now: float) -> dict[str, float]:
        state = self.study.state
        owners = {owner for number in list(state.running) if (owner := state.trials[number].owner) is not None}
        self._owners.look(self.study.storage.courier.store.beats(owners), owners, now)
        return {owner: self._owners.silence(owner, now) / ttl_of(state, owner) for owner in owners}

    def _say(self, alert: Alert) -> bool:
        study = self.study
        uuid = study.storage.part(study.study_id).membership.uuid
        message = {
            "text": f"{study.name}: {alert.text}",  # what chat programs show
            "id": f"{uuid}:{alert.key}",
            "kind": alert.kind,
            "study": study.name,
            "store": redacted(study.storage.url),
            **({"details": alert.details} if alert.details else {}),
        }
        try:
            self._send(message)
        except OSError as error:
            self._rest_until = time.monotonic() + _TRIES_APART
            self._complain(f"the webhook does not take alerts ({_why(error)}); trying again in {_TRIES_APART:.0f} s")
            return False
        return True


def webhook(url: Secret) -> Send:
    """Delivers messages by POST, as JSON. The URL is a secret: with most services, who knows it may post.

    Raises:
        ConfigurationError: it is no http or https URL.

    """
    parts = urlsplit(url.reveal())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError("the webhook is no http or https URL; see HOPAAS_WEBHOOK and HOPAAS_WEBHOOK_FILE")
    opener = urllib.request.build_opener(_NoRedirect)

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
    """A message goes where it was told to go, and nowhere else."""

    def redirect_request(self, *_args: Any) -> None:
        return None


def _why(error: OSError) -> str:
    """What went wrong, without the URL."""
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code}"
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or type(reason).__name__)
