"""Waits for a thread that talks to the store, until the work is done or the time is up."""

from __future__ import annotations

import contextlib
import math
import time
from queue import Empty, SimpleQueue
from typing import Any, Final

from hopaas_p2p.errors import HopaasError, StoreUnreachable
from hopaas_p2p.net.backoff import Backoff
from hopaas_p2p.peer.outbox import PendingCommit
from hopaas_p2p.runtime.logs import LOG

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0
_WARN_AFTER: Final = 3.0  # seconds for which a caller waits before the first warning
_WARN_EVERY: Final = 60.0
_LOOK: Final = 1.0  # seconds after which a caller in a hurry checks again whether the store is silent


class Caller:
    """A caller that waits for a thread: until `pending` is decided or, without it, until the thread has an answer.

    Args:
        peer: the `peer.peer.Peer` whose threads do the work.
        within: seconds from `began` during which failed attempts are repeated.
        began: when the caller began, by the peer's clock.
        pending: the records that wait for verdicts.
        brief: whether a caller in a hurry also gives up when only this call, and no exchange, is unanswered.

    """

    __slots__ = ("_began", "_brief", "_peer", "_said", "_warned", "_within", "backoff", "pending")

    def __init__(
        self, peer: Any, within: float, began: float, pending: PendingCommit | None = None, *, brief: bool = False
    ) -> None:
        self._peer, self._within, self._began, self.pending, self._brief = peer, within, began, pending, brief
        self._warned = -math.inf
        self.backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE, uniform=peer.jitter.uniform)
        """The pauses between attempts made for this caller."""
        self._said: SimpleQueue[tuple[bool, BaseException | None]] = SimpleQueue()

    def tell(self, error: BaseException | None = None, *, done: bool = True) -> None:
        """Report that the work is `done`, or that an attempt failed; without either, make the caller check whether to
        keep waiting. Called by the thread, or from a signal handler.
        """
        self._said.put((done, error))

    def wait(self) -> None:
        """Return when the work is done; raise its error, or that of the last attempt when the time is up."""
        peer, error = self._peer, None
        peer.callers.add(self)
        try:
            while True:
                done, failed = False, None
                with contextlib.suppress(Empty):
                    done, failed = self._said.get(timeout=_LOOK if peer.hurried else _WARN_AFTER)
                if done and failed is None:
                    return
                if isinstance(failed, StoreUnreachable):
                    error = failed
                elif failed is not None:
                    raise failed.raised_here() if isinstance(failed, HopaasError) else failed
                self._check(error)
        finally:
            peer.callers.discard(self)

    def sleep_after(self, error: StoreUnreachable) -> None:
        """Pause before another attempt in this thread; raises the error when the time is up."""
        self._check(error)
        left = self._began + self._within - self._peer.clock()
        time.sleep(max(0.0, min(self.backoff.pause(), left)))

    def _check(self, error: StoreUnreachable | None) -> None:
        """Raise if the time is up; warn from time to time."""
        peer, began = self._peer, self._began
        waited = peer.clock() - began
        over = error is not None and (waited >= self._within or peer.closed or peer.has_given_up(silent_since=began))
        silent_since = min(peer.silent_since, began if self._brief else math.inf)
        if over or peer.has_given_up(silent_since=silent_since) or (peer.closed and not peer.jobs.allowed):
            raise (error or StoreUnreachable("the store does not answer.")).raised_here()
        if error is not None and waited >= _WARN_AFTER and waited - self._warned >= _WARN_EVERY:
            self._warned = waited
            limit = "until the store answers; Ctrl-C stops waiting, and nothing is lost"
            limit = f"for {self._within:.0f} s in all" if self._within < math.inf else limit
            LOG.warning("still trying, %s: %s", limit, error)
