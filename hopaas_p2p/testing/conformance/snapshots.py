"""Snapshots: the newest is found, older ones behind it, and none hides another."""

from __future__ import annotations

import random

from hopaas_p2p.stores.base import Log, Store
from hopaas_p2p.testing.commits import append_many, everything, together
from hopaas_p2p.testing.conformance.base import Conformance


class Snapshots(Conformance):
    """Any bytes may be one: what they mean is the peers' affair."""

    def test_the_newest_snapshot_is_found_by_everyone(self, store: Store, log: Log) -> None:
        append_many(log, "a", 3)
        for lsn in (1, 2, 3):
            log.put_snapshot(lsn, b"snapshot %d" % lsn)
        assert log.newest_snapshot() == (3, b"snapshot 3")
        assert self.reopen(store).log("study-1").newest_snapshot() == (3, b"snapshot 3")

    def test_a_snapshot_that_comes_late_does_not_hide_a_newer_one(self, log: Log) -> None:
        append_many(log, "a", 8)
        for lsn in (8, 2, 7, 1, 3):
            log.put_snapshot(lsn, b"%d" % lsn)
        assert log.newest_snapshot() == (8, b"8")

    def test_of_two_snapshots_of_one_lsn_any_may_stay(self, log: Log) -> None:
        append_many(log, "a", 1)
        log.put_snapshot(1, b"first")
        log.put_snapshot(1, b"second")
        assert log.newest_snapshot() in ((1, b"first"), (1, b"second"))

    def test_behind_a_snapshot_that_cannot_be_read_an_older_one_is_found_or_all_can_be_replayed(self, log: Log) -> None:
        append_many(log, "a", 5)
        for lsn in (2, 4, 5):
            log.put_snapshot(lsn, b"%d" % lsn)
        older = log.newest_snapshot(before=5)
        if older is None:
            assert everything(log)[0].lsn == 1
            return
        assert older == (4, b"4")
        assert log.newest_snapshot(before=4) == (2, b"2")
        assert log.newest_snapshot(before=2) is None

    def test_many_snapshots_may_be_written(self, log: Log) -> None:
        append_many(log, "a", 10)
        for lsn in range(1, 11):
            log.put_snapshot(lsn, b"%d" % lsn)
        assert log.newest_snapshot() == (10, b"10")

    def test_any_bytes_are_a_snapshot(self, log: Log) -> None:
        append_many(log, "a", 3)
        several = (bytes(range(256)), random.Random(1).randbytes(3 << 20), b"not a snapshot at all")
        for lsn, data in enumerate(several, 1):
            log.put_snapshot(lsn, data)
            assert log.newest_snapshot() == (lsn, data)

    def test_snapshots_written_at_once_leave_a_whole_one(self, store: Store) -> None:
        append_many(store.log("study-1"), "a", 4)
        logs = [self.reopen(store).log("study-1") for _ in range(self.racers)]
        data = b"the same everywhere " * 10_000
        together(*[lambda log=log: log.put_snapshot(4, data) for log in logs])
        assert store.log("study-1").newest_snapshot() == (4, data)
