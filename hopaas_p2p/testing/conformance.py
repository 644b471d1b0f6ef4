"""The contract of a store, as tests that any store can run.

    class TestMine(StoreConformance, AcrossProcesses):
        @pytest.fixture
        def store(self, tmp_path):
            return MyStore(tmp_path)

`reopen` opens the same place a second time, as another process would. Override it if the URL alone is not enough to
open the store. Omit `AcrossProcesses` for a store that exists in one process only. Add `PiggybackedBeats` if an
exchange carries a beat at no extra cost.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from msgspec.structs import replace

from hopaas_p2p.core import codec
from hopaas_p2p.errors import BrokenChain, StudyDeleted
from hopaas_p2p.open import open_store, redacted
from hopaas_p2p.stores.base import Beat, Entry, ExchangeResult, Log, Outgoing, Store
from hopaas_p2p.testing.commits import (
    TIMEOUT,
    append,
    append_many,
    chained,
    everything,
    outgoing,
    outgoing_of,
    sealed,
    study_snapshot,
    sum_of,
    together,
)

_IMPOSSIBLE = {
    "empty": "", "dot": ".", "dots": "..", "upwards": "../../v1/meta.json", "root": "/etc/passwd", "slash": "a/b",
    "long": "a" * 300, "newline": "new\nline", "nul": "nul\0", "unicode": "ünïcode", "quote": "' OR 1"
}  # fmt: skip
"""Names that no peer can have."""

__all__ = ["AcrossProcesses", "PiggybackedBeats", "StoreConformance"]


class Conformance:
    """The base of all parts of the suite, with a fresh store and `reopen` for another handle on it."""

    racers: ClassVar[int] = 4
    commits: ClassVar[int] = 25
    """The number of racers, and of commits that each racer appends. Lower them for a slow store."""

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        raise NotImplementedError("give your class a fixture `store`, a fresh and empty store for each test")

    def reopen(self, store: Store) -> Store:
        """Another store object for the same place."""
        return open_store(store.url)

    @pytest.fixture
    def log(self, store: Store) -> Log:
        return store.log("study-1")


class StoreConformance(Conformance):
    """The contract of `hopaas_p2p.stores.base`, one test per promise."""

    # --- one log ---

    def test_an_empty_log_has_nothing(self, log: Log) -> None:
        assert log.exchange(None, 0) == ExchangeResult([])
        assert log.newest_snapshot() is None
        assert not log.changed(0)

    def test_lsns_are_one_two_three(self, log: Log) -> None:
        assert append_many(log, "a", 12) == list(range(1, 13))
        assert [entry.lsn for entry in everything(log)] == list(range(1, 13))

    def test_a_commits_own_entry_comes_back_as_it_was_sent(self, log: Log) -> None:
        commit = outgoing("a")
        (entry,) = log.exchange(commit, 0).entries
        assert (entry.lsn, entry.payload) == (1, commit.payload)
        assert entry.stamp.role in ("owner", "worker")

    def test_a_read_appends_nothing_and_brings_what_comes_after_since(self, log: Log) -> None:
        append_many(log, "a", 5)
        for since in range(6):
            assert [entry.lsn for entry in everything(log, since)] == list(range(since + 1, 6))

    def test_an_append_brings_the_commits_of_others_that_came_before(self, store: Store, log: Log) -> None:
        append_many(log, "a", 3)
        entries = append(self.reopen(store).log("study-1"), outgoing("b"), 1).entries
        assert [entry.lsn for entry in entries] == [2, 3, 4]
        assert entries[-1].payload == outgoing("b").payload

    def test_the_same_bytes_again_are_the_same_commit_through_any_handle(self, store: Store, log: Log) -> None:
        append(log, outgoing("a"))
        for handle in (log, self.reopen(store).log("study-1")):
            assert [entry.lsn for entry in append(handle, outgoing("a")).entries] == [1]
        assert len(everything(log)) == 1

    def test_the_same_bytes_again_are_the_same_commit_though_others_came_in_between(
        self, store: Store, log: Log
    ) -> None:
        append(log, outgoing("a"))
        append(self.reopen(store).log("study-1"), outgoing("b"))
        assert append(log, outgoing("a"), 0).entries[-1].lsn == 2
        assert len(everything(log)) == 2

    def test_the_same_bytes_sent_twice_at_once_are_the_same_commit(self, store: Store) -> None:
        logs = [self.reopen(store).log("study-1") for _ in range(self.racers)]
        for number in range(5):
            commit = outgoing(f"commit-{number}")
            together(*[lambda log=log, commit=commit: append(log, commit) for log in logs])
        assert len(everything(store.log("study-1"))) == 5

    def test_any_bytes_come_back_as_they_were(self, store: Store, log: Log) -> None:
        lines = (b"\n", b"\r\n", b"\n00000004 abcd\n")
        payloads = [*map(sealed, (bytes(range(256)), *lines, b"\0" * 100, b"\xff\xfe", b"1", b"x" * 70_000))]
        for payload in payloads:
            append(log, Outgoing(str(zlib.crc32(payload)), payload))
        assert [entry.payload for entry in everything(self.reopen(store).log("study-1"))] == payloads

    def test_the_largest_commit_is_taken(self, store: Store, log: Log) -> None:
        body = random.Random(0).randbytes(codec.MAX_BYTES - 4)
        append(log, Outgoing("large", sealed(body)))
        assert everything(self.reopen(store).log("study-1"))[0].payload == sealed(body)

    def test_a_long_backlog_is_fetched_bit_by_bit_and_a_commit_behind_it_is_appended_once(
        self, store: Store, log: Log
    ) -> None:
        sent, since = [outgoing(f"large-{i}", 1 << 20) for i in range(12)], 0
        for commit in sent:
            since = append(log, commit, since).entries[-1].lsn
        append(self.reopen(store).log("study-1"), outgoing("late"), 0)
        found = everything(self.reopen(store).log("study-1"))
        assert [entry.lsn for entry in found] == list(range(1, 14))
        assert [entry.payload for entry in found] == [one.payload for one in (*sent, outgoing("late"))]

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

    # --- the chain ---

    def test_each_commit_is_kept_with_the_sum_of_the_log_before_it(self, store: Store, log: Log) -> None:
        for number in range(12):
            chained(log if number % 3 else self.reopen(store).log("study-1"), f"writer-{number}")
        found = everything(self.reopen(store).log("study-1"))
        assert [entry.before for entry in found] == [sum_of(found[:at]) for at in range(12)]

    def test_racing_handles_keep_one_chain(self, store: Store) -> None:
        logs = [self.reopen(store).log("study-1") for _ in range(self.racers)]
        together(*[lambda log=log, i=i: [chained(log, f"{i}-{n}") for n in range(5)] for i, log in enumerate(logs)])
        found = everything(self.reopen(store).log("study-1"))
        assert len(found) == 5 * self.racers
        assert [entry.before for entry in found] == [sum_of(found[:at]) for at in range(len(found))]

    def test_a_peer_that_starts_from_a_snapshot_goes_on_with_its_sum(self, store: Store, log: Log) -> None:
        for number in range(3):
            chained(log, f"writer-{number}")
        found = everything(log)
        assert chained(self.reopen(store).log("study-1"), "late", 3, sum_of(found)).before == sum_of(found)

    def test_to_a_log_of_another_sum_nothing_is_appended(self, store: Store, log: Log) -> None:
        for number in range(3):
            chained(log, f"writer-{number}")
        stranger = self.reopen(store).log("study-1")
        commit = outgoing_of("stranger", "stranger")
        with contextlib.suppress(BrokenChain):
            receipt = stranger.exchange(replace(commit, chain=1), 2)
            assert not receipt.holds(commit)
            assert receipt.more
            assert receipt.entries[0].before == sum_of(everything(log)[:2])
        assert len(everything(log)) == 3

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
        with contextlib.suppress(StudyDeleted):
            assert everything(self.reopen(store).log("study-1")) == []

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

    # --- concurrent appends through handles of one process ---

    def test_racing_handles_get_one_order_that_all_agree_on(self, store: Store) -> None:
        logs = [self.reopen(store).log("study-1") for _ in range(self.racers)]
        lsns = together(
            *[lambda log=log, i=i: append_many(log, f"racer-{i}", self.commits) for i, log in enumerate(logs)]
        )
        total = self.racers * self.commits
        assert sorted(lsn for own in lsns for lsn in own) == list(range(1, total + 1))
        assert all(own == sorted(own) for own in lsns)
        views = [everything(log) for log in [*logs, self.reopen(store).log("study-1")]]
        assert [entry.lsn for entry in views[0]] == list(range(1, total + 1))
        assert all([(e.lsn, e.payload) for e in view] == [(e.lsn, e.payload) for e in views[0]] for view in views)

    def test_what_a_reader_has_seen_never_changes_while_others_append(self, store: Store) -> None:
        logs = [self.reopen(store).log("study-1") for _ in range(2)]
        reader = self.reopen(store).log("study-1")
        done = threading.Event()
        seen: list[Entry] = []

        def read() -> None:
            while not done.is_set():
                seen.extend(everything(reader, len(seen)))

        def write() -> None:
            try:
                together(*[lambda log=log, i=i: append_many(log, f"w-{i}", self.commits) for i, log in enumerate(logs)])
            finally:
                done.set()

        together(read, write)
        seen.extend(everything(reader, len(seen)))
        final = everything(self.reopen(store).log("study-1"))
        assert [(e.lsn, e.payload) for e in seen] == [(e.lsn, e.payload) for e in final]
        assert len(final) == 2 * self.commits

    def test_two_logs_of_one_store_are_used_in_parallel(self, store: Store) -> None:
        names = [f"study-{i}" for i in range(self.racers)]
        together(*[lambda name=name: append_many(store.log(name), "a", self.commits) for name in names])
        for name in names:
            assert [e.payload for e in everything(store.log(name))] == [
                outgoing(f"a-{i}").payload for i in range(self.commits)
            ]

    # --- snapshots, which can be any bytes ---

    def test_the_newest_snapshot_is_found_by_everyone(self, store: Store, log: Log) -> None:
        append_many(log, "a", 10)
        for lsn in range(1, 11):
            log.put_snapshot(lsn, b"snapshot %d" % lsn)
        for handle in (log, self.reopen(store).log("study-1")):
            assert handle.newest_snapshot() == (10, b"snapshot 10")

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

    def test_any_bytes_are_a_snapshot(self, log: Log) -> None:
        append_many(log, "a", 3)
        several = (bytes(range(256)), random.Random(1).randbytes(3 << 20), b"not a snapshot at all")
        for lsn, data in enumerate(several, 1):
            log.put_snapshot(lsn, data)
            assert log.newest_snapshot() == (lsn, data)

    def test_a_studys_snapshot_comes_back_as_it_was_given(self, store: Store, log: Log) -> None:
        append_many(log, "a", 5)
        growing = (study_snapshot(100), study_snapshot(3000, waiting=(5,)), study_snapshot(3000), study_snapshot(5000))
        for lsn, data in enumerate(growing, 1):
            log.put_snapshot(lsn, data)
            assert log.newest_snapshot() == (lsn, data)
            assert self.reopen(store).log("study-1").newest_snapshot() == (lsn, data)

    def test_snapshots_written_at_once_leave_a_whole_one(self, store: Store) -> None:
        append_many(store.log("study-1"), "a", 4)
        logs = [self.reopen(store).log("study-1") for _ in range(self.racers)]
        data = b"the same everywhere " * 10_000
        together(*[lambda log=log: log.put_snapshot(4, data) for log in logs])
        assert store.log("study-1").newest_snapshot() == (4, data)

    # --- beats outside an exchange ---

    def test_a_beat_is_overwritten_and_seen_by_everyone(self, store: Store) -> None:
        other = self.reopen(store)
        assert other.beats(["ann"]) == {}
        for value in ("ann:1", "ann:2"):
            store.beat(Beat("ann", value))
            assert other.beats(["ann"]) == store.beats(["ann"])
            assert len(store.beats(["ann"])) == 1
        self.assert_values_differ(store)

    def assert_values_differ(self, store: Store) -> None:
        """Check only that a new beat changes the value read, because a store may return other values than were sent."""
        before = store.beats(["ann"])["ann"]
        store.beat(Beat("ann", "ann:3"))
        assert store.beats(["ann"])["ann"] != before

    def test_beats_are_found_for_those_who_have_any(self, store: Store) -> None:
        store.beat(Beat("ann", "ann:1"))
        store.beat(Beat("bob-with_a-LONG_name0", "bob:1"))
        assert set(store.beats(["ann", "bob-with_a-LONG_name0", "eve"])) == {"ann", "bob-with_a-LONG_name0"}
        assert store.beats([]) == {}

    @pytest.mark.parametrize("name", _IMPOSSIBLE.values(), ids=list(_IMPOSSIBLE))
    def test_a_peer_of_an_impossible_name_never_beats(self, store: Store, name: str) -> None:
        store.beat(Beat("ann", "ann:1"))
        assert set(store.beats([name, "ann"])) == {"ann"}

    # --- files, whose keys are never paths ---

    def test_artifacts_are_kept_listed_overwritten_and_removed(self, store: Store, tmp_path: Path) -> None:
        store.log("study-1").exchange(outgoing("a"), 0)  # a database keeps the files of its own studies only
        artifacts = store.artifacts()
        source, target = tmp_path / "source", tmp_path / "target"
        for content in (b"first", random.Random(2).randbytes(2 << 20)):
            source.write_bytes(content)
            artifacts.put("study-1/7/model", source)
            self.reopen(store).artifacts().get("study-1/7/model", target)
            assert target.read_bytes() == content
        artifacts.put("study-1/8/model", source)
        assert artifacts.keys("study-1/") == ["study-1/7/model", "study-1/8/model"]
        assert artifacts.keys("study-1/7") == ["study-1/7/model"]
        assert artifacts.keys("study-2/") == []
        artifacts.delete("study-1/7/model")
        artifacts.delete("study-1/7/model")
        assert artifacts.keys("study-1/") == ["study-1/8/model"]
        with pytest.raises(KeyError):
            artifacts.get("study-1/7/model", target)

    @pytest.mark.parametrize("key", ["", "../secret", "/etc/passwd", "a//b", "a/../../b", "a\nb"])
    def test_a_key_that_is_not_ours_is_nowhere(self, store: Store, tmp_path: Path, key: str) -> None:
        artifacts = store.artifacts()
        with pytest.raises(KeyError):
            artifacts.get(key, tmp_path / "target")


class PiggybackedBeats(Conformance):
    """Tests for stores in which a heartbeat inside an exchange costs nothing extra."""

    def test_a_beat_that_rides_is_seen(self, store: Store, log: Log) -> None:
        assert store.piggybacks_heartbeats
        log.exchange(None, 0, Beat("ann", "ann:1"))
        before = store.beats(["ann"])
        assert set(before) == {"ann"}
        log.exchange(outgoing("a"), 0, Beat("ann", "ann:2"))
        assert store.beats(["ann"]) != before


class AcrossProcesses(Conformance):
    """Tests for stores whose content other processes can see."""

    def test_processes_get_one_order_too(self, store: Store) -> None:
        context = multiprocessing.get_context("spawn")
        children = [
            context.Process(target=_append_in_another_process, args=(store.url, "study-1", f"child-{i}", self.commits))
            for i in range(2)
        ]
        for child in children:
            child.start()
        append_many(store.log("study-1"), "parent", self.commits)
        for child in children:
            child.join(TIMEOUT)
        assert [child.exitcode for child in children] == [0, 0]
        found = everything(store.log("study-1"))
        assert [entry.lsn for entry in found] == list(range(1, 3 * self.commits + 1))
        assert len({entry.payload for entry in found}) == 3 * self.commits

    def test_parent_and_child_go_on_after_a_fork(self, store: Store, log: Log) -> None:
        append(log, outgoing("before"))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                store.after_fork()
                append_many(log, "child", self.commits, 1)
                status = 0
            finally:
                os._exit(status)
        append_many(log, "parent", self.commits, 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        found = everything(log)
        assert [entry.lsn for entry in found] == list(range(1, 2 * self.commits + 2))
        assert len({entry.payload for entry in found}) == 2 * self.commits + 1


def _append_in_another_process(url: str, uuid: str, name: str, count: int) -> None:
    append_many(open_store(url).log(uuid), name, count)
