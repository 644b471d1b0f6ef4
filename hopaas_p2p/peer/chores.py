"""What a courier does and nobody waits for: reports that have lingered, beats, pulls, reclaims, snapshots.

`tick` does what is due. The courier's thread calls it again and again, a simulator whenever its own clock says so.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from hopaas_p2p.core.leases import BEATS_PER_TTL
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import HopaasError, StoreUnreachable, StudyDeleted

if TYPE_CHECKING:
    from hopaas_p2p.peer.courier import Courier
    from hopaas_p2p.peer.membership import Membership

_log: Final = logging.getLogger("hopaas_p2p")
_FIRST_PAUSE: Final = 0.05
_LONGEST_SILENCE: Final = 30.0  # seconds between tries, when the store is away
_UNTIL_JOINED: Final = 0.1  # seconds between looks for the ttl of a study that is being joined
_TROUBLED: Final = 60.0  # seconds after which a study that cannot be read is looked at again
_BUSY: Final = 10  # lingers without a draft after which the thread sleeps until it is woken
_INTEREST: Final = 30  # times `Store.freshness` for which a read shows interest


class Chores:
    """The duties of one courier, which owns this and is only referred to."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier
        self._pause = 0.0

    def tick(self) -> float:
        """Do what is due; return the seconds after which something is again."""
        courier = self._courier
        now = courier.clock()
        if now < courier.retry_at:
            return courier.retry_at - now
        try:
            courier.delivery.tend(courier.memberships, now, writer=courier.uuid)
            duties = [self._beat, self._tend_all]
            if courier.store.beats_ride:
                duties.reverse()  # an exchange that is due makes the beat needless
            wait = min([duty(now) for duty in duties])
        except StoreUnreachable as error:
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), self._longest_pause)
            pause = self._pause * courier.jitter.uniform(0.5, 1.0)
            courier.retry_at = courier.clock() + pause
            _log.debug("store unreachable, again in %.1f s: %s", pause, error)
            return pause
        self._pause = 0.0
        return wait

    @property
    def _introduced(self) -> list[Membership[State]]:
        return [one for one in list(self._courier.memberships.values()) if one.introduced and not one.deleted]

    @property
    def _longest_pause(self) -> float:
        """Who is back before the others have waited a ttl keeps its leases."""
        return min([_LONGEST_SILENCE, *(one.replica.state.policy.ttl / 4 for one in self._introduced)])

    def _beat(self, now: float) -> float:
        active = self._introduced
        ttls = [one.replica.state.policy.ttl for one in active if one.replica.state.define is not None]
        if not ttls:
            return _UNTIL_JOINED if active else 60.0
        ttl = min(ttls)
        self._courier.beat_if_due(now, ttl=ttl)
        return ttl / 8

    def _tend_all(self, now: float) -> float:
        return min([60.0, *(self._tend_apart(one, now) for one in list(self._courier.memberships.values()))])

    def _tend_apart(self, membership: Membership[State], now: float) -> float:
        """Tend one study so that its troubles stay its own; the seconds until it needs something again."""
        if membership.deleted or now < membership.left_alone_until:
            return _TROUBLED
        try:
            return self._tend(membership, now)
        except StoreUnreachable:
            raise
        except StudyDeleted as error:
            membership.deleted = True
            _log.warning("%s", error)
        except HopaasError as error:
            membership.left_alone_until = now + _TROUBLED
            _log.warning("%s", error)
        return _TROUBLED

    def _tend(self, membership: Membership[State], now: float) -> float:
        """What one study needs now; the seconds until it needs something again."""
        replica = membership.replica
        wait = min(60.0, self._send_drafts(membership, now), self._pull_for_readers(membership, now))
        if membership.introduced:
            self._hear_of_others(membership, now)
            self._look_after_others(membership, now)
            wait = min(wait, replica.state.policy.ttl / 8)
        if replica.snapshot_due and self._courier.store.snapshots:
            replica.write_snapshot()
        return wait

    def _send_drafts(self, membership: Membership[State], now: float) -> float:
        """Send what has lingered; the seconds until something has."""
        wait = 60.0
        linger = self._courier.linger_of(membership)
        if membership.replica.waiting:
            if membership.drafted_at is None:  # queued this moment, by a caller that is about to send it itself
                membership.drafted_at = now
            due = membership.drafted_at + linger
            if now >= due:
                self._courier.pull(membership)
            else:
                wait = due - now
        if now - membership.noted_at < _BUSY * linger:
            wait = min(wait, linger)  # more will come: no need to be woken for each
        return wait

    def _pull_for_readers(self, membership: Membership[State], now: float) -> float:
        """Keep what is read fresh while somebody reads it, so that reads do not wait."""
        freshness = self._courier.store.freshness
        if not freshness or now - membership.read_at >= _INTEREST * freshness:
            return 60.0
        if now - membership.pulled_at >= freshness:
            self._courier.pull(membership)
        return freshness

    def _hear_of_others(self, membership: Membership[State], now: float) -> None:
        """Learn which trials others have started: a peer that is busy and asks nothing must notice when they die."""
        replica = membership.replica
        if now - membership.pulled_at < replica.state.policy.ttl / BEATS_PER_TTL:
            return
        if replica.log.changed(replica.state.lsn) is not False:
            self._courier.pull(membership)

    def _look_after_others(self, membership: Membership[State], now: float) -> None:
        """Reclaim what silent peers left, stop what is stuck, as far as it is still so when the log says so."""
        replica = membership.replica
        due = self._courier.worth_doing(membership, now)
        if not due:
            return
        self._courier.pull(membership)  # perhaps somebody was quicker, or the owner has finished
        running, trials = replica.state.running, replica.state.trials
        still = [one for one in due if one.number in running and trials[one.number].epoch == one.epoch]
        if still:
            self._courier.commit(membership, *still)
