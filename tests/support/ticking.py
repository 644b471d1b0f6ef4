"""What a peer's threads do, done in the caller's: for tests with a clock of their own."""

from __future__ import annotations

import time

from hopaas_p2p.peer.jobs import AFTER_TROUBLE
from hopaas_p2p.peer.peer import Peer


def tick(peer: Peer) -> float:
    """Run each job of the peer once, unless it runs in a thread; return the seconds until one is due again."""
    peer.check_process()
    jobs, pauses = peer.jobs, [AFTER_TROUBLE]
    for job in jobs._jobs.copy():
        with jobs._changed:
            if job.running:
                continue
            job.running, job.due = True, float("inf")
        pause = 0.0
        try:
            pause = job.run(peer)
        finally:
            with jobs._changed:
                job.running, job.due = False, min(job.due, time.monotonic() + pause)
        pauses.append(pause)
    return min(pauses)
