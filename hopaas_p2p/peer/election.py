"""One of all peers does something for all of them: exports to a tracker, posts alerts.

The leader is named by an attribute of the study, which the candidates write: the last write in the log counts. A
candidate stands if there is no leader or the leader was silent for its ttl; it then waits a moment and checks that it
is still the leader. In the moment of a change two peers may act, so what they do must be safe to do twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from hopaas_p2p.core.leases import FailureDetector, ttl_of
from hopaas_p2p.core.records import StudySet
from hopaas_p2p.core.state import State
from hopaas_p2p.peer.peer import Peer


class Election:
    """One election, as one candidate sees it.

    Args:
        peer: of this process.
        look: gives the study, as fresh as a read may expect.
        say: writes to the study.
        key: the attribute, an object of JSON. Beside the leader (`peer`) it holds what leaders leave each other.
        candidate: who stands here, a name that beats; by default this process's peer.
        settle: seconds in which others may stand at the same time.

    """

    def __init__(
        self,
        peer: Peer,
        look: Callable[[], State],
        say: Callable[[StudySet], object],
        key: str,
        *,
        candidate: str = "",
        settle: float = 0.0,
    ) -> None:
        self._peer, self._look, self._say, self._key = peer, look, say, key
        self._named, self._settle = candidate, settle
        self._detector = FailureDetector()

    @property
    def said(self) -> dict[str, Any]:
        """The attribute, as far as the log was read."""
        found: dict[str, Any] = json.loads(self._look().system.get(self._key, "{}"))
        return found

    def say(self, **changes: object) -> None:
        """Write these changes into the attribute. Raises what writing raises."""
        self._say(StudySet(system={self._key: json.dumps(self.said | changes)}))

    @property
    def holder(self) -> str:
        """The present leader, as far as the log was read; empty if there is none."""
        found = self.said.get("peer")
        return found if isinstance(found, str) else ""

    @property
    def _candidate(self) -> str:
        return self._named or self._peer.uuid  # which changes where two processes had one

    @property
    def won(self) -> bool:
        """Whether this candidate leads, as far as the log was read."""
        return self.holder == self._candidate

    def stand(self) -> bool:
        """Whether this candidate leads; it takes over if there is no leader. Raises what writing raises."""
        holder = self.holder
        if holder and not self.won:
            now = time.monotonic()
            self._detector.look(self._peer.store.beats([holder]), [holder], now)
            if self._detector.silence(holder, now) < ttl_of(self._look(), holder):
                return False
        if not self.won:
            self.say(peer=self._candidate)
            if self._settle:
                time.sleep(self._settle)
        return self.won

    def resign(self) -> None:
        """Step down, if this candidate leads, so that another need not wait until it is silent."""
        if self.won:
            self.say(peer=None)
