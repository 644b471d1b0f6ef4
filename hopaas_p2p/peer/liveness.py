"""Finds out, for display, whether the peers that run trials are alive.

A peer is *known* to be alive once its heartbeat has been seen to change. A process that has only just looked does not
know that yet, so each heartbeat also carries the time at which it was sent, by its peer's clock. A recent heartbeat
means alive, an old one silent, and in between it is not known. If clocks disagree, or an older version wrote the
heartbeat, the answer is "unknown". These answers affect no lease, because a trial is reclaimed only by what an observer
itself saw; see `core.leases`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from typing import Final, NamedTuple

from hopaas_p2p.core.leases import BEATS_PER_TTL, FailureDetector, beat_time, ttl_of
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.peer.peer import Peer

_OVERDUE: Final = 1.25  # intervals between heartbeats after which a peer is no longer shown as alive
_CLOCKS_AGREE: Final = 10.0  # seconds by which another machine's clock may be ahead of ours


class SignOfLife(NamedTuple):
    """Whether a peer is alive, as far as known."""

    alive: bool | None
    """False after a silence of the peer's ttl; None if nothing is known, or the next sign of life is overdue."""
    ago: float | None
    """Seconds since the peer's last sign of life; None if that is not known."""


UNKNOWN: Final = SignOfLife(None, None)


def sign_of_life(state: State, owner: str, detector: FailureDetector, now: float, wall: float) -> SignOfLife:
    """What an observer knows about this owner; `now` is the detector's clock, `wall` is in seconds since 1970."""
    ttl, silence, made = ttl_of(state, owner), detector.silence(owner, now), beat_time(detector.beat(owner))
    ago = None if made is None or made - wall > _CLOCKS_AGREE else max(0.0, wall - made)
    if silence >= ttl:  # it may have been silent before this observer looked
        return SignOfLife(False, max(silence, ago or 0.0))
    due = _OVERDUE * ttl / BEATS_PER_TTL
    if silence <= due and detector.proven_alive(owner, since=0.0):  # whenever that was
        return SignOfLife(True, silence)
    if ago is None:
        return UNKNOWN
    return SignOfLife(False if ago >= ttl else None if ago >= due else True, ago)


def signs_of_life(peer: Peer, state: State, idle: Collection[str] = ()) -> dict[str, SignOfLife]:
    """The signs of life of the owners of running trials, and of `idle` peers with a beat, after one look at the store.

    If the store does not answer, nothing is known about other peers.
    """
    owners, mine = owners_of(state), peer.mine
    asked = (owners | set(idle)) - mine
    detector, now = FailureDetector(), peer.clock()
    beats: dict[str, str] = {}
    if asked:
        with contextlib.suppress(StoreUnreachable):
            beats = peer.store.beats(asked)
    others = (owners - mine) | set(beats)
    detector.look(beats, others, now)
    signs = {owner: sign_of_life(state, owner, detector, now, time.time()) for owner in others}
    return {**signs, **dict.fromkeys(owners & mine, SignOfLife(True, 0.0))}


def owners_of(state: State) -> set[str]:
    """The peers that run a trial, according to the log."""
    return {owner for one in list(state.running) if (owner := state.trials[one].owner) is not None}


def any_alive(signs: Collection[SignOfLife]) -> bool | None:
    """Whether any of these peers is alive; None if none is known to be alive, but not all are known to be silent."""
    if any(one.alive for one in signs):
        return True
    return None if any(one.alive is None for one in signs) else False
