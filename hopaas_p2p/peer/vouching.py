"""Checks workers' snapshots: a peer of another author compares each with the log.

A joiner trusts a snapshot as it trusts the log, so a forged one would mislead every peer that joins from it. A peer
whose turn it is to write a snapshot therefore first checks other authors' snapshots that no peer has vouched for. The
peer loads such a snapshot, applies the commits from there up to its own position, and compares the two states. The
store keeps the result.
"""

from __future__ import annotations

from typing import Final

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.codec import following
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.stores.base import Doubtful, Log, read_all, snapshot_step

_REACH: Final = 8
"""How many snapshot steps to look back. An older snapshot saves a joiner little, and costs this peer a long replay."""
_AT_ONCE: Final = 8
"""Forged snapshots that are skipped per turn."""


def judge_doubtful(log: Log, lsn: int, data: bytes) -> None:
    """Vouch for another author's snapshot that agrees with ours, and reject those that do not.

    Raises like `exchange`.
    """
    for _ in range(_AT_ONCE):
        found = log.doubtful_snapshot(max(0, lsn - _REACH * snapshot_step(lsn)), lsn)
        if found is None:
            return
        same = _agrees(log, found, lsn, data)
        log.judge_snapshot(found, same=same)
        if same:
            return
        LOG.warning(
            "the snapshot of %s at commit %d differs from the log, and no peer uses it; run hopaas-p2p doctor URL",
            found.author,
            found.lsn,
        )


def _agrees(log: Log, found: Doubtful, lsn: int, data: bytes) -> bool:
    """Whether the snapshot that was found, and the commits after it, lead to ours at this lsn."""
    try:
        theirs = snapshot.load(found.data)
        if theirs.lsn != found.lsn:
            return False
        for entry in read_all(log, found.lsn):
            if entry.lsn > lsn:
                break
            before = theirs.sum
            if before is None or entry.before not in (None, before):
                return False  # the commit does not follow what the state has read
            apply(theirs, entry.lsn, codec.decode(entry.payload), entry.stamp)
            theirs.sum = following(before, entry.payload)
        if snapshot.dump(theirs) == data:
            return True
        ours = snapshot.load(data)  # another version of zlib packs the same trials into different bytes
        return (theirs.lsn, theirs.sum) == (ours.lsn, ours.sum) and snapshot.digest(theirs) == snapshot.digest(ours)
    except HopaasError:
        raise
    except Exception:  # noqa: BLE001  # a state that no log has may accept no commit
        return False
