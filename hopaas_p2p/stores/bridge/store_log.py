"""One log of a far store, as peers see it that reach only the near side of a bridge: see `stores.bridged`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hopaas_p2p.errors import HopaasError, StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.base import Beat, Entry, Outgoing, Receipt
from hopaas_p2p.stores.bridge.frames import Append, Destroy, Snapshot, Watch, Withdraw, nonce
from hopaas_p2p.stores.bridge.mirror import Mirror

if TYPE_CHECKING:
    from hopaas_p2p.stores.bridge.store import BridgedStore

_ANEW: Final = 0.05  # seconds
RENEWAL: Final = 300.0
"""Seconds after which a bridge is told again what interests this process."""


class BridgedLog:
    """One log of the far store, through its mirror."""

    def __init__(self, store: BridgedStore, name: str) -> None:
        self._store = store
        self._name = name
        self._mirror = Mirror(store.near_log(name))
        self._watched_at = -1e9
        self._posted: tuple[bytes, int] | None = None
        """The commit last put into the box, and its place there."""

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> Receipt:
        entries = self._mirror.read(since)
        self._watch()
        if outgoing is None:
            if not self._mirror.begun:
                self._wait(self._watch_place, entries, lambda: self._mirror.begun)
            return Receipt(entries)
        payload = outgoing.payload
        if not _holds(entries, payload):
            if self._posted is None or self._posted[0] != payload:
                place = self._store.post(Append(self._name, outgoing.nonce, payload, since))
                self._posted = (payload, place)
            self._wait(self._posted[1], entries, lambda: _holds(entries, payload))
        self._posted = None
        return Receipt(entries)

    def withdraw(self, outgoing: Outgoing) -> None:
        """Have the bridge pass over a commit that lies in the box."""
        if self._posted is not None and self._posted[0] == outgoing.payload:
            self._posted = None
            with contextlib.suppress(StoreUnreachable):
                self._store.post(Withdraw(self._name, outgoing.nonce))

    def _watch(self) -> None:
        """Say now and then that somebody reads this."""
        now = self._store.clock()
        if now - self._watched_at > RENEWAL:
            self._watched_at = now
            with contextlib.suppress(StoreUnreachable):  # who may only look into the directory, looks
                self._watch_place = self._store.post(Watch(self._name, nonce()))

    _watch_place = 0

    def _wait(self, place: int, entries: list[Entry], done: Callable[[], bool]) -> None:
        """Read on until `done`, or until the request at this place was answered otherwise."""
        looked = self._store.clock()

        def look() -> bool:
            nonlocal looked
            now = self._store.clock()
            if now - looked > _ANEW:
                looked = now
                self._mirror.look_anew()
            if self._mirror.changed() is not False:
                entries.extend(self._mirror.read(self._mirror.lsn))
            return done()

        try:
            self._store.wait(place, look)
        except StoreUnreachable:
            raise
        except HopaasError:
            self._posted = None
            self._watched_at = -1e9
            raise

    def changed(self, since: int) -> bool | None:
        return True if since != self._mirror.lsn else self._mirror.changed()

    def newest_snapshot(self, *, before: int | None = None) -> tuple[int, bytes] | None:
        return self._mirror.newest_snapshot(before=before)

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        self._mirror.put_snapshot(lsn, data)
        self._store.post(Snapshot(self._name, lsn, nonce()))

    def destroy(self) -> None:
        place = self._store.post(Destroy(self._name, nonce()))
        try:
            self._store.wait(place, lambda: False)
        except StudyDeleted:
            return


def _holds(entries: list[Entry], payload: bytes) -> bool:
    return any(entry.payload == payload for entry in entries)
