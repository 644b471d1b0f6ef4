"""Keeps this peer's leases alive, and takes over the trials of peers that fell silent.

Works by itself, on the courier's thread. Two duties, both paced by the study's ttl: beat, so that others see this peer
live; and look at the beats of the others that run trials, so that a dead one's trials come back. See `core.leases` for
why no clock is compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from hopaas_p2p.core.leases import BEATS_PER_TTL, Watch, reclaims, ttl_of
from hopaas_p2p.core.records import TrialReclaim
from hopaas_p2p.core.state import State
from hopaas_p2p.stores.base import Beat, Store

_LOOKS_PER_TTL: Final = 8  # a dead owner is noticed within ttl * (1 + 2/8)


class Keeper:
    """Beats and observations of one peer. All times are seconds on the caller's monotonic clock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watches: dict[int, Watch] = {}
        self._count = 0
        self._next_beat = 0.0
        self._next_look: dict[int, float] = {}

    def beat_due(self, now: float) -> bool:
        return now >= self._next_beat

    def new_beat(self, peer: str, *, writer: str) -> Beat:
        """A beat that differs from all before it, also from those of other processes that act for this peer."""
        self._count += 1
        return Beat(peer, f"{writer}:{self._count}")

    def beat(self, peers: Iterable[str], *, writer: str, ttl: float, now: float) -> None:
        """Overwrite the beats of the peers this process acts for."""
        for peer in peers:
            self._store.beat(self.new_beat(peer, writer=writer))
        self.has_beaten(ttl=ttl, now=now)

    def has_beaten(self, *, ttl: float, now: float) -> None:
        self._next_beat = now + ttl / BEATS_PER_TTL

    def due_reclaims(self, study: int, state: State, *, spare: Collection[str], now: float) -> list[TrialReclaim]:
        """Look at the owners of running trials, if it is time to, and say whose trials may be reclaimed."""
        ttl = state.policy.ttl
        if now < self._next_look.get(study, 0.0):
            return []
        self._next_look[study] = now + ttl / _LOOKS_PER_TTL
        owners = {state.trials[n].owner for n in state.running} - set(spare) - {None}
        watched = [owner for owner in owners if owner is not None]
        watch = self._watches.setdefault(study, Watch())
        watch.look(self._store.beats(watched), watched, now)
        return reclaims(state, watch, now, spare=frozenset(spare))

    def doubtful_owners(self, study: int, state: State, *, spare: Collection[str], now: float) -> set[str]:
        """Owners of running trials that were not seen beating lately: they may be dead."""
        watch = self._watches.setdefault(study, Watch())
        owners = {state.trials[number].owner for number in state.running} - set(spare)
        return {
            owner
            for owner in owners
            if owner is not None
            and not watch.proven_alive(owner, now, within=1.5 * ttl_of(state, owner) / BEATS_PER_TTL)
        }
