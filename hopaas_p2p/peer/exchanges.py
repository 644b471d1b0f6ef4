"""Exchanges with the logs of one store, in the thread of whoever has to wait for them.

There is no hand-over: who comes while another thread exchanges waits for its turn, and then finds that its records went
along, or sends with its own what has queued up. Where a caller may go on without the store, it does.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, Final

from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.errors import Denied, HopaasError, StoreUnreachable, StudyDeleted
from hopaas_p2p.peer.background import Background
from hopaas_p2p.peer.delivery import Delivery
from hopaas_p2p.peer.keeper import Keeper
from hopaas_p2p.peer.membership import Membership
from hopaas_p2p.peer.outbox import Ticket
from hopaas_p2p.stores.base import Beat, Store

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
_TOLD_AFTER: Final = 3.0  # seconds for which somebody has waited for a store that does not answer
_log: Final = logging.getLogger("hopaas_p2p")


class Exchanges:
    """See the module. Any thread may call.

    Args:
        store: where the logs are.
        patience: seconds for which a blocking call tries an unreachable store before it raises.
        clock: monotonic seconds.
        now_us: the time for people to read, in microseconds.
        jitter: randomness of pauses.
        threaded: whether a thread does what nobody waits for.

    """

    uuid: str
    adopted: set[str]

    def __init__(
        self,
        store: Store,
        *,
        patience: float,
        clock: Callable[[], float],
        now_us: Callable[[], int],
        jitter: random.Random,
        threaded: bool,
    ) -> None:
        self.store = store
        self.patience = patience
        self.clock = clock
        self.now_us = now_us
        self.jitter = jitter
        self.retry_at = 0.0
        """Until when nobody who can do without the store asks it: it did not answer."""
        self.away = False
        """Whether the last exchange failed: a read then leaves it to the background thread to find the store again."""
        self.memberships: dict[str, Membership[State]] = {}
        self.delivery = Delivery(store, now_us=now_us)
        self._keeper = Keeper(store)
        self._background = Background(self.tick, allowed=threaded)

    def tick(self) -> float:
        """What the background thread does; the seconds until it is to do it again."""
        raise NotImplementedError

    def settle(self, membership: Membership[Any], ticket: Ticket) -> tuple[Verdict, ...]:
        """Exchange until the log has decided about this ticket.

        Raises:
            StoreUnreachable: not within `patience`; it stays queued.
            InvalidInput: it cannot be written down.
        """
        while ticket.verdicts is None:
            self._insist(membership, ticket)
        self._background.let_work()
        if ticket.error is not None:
            raise ticket.error
        return ticket.verdicts

    def _insist(self, membership: Membership[Any], ticket: Ticket | None) -> None:
        """Make one exchange, as often as it takes within `patience`; none if another thread's decided the ticket."""
        began, told = self.clock(), False
        pause = _FIRST_PAUSE
        turn = membership.replica.turn
        while turn.take(ticket):
            try:
                self._exchange(membership)
                return
            except StoreUnreachable as error:
                waited = self.clock() - began
                if waited >= self.patience:
                    raise
                if waited >= _TOLD_AFTER and not told:
                    told = True
                    _log.warning("still trying, for %.0f s in all: %s", self.patience, error)
            finally:
                turn.give()
            time.sleep(pause * self.jitter.uniform(0.5, 1.5))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def pull(self, membership: Membership[Any]) -> None:
        """Bring the replica up to date, and send what is queued on the way."""
        with membership.replica.turn:
            self._exchange(membership)

    def refresh_for_reading(self, membership: Membership[Any]) -> None:
        """See that a read finds what it may expect to: see `Store.freshness`."""
        store, replica = self.store, membership.replica
        if store.freshness == 0.0:
            if replica.log.changed(replica.state.lsn):
                self._pull_if_possible(membership)
            return
        now = self.clock()
        membership.read_at = now
        stale = now - membership.pulled_at > 2 * store.freshness and now >= self.retry_at
        self._background.start()
        if not replica.joined or (stale and not (self.away and self._background.allowed)):
            self._pull_if_possible(membership)
        elif stale:
            self._background.wake(after=store.freshness)

    def _pull_if_possible(self, membership: Membership[Any]) -> None:
        """A read gets by with what is known, if anything is: training does not stop because a store is away.

        Nor because a token ended under it; who takes no part is told so.
        """
        if not membership.replica.joined:
            self.catch_up(membership)
            return
        try:
            self.pull(membership)
        except (StoreUnreachable, Denied) as error:
            if isinstance(error, Denied) and not membership.introduced:
                raise
            self.retry_at = self.clock() + self.store.freshness  # until then nobody asks again

    def catch_up(self, membership: Membership[Any]) -> None:
        """As `pull`, but patiently.

        Raises:
            StoreUnreachable: not within `patience`.

        """
        self._insist(membership, None)

    def _exchange(self, membership: Membership[Any]) -> None:
        """One exchange, in turn."""
        began = self.clock()
        beat = self._riding_beat(membership)
        membership.drafted_at = None
        try:
            membership.replica.exchange_in_turn(beat)
        except StoreUnreachable:
            membership.drafted_at = began
            self.away = True
            raise
        membership.pulled_at = began
        self.away = False
        if membership.spooled and not membership.replica.waiting:
            self.delivery.forget(membership)
        if beat is not None and not self.adopted:  # theirs do not ride along
            self._keeper.has_beaten(ttl=membership.replica.state.policy.ttl, now=began)
        if membership.replica.snapshot_due and self.store.snapshots:
            self._background.wake()
        elif membership.introduced:  # the thread may have gone to sleep for long before there was a lease to keep
            self._background.wake(after=membership.replica.state.policy.ttl / 8)

    def _riding_beat(self, membership: Membership[Any]) -> Beat | None:
        if not self.store.beats_ride or not membership.introduced:
            return None
        return self._keeper.new_beat(self.uuid, writer=self.uuid)

    def flush(self) -> None:
        """Send everything that is queued. Blocks until the store has it.

        Raises:
            StoreUnreachable: it did not answer; what waits stays queued.
            HopaasError: one study could not be written to; the others were.
        """
        troubles = []
        for membership in list(self.memberships.values()):
            try:
                while membership.replica.waiting and not membership.deleted:
                    self.pull(membership)
            except StoreUnreachable:
                raise
            except HopaasError as error:
                membership.deleted = membership.deleted or isinstance(error, StudyDeleted)
                troubles.append(error)
        if troubles:
            raise troubles[0]
