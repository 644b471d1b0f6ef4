"""Who may touch a running trial, and when others may take it away.

A lease is (owner, epoch). The log decides: an epoch only rises, and a record with an old epoch is refused by everyone
who replays it. Time never decides who is right. It only decides when someone is *worth asking about*: an owner doubts
itself a little before the others begin to.

No clock is compared with another. An owner beats every ttl/3. An observer remembers which beat it saw and since when,
on its own monotonic clock; the same beat for a whole ttl is silence, and silence is what a reclaim needs. An observer
that could not look for a while begins anew: what kept it from looking may have kept the owner from beating. An owner
trusts its lease until ttl minus a margin has passed since its last exchange *began*: whatever the observers saw of it,
they saw no earlier than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from hopaas_p2p.core.records import TrialReclaim
from hopaas_p2p.core.state import State

MARGIN: Final = 0.1
"""Share of the ttl by which an owner doubts itself before others may reclaim."""

BEATS_PER_TTL: Final = 3

LONGEST_TTL: Final = 30 * 86400.0
"""Seconds: whatever an owner tells of itself, its trials are not lost for longer than a month."""


class Lease(NamedTuple):
    """The right to run a trial."""

    owner: str
    epoch: int


def ttl_of(state: State, owner: str) -> float:
    """Seconds of silence after which this owner's trials may be reclaimed.

    The study's, or a longer one that the owner told in its introduction: a ticket of the shell, which nobody keeps
    beating for between two commands.
    """
    told = state.peers.get(owner, {}).get("ttl", "")
    try:
        longer = float(told) if told else 0.0
    except ValueError:
        longer = 0.0
    if math.isnan(longer):
        return state.policy.ttl
    return max(state.policy.ttl, min(longer, LONGEST_TTL))


def trusted_until(last_exchange_began: float, ttl: float) -> float:
    """The moment, on the owner's monotonic clock, from which it must doubt its leases."""
    return last_exchange_began + ttl * (1.0 - MARGIN)


class Sighting(NamedTuple):
    """The beat last seen of an owner, and since when."""

    beat: str | None
    since: float
    changed: bool = False
    """Whether it was seen to change: proof of life, where a first sight is none."""


class Watch:
    """What one observer knows of the owners it watches: the beat last seen of each, and since when.

    An owner that was never seen beating is watched from the moment the observer first looked.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Sighting] = {}
        self._looked = -math.inf

    def look(self, beats: Mapping[str, str], owners: Iterable[str], now: float, *, gap: float = math.inf) -> None:
        """Take in the beats of these owners; forget all others.

        After more than `gap` seconds without a look, all that was seen before is forgotten.
        """
        if now - self._looked > gap:
            self._seen = {}
        self._looked = now
        self._seen = {owner: self._sighting(owner, beats.get(owner), now) for owner in owners}

    def _sighting(self, owner: str, beat: str | None, now: float) -> Sighting:
        before = self._seen.get(owner)
        if before is None:
            return Sighting(beat, now)
        return before if before.beat == beat else Sighting(beat, now, changed=True)

    def silence(self, owner: str, now: float) -> float:
        """Seconds for which this owner's beat has not changed; 0 for one not watched yet."""
        seen = self._seen.get(owner)
        return now - seen.since if seen is not None else 0.0

    def proven_alive(self, owner: str, now: float, *, within: float) -> bool:
        """Whether this owner's beat was seen to change not longer than `within` seconds ago."""
        seen = self._seen.get(owner)
        return seen is not None and seen.changed and now - seen.since <= within


def reclaims(state: State, watch: Watch, now: float, *, spare: frozenset[str]) -> list[TrialReclaim]:
    """The reclaim records this observer may append: running trials whose owner was silent for its ttl.

    `spare` are owners that this process acts for itself.
    """
    due = []
    for number in list(state.running):  # another thread may be applying commits
        trial = state.trials[number]
        owner = trial.owner
        if owner is not None and owner not in spare and watch.silence(owner, now) >= ttl_of(state, owner):
            due.append(TrialReclaim(number, trial.epoch))
    return due
