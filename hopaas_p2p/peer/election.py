"""One of all peers does something for all of them: exports to a tracker, posts alerts.

The leader is an attribute of the study, which the candidates write: the last write in the log counts. A candidate
stands if there is no leader or the leader was silent for its ttl; it then waits a moment and checks that it is still
the leader. In the moment of a change two peers may act, so what they do must be safe to do twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hopaas_p2p.core.leases import FailureDetector
from hopaas_p2p.stores.base import Store


class Election:
    """One election, as one candidate sees it.

    Args:
        store: where signs of life are.
        holder: gives the present leader as far as the log was read; empty if there is none.
        appoint: writes this name, or an empty one, into the study.
        ttl: seconds of silence after which this holder may be replaced.
        settle: seconds in which others may stand at the same time.

    """

    def __init__(
        self,
        store: Store,
        *,
        holder: Callable[[], str],
        appoint: Callable[[str], None],
        ttl: Callable[[str], float],
        settle: float = 0.0,
    ) -> None:
        self._store, self._holder, self._appoint, self._ttl, self._settle = store, holder, appoint, ttl, settle
        self._detector = FailureDetector()

    def stand(self, candidate: str) -> bool:
        """Whether this candidate leads; it takes over if there is no leader. Raises what writing raises."""
        holder = self._holder()
        if holder == candidate:
            return True
        if holder:
            now = time.monotonic()
            self._detector.look(self._store.beats([holder]), [holder], now)
            if self._detector.silence(holder, now) < self._ttl(holder):
                return False
        self._appoint(candidate)
        if self._settle:
            time.sleep(self._settle)
        return self._holder() == candidate

    def resign(self, candidate: str) -> None:
        """Step down, if this candidate leads, so that another need not wait until it is silent."""
        if self._holder() == candidate:
            self._appoint("")
