"""Which peer may change a running trial, and when other peers may take the trial over.

A lease is the pair (owner, epoch). An epoch only rises, and every replica refuses a record with an old epoch. Clocks
never determine who owns a trial, only when an owner's silence is worth acting on. An owner treats its lease as
uncertain a little before others may reclaim its trial.

No clock is compared with another. An owner sends a beat every ttl/3. An observer records, by its own monotonic clock,
when it first saw each owner's current beat. An owner whose beat has not changed for a whole ttl is silent, and its
trials may be reclaimed. An observer that could not look for a while starts over, because the same cause may have kept
the owner from sending a beat. An observer does not read the beats of owners whose commits have arrived since its last
look.

An owner trusts its lease until ttl minus a margin has passed since its last exchange *began*, because no
observer can have first seen the owner's current beat before that time. If its next beat arrives later, the owner trusts
the lease again only after it has read the log once more. An observer reads the log and the beats of silent owners again
before it reclaims a trial. Because the observer may be suspended after that, its record names the lsn up to which it
knew the log when it looked, and is refused if the owner has written since.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from hopaas_p2p.core.ledger import announced_number
from hopaas_p2p.core.records import TrialReclaim, TrialStop
from hopaas_p2p.core.state import State, Trial

MARGIN: Final = 0.1
"""Share of the ttl by which an owner treats its lease as uncertain before others may reclaim the trial."""

BEATS_PER_TTL: Final = 3

LONGEST_PEER_TTL: Final = 30 * 86400.0
"""Seconds. Whatever ttl an owner announces, its trials are reclaimed after a month of silence at the latest."""

_RING: Final = 8  # number of owners that a busy peer watches
_UNRESTED: Final = 2  # attempts that start without a rest: the first, and one retry
_LONGEST_REST: Final = 64  # number of doublings, effectively for ever
_LONGEST_GAP: Final = 0.5  # share of a ttl; after a longer gap between looks, the owners may not have reached the store
_LOOKS_PER_TTL: Final = 8  # a dead owner is noticed within ttl * (1 + 3/8)
_UNSEEN: Final = (None, -math.inf, -math.inf)
_NO_LEASE: Final = (-1, 0, 0.0, 0.0)


class Lease(NamedTuple):
    """The right to run a trial."""

    owner: str
    epoch: int


def ttl_of(state: State, owner: str) -> float:
    """Seconds of silence after which this owner's trials may be reclaimed.

    This is the study's ttl, or a longer one that the owner announced when it joined. The owner of a shell ticket does
    so because no process sends beats for it between two commands.
    """
    longer = announced_number(state.peers.get(owner, {}).get("ttl"))
    return max(state.policy.ttl, min(longer, LONGEST_PEER_TTL))  # the study's ttl if the other one is NaN


def beat_value(peer: str, count: int, now_us: int) -> str:
    """A heartbeat that differs from all before it.

    A beat contains the time for display; the rules only check that the beat changes.
    """
    return f"{peer}:{count}:{now_us // 1_000_000}"


def beat_time(beat: str | None) -> float | None:
    """When this heartbeat was sent, in seconds since 1970 by the sender's clock; None if it contains no time."""
    text = beat.rpartition(":")[2] if beat is not None and beat.count(":") == 2 else ""
    return float(text) if text.isascii() and text.isdigit() else None


def _said(state: State, trial: Trial) -> int:
    """How many reports and metric values this trial has; 0 if the study has no progress timeout, to save the
    counting.
    """
    if state.policy.progress_timeout is None:
        return 0
    return len(trial.reports) + sum(map(len, trial.metrics.values()))


class FailureDetector:
    """What one observer knows about the owners it watches: the last beat of each, and when that beat was first seen.

    An owner whose beat was never seen is watched from the moment of the observer's first look.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str | None, float, float]] = {}
        """For each owner: its beat, since when it was seen, and the moment after which the owner was proven alive,
        which is the last look before the beat changed. A first sighting does not prove life."""
        self._unread: Collection[str] = ()
        """Owners whose beats were not read at the last look, because their commits had arrived."""
        self._looked = -math.inf

    def look(
        self,
        beats: Mapping[str, str],
        owners: Iterable[str],
        now: float,
        *,
        read: float | None = None,
        heard: Collection[str] = (),
        gap: float = math.inf,
    ) -> None:
        """Record the beats of these owners, or that commits of some were `heard`, and forget all other owners.

        The beats were read between `now` and `read`. After more than `gap` seconds without a look, all that was seen
        before is forgotten.
        """
        earlier, last = {} if now - self._looked > gap else self._seen, self._looked
        seen = now if read is None else read
        self._looked, self._seen = now, {}
        for owner in owners:
            before, beat, lives = earlier.get(owner), beats.get(owner), owner in heard
            if before is None:
                self._seen[owner] = beat, seen, last if lives else -math.inf
            elif lives:
                self._seen[owner] = before[0], seen, last
            else:
                changed = beat, seen, before[2] if owner in self._unread else last  # it may have changed long ago
                self._seen[owner] = before if before[0] == beat else changed
        self._unread = heard

    def beat(self, owner: str) -> str | None:
        """This owner's last beat that was seen; None if there is none."""
        return self._seen.get(owner, _UNSEEN)[0]

    def silence(self, owner: str, now: float) -> float:
        """Seconds for which this owner's beat has not changed; 0 for an owner not watched yet."""
        return now - self._seen[owner][1] if owner in self._seen else 0.0

    def proven_alive(self, owner: str, *, since: float) -> bool:
        """Whether this owner is known to have shown a sign of life after this moment."""
        return self._seen.get(owner, _UNSEEN)[2] >= since


class OwnerMonitor:
    """The owners of one study's running trials, as one observer sees them."""

    def __init__(self) -> None:
        self.detector = FailureDetector()
        self.next_look = 0.0
        self._leases: dict[int, tuple[int, int, float, float]] = {}
        """For each trial that ran at the last look: its epoch, how many reports and metrics it had, when this lease was
        first seen, and when it was last seen to progress."""
        self._rests: dict[int, float] = {}
        self._heard_to: int | None = None
        self._looked_at: int | None = None
        """The lsn at the last call of `heard`, and at the last one that led to a look, since reading beats may fail."""

    def heard(self, state: State, watched: Collection[str]) -> set[str]:
        """The watched owners that have written to the log since the last look; their beats need not be read."""
        before, self._heard_to = self._looked_at, state.lsn
        return {owner for owner in watched if before is not None and state.has_written(owner, since=before)}

    def watched(self, state: State, spare: Collection[str]) -> list[str]:
        """The owners to watch: all if they are few or this peer runs no trial, otherwise the next eight in a ring.

        If every peer watched every other, a thousand peers would read a million beats each round. The ring orders
        owners by their random uuids, so each is watched by the eight before it. If these die too, their trials are
        reclaimed by the owners before them, and the ring closes.
        """
        running = {state.trials[number].owner for number in list(state.running)}
        others = sorted(owner for owner in running if owner is not None and owner not in spare)
        mine = [owner for owner in spare if owner in running]
        if len(others) <= _RING or not mine:
            return others
        place = bisect.bisect(others, mine[0])
        return (others[place:] + others[:place])[:_RING]

    def look(
        self,
        state: State,
        beats: Mapping[str, str],
        watched: Collection[str],
        *,
        spare: Collection[str],
        now: float,
        read: float | None = None,
        heard: Collection[str] = (),
    ) -> list[TrialReclaim | TrialStop]:
        """Record the beats of the watched owners that were not `heard`, and return the records to write about silent
        ones.

        Trials without a report for the policy's progress timeout are asked to stop and, one timeout later, reclaimed.
        """
        ttl, timeout = state.policy.ttl, state.policy.progress_timeout
        self.next_look, self._looked_at = now + ttl / _LOOKS_PER_TTL, self._heard_to
        self.detector.look(beats, watched, now, read=read, heard=heard, gap=ttl * _LONGEST_GAP)
        before, self._leases = self._leases, {}
        due: list[TrialReclaim | TrialStop] = []
        for trial in [state.trials[number] for number in list(state.running)]:
            number, owner, epoch, said = trial.number, trial.owner, trial.epoch, _said(state, trial)
            _, _, first, moved = known = before.get(number, _NO_LEASE)
            if (epoch, said) != known[:2]:
                first, moved = first if epoch == known[0] else now, now
            self._leases[number] = epoch, said, first, moved
            silence = 0.0 if owner is None or owner in spare else self.detector.silence(owner, now)
            if owner is not None and silence >= ttl_of(state, owner):
                # how long the owner was seen alive in this lease, and half a beat more
                lived = round((now - silence - first + ttl_of(state, owner) / BEATS_PER_TTL / 2) * 1e6)
                due.append(TrialReclaim(number, epoch, lived=max(lived, 0) or None, seen=self._looked_at))
            elif timeout is not None and now - moved >= timeout * (1 if trial.stop is None else 2):
                kind = TrialStop if trial.stop is None else TrialReclaim
                due.append(kind(number, epoch, f"no report for {now - moved:.0f} s"))
        return due

    def still_due(
        self, state: State, due: Iterable[TrialReclaim | TrialStop], beats: Mapping[str, str]
    ) -> list[TrialReclaim | TrialStop]:
        """The records in `due` still to be written after the log and the beats of these trials' owners were read
        again.
        """
        back = {one for one, beat in beats.items() if beat != self.detector.beat(one)}
        found = []
        for one in due:
            trial = state.trials[one.number] if one.number in state.running else None
            if trial is None or (trial.epoch, _said(state, trial)) != self._leases[one.number][:2]:
                continue
            seen = one.seen if isinstance(one, TrialReclaim) else None
            if seen is None or (trial.owner not in back and not state.has_written(trial.owner, since=seen)):
                found.append(one)
        return found

    def resting(self, state: State, now: float) -> tuple[int, ...]:
        """WAITING retries that this peer does not take yet: after a trial was lost twice, its retries must rest first.

        The second retry waits one ttl after it was first seen, and each later one twice as long as the one before.
        """
        resting = []
        for number in list(state.waiting):
            attempt = state.trials[number].attempt
            if attempt > _UNRESTED:
                since = self._rests.setdefault(number, now)
                if now - since < state.policy.ttl * 2.0 ** min(attempt - _UNRESTED - 1, _LONGEST_REST):
                    resting.append(number)
        return tuple(resting)

    def doubted_until(self, state: State, owner: str, *, since: float, now: float) -> float | None:
        """The latest time by which this owner will have shown a sign of life after `since`, or may lose its trials.

        None if the owner has already shown a sign of life.
        """
        if self.detector.proven_alive(owner, since=since):
            return None
        silent_since = min(since, now - self.detector.silence(owner, now))
        return silent_since + ttl_of(state, owner) * (1.0 + BEATS_PER_TTL / _LOOKS_PER_TTL)
