"""A store whose studies live elsewhere, as seen by peers that reach only this side of a bridge.

Nothing is decided here. What a peer wants appended goes into an inbox, which is a log of the near store; a bridge
carries it to the far store, which gives it an lsn, and copies the far log back, entry by entry (`mirror`). An exchange
ends when its commit appears in the mirror, so it was acknowledged by the far store and by this one.

Reads are answered from the mirror. Beats count when they have arrived at the far side, because other sites look there;
and nobody is taken for dead here while the bridge itself is down: without a bridge, or when its link is down, `beat`
and `beats` raise `StoreUnreachable`, and leases are uncertain as if every peer's own link were down.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

from msgspec.structs import replace

from hopaas_p2p.core.chain import shown
from hopaas_p2p.core.names import valid_name
from hopaas_p2p.errors import (
    BrokenChain,
    ConfigurationError,
    Denied,
    HopaasError,
    StoreCorrupt,
    StoreUnreachable,
    StudyDeleted,
)
from hopaas_p2p.stores.base import (
    EXCHANGE_TIMEOUT,
    Artifacts,
    Beat,
    Entry,
    ExchangeResult,
    Log,
    Outgoing,
    Progress,
    Store,
    append,
    read_all,
)
from hopaas_p2p.stores.bridge import messages
from hopaas_p2p.stores.bridge.mirror import Mirror
from hopaas_p2p.stores.directory.store import DirectoryStore

RENEWAL: Final = 300.0
"""Seconds after which this process renews its subscriptions."""
_ROUNDS: Final = 3  # of the bridge, for which a look waits at most
_LONGEST_PACE: Final = 20.0  # seconds; a bridge that states a longer one is not believed
_PAUSES: Final = (0.002, 0.02)  # seconds between looks into the mirror: the first, the longest
_SHARE: Final = 0.1  # of the wait so far that the next pause may add to it
_BEAT: Final = 64  # characters of a beat that every store keeps
_NEVER: Final = -1e9
_ERRORS: Final[dict[str, type[HopaasError]]] = {
    error.__name__: error for error in (BrokenChain, Denied, StoreCorrupt, StudyDeleted)
}


class BridgedStore(Store):
    """The near side of a bridge.

    Args:
        near: where inbox and mirrors are.
        timeout: seconds for which a call waits for the bridge.
        clock, sleep: monotonic seconds, and how to let them pass; a test passes its own.

    """

    def __init__(
        self,
        near: Store,
        *,
        timeout: float = EXCHANGE_TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.near = near
        self.clock = clock
        self._sleep = sleep
        self.url = near.url
        self.freshness = near.freshness
        self.timeout = timeout
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._inbox, self._replies_log = self.near.log(messages.INBOX), self.near.log(messages.REPLIES)
        self._inbox_at: int | None = None
        self._replies_at = 0
        self._replies: dict[int, messages.Reply] = {}
        self._alive_since: dict[str, float] = {}
        self._looked_since: dict[str, float] = {}
        self._round: str | None = None

    @property
    def leads_to(self) -> str:
        """The far store, as far as it is known on this side."""
        to = self.near.bridged_to if isinstance(self.near, DirectoryStore) else None
        return to or "the other side"

    def catalog(self) -> BridgedLog:
        return BridgedLog(self, messages.CATALOG, self.near.catalog())

    def log(self, uuid: str) -> BridgedLog:
        if uuid in (messages.INBOX, messages.REPLIES) or not uuid:
            raise StoreCorrupt(f"{uuid!r} is not a study's uuid")
        return BridgedLog(self, uuid, self.near.log(uuid))

    def artifacts(self) -> BridgedArtifacts:
        return BridgedArtifacts(self)

    def after_fork(self) -> None:
        self.near.after_fork()
        self._start_afresh()

    def close(self) -> None:
        self.near.close()

    # --- requests ---

    def post(self, request: messages.Request) -> int:
        """Put a request into the inbox; its place there. Durable when this returns."""
        payload = messages.seal(request)
        with self._lock:
            if self._inbox_at is None:
                self._inbox_at = self._carried_out()
            entries = append(self._inbox, Outgoing(messages.nonce(), payload), self._inbox_at)
            self._inbox_at = entries[-1].lsn
            return next(entry.lsn for entry in entries if entry.payload == payload)

    def waiting(self) -> int:
        """The number of requests in the inbox of which no bridge has recorded that they were carried out."""
        with self._lock:
            return sum(1 for _ in read_all(self._inbox, self._carried_out()))

    def _carried_out(self) -> int:
        """The place in the inbox up to which a bridge has recorded that everything was carried out."""
        found = self._inbox.newest_snapshot()
        return found[0] if found is not None else 0

    def wait(self, place: int, done: Callable[[], bool], *, timeout: float | None = None) -> None:
        """Return when `done` is true, or when the reply to the request at this place says that it was carried out.

        Raises:
            StoreUnreachable: neither within `timeout`.
            HopaasError: the far store's error.

        """
        timeout = self.timeout if timeout is None else timeout
        began = self.clock()
        while not done():
            reply = self.reply_to(place)
            if reply is not None:
                self.raise_error(reply)
                return
            waited = self.clock() - began
            if waited >= timeout:
                raise StoreUnreachable(
                    f"the bridge of {self.url} has not carried this over within {timeout:.0f} s. Is it running, "
                    "and does it reach the other side? Nothing is lost: it is in the inbox, and is sent when the "
                    "bridge works again."
                )
            pause = min(max(_PAUSES[0], _SHARE * waited), _PAUSES[1])
            self._sleep(pause * random.uniform(0.7, 1.3))

    @staticmethod
    def raise_error(reply: messages.Reply) -> None:
        """Raise the far store's error, if the reply is one."""
        if reply.kind:
            raise _ERRORS.get(reply.kind, ConfigurationError)(reply.message)

    def reply_to(self, place: int) -> messages.Reply | None:
        """The bridge's reply to the request at this place, if there is one."""
        with self._lock:
            if self._replies_log.changed(self._replies_at) is not False:
                for entry in read_all(self._replies_log, self._replies_at):
                    self._replies_at = entry.lsn
                    reply = messages.unseal(entry.payload, messages.Reply)
                    if reply is not None:
                        self._replies[reply.place] = reply
            return self._replies.get(place)

    # --- beats ---

    def beat(self, beat: Beat) -> None:
        if not _can_cross(beat.peer):
            return  # this is not the name of a peer
        self.near.beat(beat)
        now = self.clock()
        if now - self._alive_since.get(beat.peer, _NEVER) > RENEWAL:
            self.post(messages.CarryBeats(beat.peer))
            self._alive_since[beat.peer] = now
        echo, value = beat.peer + messages.FAR_SUFFIX, beat.value[:_BEAT]
        try:
            self.wait(0, lambda: self.near.beats([echo]).get(echo, "")[:_BEAT] == value)
        except StoreUnreachable:
            self._alive_since.pop(beat.peer, None)
            raise

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        names = [peer for peer in peers if _can_cross(peer)]
        if not names:
            return {}
        self.wait_for_round(self.timeout, names)
        found = self.near.beats([name + messages.FAR_SUFFIX for name in names])
        return {name: found[name + messages.FAR_SUFFIX] for name in names if name + messages.FAR_SUFFIX in found}

    def wait_for_round(self, timeout: float, names: Sequence[str] = ()) -> None:
        """Return when the bridge has reached the far side since the last call, and fetched the beats of these peers.

        Raises:
            StoreUnreachable: not within `timeout` seconds.

        """
        if self._round is None:
            self._round = self._status()
        place = self._subscribe_to_beats(names)
        timeout = max(timeout, _ROUNDS * self._pace())
        self.wait(0, lambda: self._new_round(place), timeout=timeout)

    def _subscribe_to_beats(self, names: Sequence[str]) -> int:
        """Have the bridge bring the beats of these peers; the place of the request, 0 if none was needed."""
        now = self.clock()
        new = [name for name in names if now - self._looked_since.get(name, _NEVER) > RENEWAL][: messages.MOST_PEERS]
        if not new:
            return 0
        place = self.post(messages.BringBeats(new))
        self._looked_since.update(dict.fromkeys(new, now))
        return place

    def _new_round(self, place: int) -> bool:
        """Whether the bridge has completed a round since this was last true, after it read the request at `place`."""
        status = self._status()
        seen = status.rpartition(":")[2]
        if status == self._round or not seen.isdigit() or int(seen) < place:
            return False
        self._round = status
        return True

    def _pace(self) -> float:
        """Seconds between the rounds of the bridge, as it states them."""
        parts = (self._round or "").split(":")
        try:
            return min(float(parts[2]), _LONGEST_PACE)
        except (ValueError, IndexError):
            return 0.0

    def _status(self) -> str:
        return self.near.beats([messages.STATUS]).get(messages.STATUS, "")


def _can_cross(peer: str) -> bool:
    """Whether beats of a peer of this name can cross a bridge."""
    return valid_name(peer) and len(peer) <= messages.LONGEST_NAME


class BridgedLog(Log):
    """One log of the far store, through its mirror."""

    def __init__(self, store: BridgedStore, name: str, near: Log) -> None:
        self._store = store
        self._name = name
        self._mirror = Mirror(near)
        self._subscribed_at = _NEVER
        self._subscription = 0
        """The place of the last request for it."""
        self._posted: tuple[bytes, int] | None = None
        """The commit last put into the inbox, and its place there."""

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        receipt = ExchangeResult(self._mirror.read(since))
        self._subscribe()
        if outgoing is None:
            if not self._mirror.begun:
                self._wait(self._subscription, receipt.entries, lambda: self._mirror.begun)
            return receipt
        if not receipt.holds(outgoing):
            if self._contradicts(outgoing, since, receipt):
                return replace(receipt, more=True)
            if self._posted is None or self._posted[0] != outgoing.payload:
                request = messages.Append(self._name, outgoing.nonce, outgoing.payload, since, outgoing.about)
                self._posted = (outgoing.payload, self._store.post(request))
            self._wait(self._posted[1], receipt.entries, lambda: receipt.holds(outgoing))
        self._posted = None
        return receipt

    def _contradicts(self, outgoing: Outgoing, since: int, receipt: ExchangeResult) -> bool:
        """Whether what the mirror holds after `since` does not follow what the sender has read up to there."""
        here = receipt.entries[0].before if receipt.entries else self._mirror.sum_at(since)
        if outgoing.chain is None or here in (None, outgoing.chain):
            return False
        if receipt.entries:
            return True
        raise BrokenChain(
            f"up to commit {since} this process read the sum {shown(outgoing.chain)}, and the mirror has {shown(here)}"
        )

    def withdraw(self, outgoing: Outgoing) -> None:
        """Have the bridge skip a commit that is in the inbox."""
        if self._posted is not None and self._posted[0] == outgoing.payload:
            self._posted = None
            with contextlib.suppress(StoreUnreachable):
                self._store.post(messages.Withdraw(self._name, outgoing.nonce))

    def _subscribe(self) -> None:
        """Tell the bridge now and then that this log is read here."""
        now = self._store.clock()
        if now - self._subscribed_at > RENEWAL:
            self._subscribed_at = now
            with contextlib.suppress(StoreUnreachable):  # a user who may only read the directory still reads
                self._subscription = self._store.post(messages.Subscribe(self._name))

    def _wait(self, place: int, entries: list[Entry], done: Callable[[], bool]) -> None:
        """Read on until `done`, or until the reply to the request at this place is an error."""

        def look() -> bool:
            if self._mirror.changed() is not False:
                entries.extend(self._mirror.read(self._mirror.lsn))
            return done()

        try:
            self._store.wait(place, look)
        except StoreUnreachable:
            raise
        except HopaasError:
            self._posted = None
            self._subscribed_at = _NEVER
            raise

    def changed(self, since: int) -> bool | None:
        return True if since != self._mirror.lsn else self._mirror.changed()

    def newest_snapshot(self, *, before: int | None = None) -> tuple[int, bytes] | None:
        return self._mirror.newest_snapshot(before=before)

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        self._mirror.put_snapshot(lsn, data)
        self._store.post(messages.Snapshot(self._name, lsn))

    def destroy(self) -> None:
        place = self._store.post(messages.Destroy(self._name))
        with contextlib.suppress(StudyDeleted):
            self._store.wait(place, lambda: False)

    def restore(self, base: tuple[int, bytes] | None, entries: Iterable[Entry]) -> None:
        raise ConfigurationError(f"{self._store.url} is one end of a bridge; restore into the store at the other end")


class BridgedArtifacts(Artifacts):
    """Files of the far store, by way of the near one.

    A file that is put is safe in the near store when `put` returns; the bridge copies it to the far side, in the order
    of the requests. A file that is not here is brought on demand, and stays.
    """

    def __init__(self, store: BridgedStore) -> None:
        self._store = store
        self._near = store.near.artifacts()

    def put(self, key: str, source: Path, progress: Progress | None = None) -> None:
        self._near.put(key, source, progress)
        place = self._store.post(messages.FileRequest("put", key))
        with contextlib.suppress(StoreUnreachable):  # it may arrive later, but preferably before its description
            self._store.wait(place, lambda: self._store.reply_to(place) is not None)

    def get(self, key: str, target: Path, progress: Progress | None = None) -> None:
        with contextlib.suppress(KeyError):
            self._near.get(key, target, progress)
            return
        self._request("get", key)
        self._near.get(key, target, progress)

    def delete(self, key: str) -> None:
        self._near.delete(key)
        self._store.post(messages.FileRequest("delete", key))

    def keys(self, prefix: str) -> list[str]:
        return self._request("list", prefix).message.split()

    def _request(self, what: Literal["get", "list"], key: str) -> messages.Reply:
        """The reply to a request. A large file takes its time, so this waits for as long as the bridge is at work."""
        place = self._store.post(messages.FileRequest(what, key))
        while True:
            with contextlib.suppress(StoreUnreachable):
                self._store.wait(place, lambda: self._store.reply_to(place) is not None)
            reply = self._store.reply_to(place)
            if reply is not None:
                if reply.kind == messages.MISSING:
                    raise KeyError(key)
                self._store.raise_error(reply)
                return reply
            self._store.wait_for_round(self._store.timeout)
