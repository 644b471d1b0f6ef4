"""A log alone, beside others, and at its end."""

from __future__ import annotations

import contextlib
import random
import zlib

import pytest

from hopaas_p2p.core import codec
from hopaas_p2p.errors import StudyDeleted
from hopaas_p2p.stores.base import Log, Outgoing, Receipt, Store
from hopaas_p2p.stores.url import redacted
from hopaas_p2p.testing.commits import append, append_many, everything, outgoing, sealed, together
from hopaas_p2p.testing.conformance.base import Conformance


class Logs(Conformance):
    """Order, repetition, bytes, and what is left when a log is destroyed."""

    def test_an_empty_log_has_nothing(self, log: Log) -> None:
        assert log.exchange(None, 0) == Receipt([])
        assert log.newest_snapshot() is None
        assert not log.changed(0)

    def test_lsns_are_one_two_three(self, log: Log) -> None:
        assert append_many(log, "a", 12) == list(range(1, 13))
        assert [entry.lsn for entry in everything(log)] == list(range(1, 13))

    def test_a_commits_own_entry_comes_back_as_it_was_sent(self, log: Log) -> None:
        commit = outgoing("a")
        (entry,) = log.exchange(commit, 0).entries
        assert (entry.lsn, entry.payload) == (1, commit.payload)
        assert entry.role in ("owner", "worker")

    def test_a_read_appends_nothing_and_brings_what_comes_after_since(self, log: Log) -> None:
        append_many(log, "a", 5)
        for since in range(6):
            assert [entry.lsn for entry in everything(log, since)] == list(range(since + 1, 6))

    def test_an_append_brings_the_commits_of_others_that_came_before(self, store: Store, log: Log) -> None:
        append_many(log, "a", 3)
        other = self.reopen(store).log("study-1")
        entries = append(other, outgoing("b"), 1).entries
        assert [entry.lsn for entry in entries] == [2, 3, 4]
        assert entries[-1].payload == outgoing("b").payload

    def test_the_same_bytes_again_are_the_same_commit(self, log: Log) -> None:
        append(log, outgoing("a"))
        receipt = append(log, outgoing("a"))
        assert [entry.lsn for entry in receipt.entries] == [1]
        assert len(everything(log)) == 1

    def test_the_same_bytes_again_are_the_same_commit_though_others_came_in_between(
        self, store: Store, log: Log
    ) -> None:
        append(log, outgoing("a"))
        append(self.reopen(store).log("study-1"), outgoing("b"))
        receipt = append(log, outgoing("a"), 0)
        assert [entry.lsn for entry in receipt.entries][-1] == 2
        assert len(everything(log)) == 2

    def test_the_same_bytes_again_through_another_handle_are_the_same_commit(self, store: Store, log: Log) -> None:
        append(log, outgoing("a"))
        append(self.reopen(store).log("study-1"), outgoing("a"))
        assert len(everything(log)) == 1

    def test_the_same_bytes_sent_twice_at_once_are_the_same_commit(self, store: Store) -> None:
        logs = [self.reopen(store).log("study-1") for _ in range(self.racers)]
        for number in range(5):
            commit = outgoing(f"commit-{number}")
            together(*[lambda log=log, commit=commit: append(log, commit) for log in logs])
        assert len(everything(store.log("study-1"))) == 5

    def test_any_bytes_come_back_as_they_were(self, store: Store, log: Log) -> None:
        bodies = [
            bytes(range(256)),
            b"\n",
            b"\0" * 100,
            b"\n00000004 abcd\n",
            b"\r\n",
            b"\xff\xfe",
            b"1",
            b"x" * 70_000,
        ]
        payloads = [sealed(body) for body in bodies]
        for payload in payloads:
            append(log, Outgoing(str(zlib.crc32(payload)), payload))
        assert [entry.payload for entry in everything(self.reopen(store).log("study-1"))] == payloads

    def test_the_largest_commit_is_taken(self, store: Store, log: Log) -> None:
        body = random.Random(0).randbytes(codec.MAX_BYTES - 4)
        append(log, Outgoing("large", sealed(body)))
        assert everything(self.reopen(store).log("study-1"))[0].payload == sealed(body)

    def test_what_is_more_than_one_receipt_holds_is_fetched_bit_by_bit(self, store: Store, log: Log) -> None:
        names = [f"large-{i}" for i in range(12)]
        since = 0
        for name in names:
            since = append(log, outgoing(name, 1 << 20), since).entries[-1].lsn
        found = everything(self.reopen(store).log("study-1"))
        assert [entry.lsn for entry in found] == list(range(1, 13))
        assert [entry.payload for entry in found] == [outgoing(name, 1 << 20).payload for name in names]

    def test_a_commit_behind_a_long_backlog_is_appended_once(self, store: Store, log: Log) -> None:
        since = 0
        for i in range(12):
            since = append(log, outgoing(f"large-{i}", 1 << 20), since).entries[-1].lsn
        commit = outgoing("late")
        append(self.reopen(store).log("study-1"), commit, 0)
        found = everything(log)
        assert [entry.lsn for entry in found] == list(range(1, 14))
        assert [entry.payload for entry in found].count(commit.payload) == 1

    def test_a_long_log_is_read_whole_from_anywhere(self, store: Store, log: Log) -> None:
        append_many(log, "a", 3 * self.commits * self.racers)
        expected = [outgoing(f"a-{i}").payload for i in range(3 * self.commits * self.racers)]
        other = self.reopen(store).log("study-1")
        for since in (0, 1, len(expected) // 2, len(expected) - 1, len(expected), 7):
            assert [entry.payload for entry in everything(other, since)] == expected[since:]

    def test_a_change_is_noticed_or_not_ruled_out(self, store: Store, log: Log) -> None:
        since = append(log, outgoing("a")).entries[-1].lsn
        assert not log.changed(since)
        append(self.reopen(store).log("study-1"), outgoing("b"), since)
        assert log.changed(since) in (True, None)
        assert [entry.lsn for entry in everything(log, since)] == [2]
        assert not log.changed(2)

    # --- beside others ---

    def test_logs_know_nothing_of_each_other(self, store: Store) -> None:
        one, two, catalog = store.log("study-1"), store.log("study-2"), store.catalog()
        append_many(one, "a", 3)
        append_many(two, "b", 2)
        append_many(catalog, "c", 1)
        one.put_snapshot(3, b"one")
        assert [len(everything(log)) for log in (one, two, catalog)] == [3, 2, 1]
        assert two.newest_snapshot() is None

    def test_the_same_bytes_in_two_logs_are_two_commits(self, store: Store) -> None:
        for name in ("study-1", "study-2"):
            append(store.log(name), outgoing("a"))
        assert [len(everything(store.log(name))) for name in ("study-1", "study-2")] == [1, 1]

    # --- the end ---

    def test_a_destroyed_log_is_gone_with_its_snapshots_and_no_other_is(self, store: Store, log: Log) -> None:
        append_many(log, "a", 3)
        log.put_snapshot(3, b"snapshot")
        append_many(store.log("study-2"), "b", 2)
        log.destroy()
        fresh = self.reopen(store).log("study-1")
        with contextlib.suppress(StudyDeleted):
            assert everything(fresh) == []
            assert fresh.newest_snapshot() is None
        assert len(everything(store.log("study-2"))) == 2

    def test_a_zombie_of_a_destroyed_log_is_told_and_writes_nothing(self, store: Store) -> None:
        zombie = self.reopen(store).log("study-1")
        append_many(zombie, "a", 3)
        store.log("study-1").destroy()
        for commit in (outgoing("b"), None, outgoing("b")):
            with pytest.raises(StudyDeleted):
                zombie.exchange(commit, 3)
        with contextlib.suppress(StudyDeleted):
            assert everything(self.reopen(store).log("study-1")) == []

    def test_a_log_may_be_destroyed_twice(self, store: Store, log: Log) -> None:
        append_many(log, "a", 1)
        log.destroy()
        log.destroy()
        self.reopen(store).log("study-1").destroy()

    def test_a_closed_store_may_be_used_again(self, store: Store, log: Log) -> None:
        append(log, outgoing("a"))
        store.close()
        append(log, outgoing("b"), 1)
        store.close()
        assert len(everything(store.log("study-1"))) == 2

    def test_the_url_opens_the_same_store_and_holds_no_secret(self, store: Store, log: Log) -> None:
        append(log, outgoing("a"))
        assert redacted(store.url) == store.url
        assert len(everything(self.reopen(store).log("study-1"))) == 1
        assert self.reopen(store).url == store.url
