"""Keeps this peer's leases alive, and takes over the trials of peers that fell silent.

Works by itself, on the courier's thread. Two duties, both paced by the study's ttl: beat, so that others see this peer
live; and look at the beats of the others that run trials, so that a dead one's trials come back. See `core.leases` for
why no clock is compared.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from hopaas_p2p.core.leases import BEATS_PER_TTL, Watch, reclaims, ttl_of
from hopaas_p2p.core.records import TrialReclaim, TrialStop
from hopaas_p2p.core.state import State
from hopaas_p2p.stores.base import Beat, Store


class _Progress(NamedTuple):
    """How far an observer last saw a trial get, and since when."""

    epoch: int
    reports: int
    since: float


_RING: Final = 8  # owners that a busy peer watches
_UNRESTED: Final = 2  # attempts that start without a rest: the first, and one retry
_LONGEST_GAP: Final = 0.5  # of a ttl without a look: the store was away, and for the owners perhaps, too
_LOOKS_PER_TTL: Final = 8  # a dead owner is noticed within ttl * (1 + 2/8)


def _watched(state: State, spare: Collection[str]) -> list[str]:
    """The owners this peer looks after: all, if it runs no trial itself; else the few that follow it in a ring.

    With every peer watching every other, a thousand would read a million beats each round. Owners stand in a ring in
    the order of their (random) uuids and each is watched by those before it; if they die too, they are reclaimed by
    the ones before them, the ring closes, and the next in line looks.
    """
    running = {state.trials[number].owner for number in list(state.running)}
    others = sorted(owner for owner in running if owner is not None and owner not in spare)
    mine = [owner for owner in spare if owner in running]
    if len(others) <= _RING or not mine:
        return others
    place = bisect.bisect(others, mine[0])
    return (others[place:] + others[:place])[:_RING]


class Keeper:
    """Beats and observations of one peer. All times are seconds on the caller's monotonic clock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watches: dict[int, Watch] = {}
        self._count = 0
        self._next_beat = 0.0
        self._next_look: dict[int, float] = {}
        self._progress: dict[tuple[int, int], _Progress] = {}
        self._rests: dict[tuple[int, int], float] = {}

    def beat_due(self, now: float) -> bool:
        return now >= self._next_beat

    def new_beat(self, peer: str, *, writer: str) -> Beat:
        """A beat that differs from all before it, also from those of other processes that act for this peer."""
        self._count += 1
        return Beat(peer, f"{writer}:{self._count}")

    def beat(self, peers: Iterable[str], *, writer: str) -> None:
        """Overwrite the beats of the peers this process acts for."""
        for peer in peers:
            self._store.beat(self.new_beat(peer, writer=writer))

    def has_beaten(self, *, ttl: float, now: float) -> None:
        """A beat began at `now`; the next one is due a third of ttl later."""
        self._next_beat = now + ttl / BEATS_PER_TTL

    def due(self, study: int, state: State, *, spare: Collection[str], now: float) -> list[TrialReclaim | TrialStop]:
        """Look at the owners of running trials, if it is time to, and say what may be done about them."""
        ttl = state.policy.ttl
        if now < self._next_look.get(study, 0.0):
            return []
        self._next_look[study] = now + ttl / _LOOKS_PER_TTL
        watched = _watched(state, spare)
        watch = self._watches.setdefault(study, Watch())
        watch.look(self._store.beats(watched), watched, now, gap=ttl * _LONGEST_GAP)
        return [*reclaims(state, watch, now, spare=frozenset(spare)), *self._stuck(study, state, now)]

    def _stuck(self, study: int, state: State, now: float) -> list[TrialReclaim | TrialStop]:
        """Trials without a report for the policy's progress time-out are asked to stop; a time-out later, reclaimed."""
        timeout = state.policy.progress_timeout
        if timeout is None:
            return []
        running = [state.trials[number] for number in list(state.running)]
        before = self._progress
        self._progress = {key: seen for key, seen in before.items() if key[0] != study}
        found: list[TrialReclaim | TrialStop] = []
        for trial in running:
            key = (study, trial.number)
            seen = before.get(key)
            if seen is None or (seen.epoch, seen.reports) != (trial.epoch, len(trial.reports)):
                seen = _Progress(trial.epoch, len(trial.reports), now)
            self._progress[key] = seen
            idle = now - seen.since
            if idle >= 2 * timeout and trial.stop is not None:
                found.append(TrialReclaim(trial.number, trial.epoch, f"no report for {idle:.0f} s"))
            elif idle >= timeout and trial.stop is None:
                found.append(TrialStop(trial.number, trial.epoch, f"no report for {idle:.0f} s"))
        return found

    def resting(self, study: int, state: State, *, now: float) -> tuple[int, ...]:
        """WAITING retries that this peer leaves alone for now: what killed its peer twice gets a rest first.

        The second retry waits for ttl, each further one twice as long as the one before, from when it was first seen.
        """
        resting = []
        for number in list(state.waiting):
            trial = state.trials[number]
            if trial.attempt > _UNRESTED:
                since = self._rests.setdefault((study, number), now)
                if now - since < state.policy.ttl * 2.0 ** (trial.attempt - _UNRESTED - 1):
                    resting.append(number)
        return tuple(resting)

    def doubtful_owners(self, study: int, state: State, *, spare: Collection[str], now: float) -> set[str]:
        """Owners of running trials that were not seen beating lately: they may be dead."""
        watch = self._watches.setdefault(study, Watch())
        owners = {state.trials[number].owner for number in list(state.running)} - set(spare)
        return {
            owner
            for owner in owners
            if owner is not None
            and not watch.proven_alive(owner, now, within=1.5 * ttl_of(state, owner) / BEATS_PER_TTL)
        }
