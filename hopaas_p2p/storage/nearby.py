"""Which paused trials a peer leaves for a moment to the site that has their checkpoints on a disk near its jobs."""

from __future__ import annotations

from typing import Final

from hopaas_p2p.core.admission import Continue, next_start
from hopaas_p2p.core.rungs import Rungs
from hopaas_p2p.core.state import State
from hopaas_p2p.runtime.checkpoint_cache import HAS_CACHE

_SHARE: Final = 0.05
"""Of the time that the paused trial ran: for so long it is left to its site."""
_LONGEST: Final = 60.0  # seconds
_MOST: Final = 8
"""Paused trials that are left at once."""


class DelayScheduling:
    """What one peer leaves to others, and since when. Not thread-safe.

    A trial is left only while there is a new configuration to begin instead, and while its site runs a trial, so
    nobody waits for it. With a bound on checkpoints, none may begin at times: then nothing is left. It goes by this
    peer's clock alone. (Delay scheduling: Zaharia et al., EuroSys 2010.)
    """

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def left(self, state: State, peer: str, now: float, resting: tuple[int, ...] = ()) -> frozenset[int]:
        """The promoted trials that this peer does not take yet; nor does it take those that are `resting`."""
        here = state.peers.get(peer, {}).get("site")
        before, self._since = self._since, {}
        left: set[int] = set()
        policy = state.configurations.policy
        if not isinstance(policy, Rungs) or policy.checkpoint_mb or here is None or not state.has_room():
            return frozenset()
        while len(left) < _MOST and isinstance(found := next_start(state, peer, skip={*resting, *left}), Continue):
            trial = state.trials[found.number]
            about = state.peers.get(trial.owner or "", {})
            site = about.get("site")
            if HAS_CACHE not in about or site == here or not _runs_at(state, site):
                break
            since = self._since[found.number] = before.get(found.number, now)
            ran = ((trial.end or 0) - (trial.start or 0)) / 1e6
            if not 0 <= now - since < min(_SHARE * ran, _LONGEST):
                break
            left.add(found.number)
        return frozenset(left)


def _runs_at(state: State, site: str | None) -> bool:
    owners = (state.trials[number].owner or "" for number in state.running)
    return any(state.peers.get(owner, {}).get("site") == site for owner in owners)
