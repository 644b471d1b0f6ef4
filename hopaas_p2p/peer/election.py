"""Elects one peer to do something for all of them, such as exporting to a tracker.

An attribute of the study names the leader. Each candidate writes its own name into it (`core.apply` ignores any other),
and the last write in the log counts. A candidate stands if there is no leader, or if the leader has been silent for the
study's ttl. During a change of leader, two peers may act, so their action must be safe to do twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from hopaas_p2p.core.leases import FailureDetector
from hopaas_p2p.core.records import StudySet
from hopaas_p2p.core.state import State
from hopaas_p2p.peer.peer import Peer


class Election:
    """One election, as one candidate sees it.

    Args:
        peer: the peer of this process.
        look: returns the study's state, as fresh as reads promise.
        say: writes a record to the study.
        key: the attribute, a JSON object. Besides the leader (`peer`), it holds what a leader leaves for its
            successors.

    """

    def __init__(self, peer: Peer, look: Callable[[], State], say: Callable[[StudySet], object], key: str) -> None:
        self._peer, self._look, self._say, self._key = peer, look, say, key
        self._detector = FailureDetector()

    @property
    def said(self) -> dict[str, Any]:
        """The attribute, as fresh as `look` returns it."""
        found: dict[str, Any] = json.loads(self._look().system.get(self._key, "{}"))
        return found

    def say(self, **changes: object) -> None:
        """Write these changes into the attribute. Raises like a write."""
        self._say(StudySet(system={self._key: json.dumps(self.said | changes)}))

    @property
    def won(self) -> bool:
        """Whether this candidate leads, as far as known."""
        return self.said.get("peer") == self._peer.uuid  # the uuid changes if two processes shared a name

    def stand(self) -> bool:
        """Take over if there is no leader or it is silent; return whether this candidate leads. Raises like a write."""
        holder = self.said.get("peer")
        if holder is not None and not self.won:
            now = time.monotonic()
            self._detector.look(self._peer.store.beats([holder]), [holder], now)
            if self._detector.silence(holder, now) < self._look().policy.ttl:
                return False
        if not self.won:
            self.say(peer=self._peer.uuid)
        return self.won

    def resign(self) -> None:
        """Step down, if this candidate leads, so that another need not wait for its silence."""
        if self.won:
            self.say(peer=None)
