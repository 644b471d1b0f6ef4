"""What could not be sent in time: left on this machine's disk, see `peer.spool`, and sent by whoever is there next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.core.state import State
from hopaas_p2p.errors import HopaasError, StoreUnreachable
from hopaas_p2p.peer import spool
from hopaas_p2p.peer.replica import study_replica

if TYPE_CHECKING:
    from hopaas_p2p.peer.membership import Membership
    from hopaas_p2p.stores.base import Store

_log: Final = logging.getLogger("hopaas_p2p")
_EVERY: Final = 30.0  # seconds between looks into the spool


class Delivery:
    """The spool as one courier uses it."""

    def __init__(self, store: Store, *, now_us: Callable[[], int]) -> None:
        self._store = store
        self._now_us = now_us
        self._next = 0.0
        self._left: set[Path] = set()
        """Files that the store does not take from this process, as of a study that was deleted."""

    def keep(self, membership: Membership[State]) -> Path | None:
        """Put what could not be sent on disk, if the end of a trial is among it; any process of this user sends it."""
        replica = membership.replica
        ends = replica.ends()
        if not ends or self._store.url.startswith("memory:"):
            return None
        define = replica.state.define
        path = spool.keep(
            replica.pack_for_spool(),
            store=self._store.url,
            study=membership.uuid,
            name=define.name if define else "",
            trials=ends,
            at=self._now_us(),
        )
        membership.spooled.append(path)
        return path

    def keep_all(self, memberships: Iterable[Membership[State]]) -> None:
        """As `keep`, at the end of the program. A trial that was asked for and has not begun is to be nobody's."""
        for membership in memberships:
            if not membership.spooled and not membership.deleted:
                path = self.keep(membership)
                if path is None:
                    membership.replica.withdraw()
                else:
                    _log.warning("kept in %s; sent at the next contact, or with: hopaas-p2p spool send", path)

    @staticmethod
    def forget(membership: Membership[Any]) -> None:
        """All is acknowledged: nobody needs to send it again."""
        for path in membership.spooled:
            path.unlink(missing_ok=True)
        membership.spooled.clear()

    def tend(self, memberships: Mapping[str, Membership[State]], now: float, *, writer: str) -> None:
        """Now and then, deliver what other processes of this user have left."""
        if now < self._next:
            return
        self._next = now + _EVERY
        own = {path for membership in memberships.values() for path in membership.spooled}
        for path, spooled in spool.waiting(self._store.url):
            if path in own or path in self._left:
                continue
            try:
                self.deliver(path, spooled, memberships, writer=writer)
            except StoreUnreachable:
                raise
            except HopaasError as error:  # the others are not held up by it
                self._left.add(path)
                _log.warning("%s stays there: %s", path, error)

    def deliver(
        self, path: Path, spooled: spool.Spooled, memberships: Mapping[str, Membership[State]], *, writer: str
    ) -> None:
        """Send what is in this file of the spool, and remove it.

        Raises:
            StoreUnreachable: not this time; it stays.
        """
        membership = memberships.get(spooled.study)
        replica = (
            membership.replica
            if membership is not None
            else study_replica(self._store.log(spooled.study), writer=writer, now_us=self._now_us)
        )
        for nonce, payload in zip(spooled.nonces, spooled.payloads, strict=True):
            replica.send_for_another(nonce, payload)
        path.unlink(missing_ok=True)
