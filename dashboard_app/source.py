"""One study as the feed knows it: its replica, the newest frame, and what was seen of its peers."""

from __future__ import annotations

import threading

import numpy as np

from dashboard_app.frames import Frame
from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.core.leases import Watch
from hopaas_p2p.core.state import State
from hopaas_p2p.peer.replica import Replica


class Source:
    """One study's replica, and what was last seen of it."""

    def __init__(self, listing: Listing, replica: Replica[State]) -> None:
        self.listing = listing
        self.replica = replica
        self.frame: Frame | None = None
        self.wanted_until = 0.0
        self.due = 0.0
        self.pulled = -float("inf")
        self.trouble: str | None = None
        self.deleted = False
        self.watch = Watch()
        self.beats_due = 0.0
        self.first_sight = threading.Event()
        self.latest: dict[str, float] = {}
        self.clocks: dict[str, float] = {}

    def note_clocks(self, frame: Frame, wall: float) -> None:
        """Compare what peers just said of the time with this machine's clock."""
        known = bool(self.latest)
        for owner, at in _latest(frame).items():
            if at > self.latest.get(owner, -np.inf):
                if known:
                    behind = wall - at
                    self.clocks[owner] = min(behind, self.clocks.get(owner, behind))
                self.latest[owner] = at


def _latest(frame: Frame) -> dict[str, float]:
    """The last moment that each peer told of, by its own clock."""
    columns = frame.columns
    newest = np.full(len(columns.owners), -np.inf)
    ran = columns.owner >= 0
    for times in (columns.start, columns.end):
        known = ran & np.isfinite(times)
        np.maximum.at(newest, columns.owner[known], times[known])
    return {owner: float(at) for owner, at in zip(columns.owners, newest, strict=True) if np.isfinite(at)}
