"""A server keeps a bucket's logs between requests: what that saves, and what its many callers must not see."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable

import pytest

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, StudyControl
from hopaas_p2p.errors import BehindRetention, StoreCorrupt, StudyDeleted
from hopaas_p2p.stores.base import Entry, Outgoing
from hopaas_p2p.stores.objects.log import TOMBSTONE, clocks
from hopaas_p2p.stores.s3 import gc
from hopaas_p2p.stores.s3.confirmation import AFTER
from hopaas_p2p.stores.s3.log import BucketLog
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.testing.commits import append_many, everything, outgoing_of, study_snapshot, together
from tests.support.s3_imitation import Imitation
from tests.support.served import Serve


def _commit(writer: str, seq: int) -> Outgoing:
    commit = Commit(writer, seq, writer, 0, (StudyControl("stopped", None),))
    return Outgoing(f"{writer}:{seq}", codec.encode(commit))


@pytest.fixture
def kept(store: S3Store) -> BucketLog:
    """A log that the store keeps, with five commits of a writer elsewhere."""
    append_many(store.log("u"), "elsewhere", 5)
    store.logs_kept = 2
    log = store.log("u")
    assert isinstance(log, BucketLog)
    return log


def test_ten_served_commits_cost_ten_puts(server: Imitation, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(S3Store(server.url("store"))) as store:
        store.prove()  # which makes it
    monkeypatch.setattr(S3Store, "freshness", 3600.0)  # however slow this machine is
    log = serve(server.url("store")).log("u")
    for seq in (1, 2):
        log.exchange(_commit("ann", seq), seq - 1)
    server.requests.clear()
    for seq in range(3, 13):
        assert [one.lsn for one in log.exchange(_commit("ann", seq), seq - 1).entries] == [seq]
    assert server.requests == {"PUT": 10}


def test_no_put_of_peers_that_write_in_turn_through_a_server_is_lost(store: S3Store, server: Imitation) -> None:
    """A peer is behind by what the others have written since, which the server knows."""
    append_many(store.log("u"), "elsewhere", 1)
    store.logs_kept = 1
    heads = dict.fromkeys(("ann", "bob", "eve"), 0)
    for turn in range(12):
        if turn == 3:
            server.requests.clear()
        who = ("ann", "bob", "eve")[turn % 3]
        found = store.log("u").exchange(outgoing_of(who, f"{who}:{turn}"), heads[who]).entries
        assert [one.lsn for one in found] == list(range(heads[who] + 1, turn + 3))
        heads[who] = turn + 2
    assert server.requests["PUT"] == 9
    assert server.requests["LIST"] == 0


def test_each_commit_is_counted_once_however_many_callers_read_it(
    kept: BucketLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    counted: list[int] = []
    monkeypatch.setattr(kept.scheduler, "saw", lambda payload, *_: seen.append(payload))
    monkeypatch.setattr(kept.scheduler, "reached_head", lambda others, _: counted.append(others))
    theirs = [one.payload for one in kept.exchange(None, 0).entries]
    kept.exchange(outgoing_of("own", "own:1"), 5)
    for since in (0, 3, 6, 0):
        assert [one.lsn for one in kept.exchange(None, since).entries] == list(range(since + 1, 7))
    assert seen == theirs
    assert sum(counted) == 5


def test_reports_through_a_server_wait_the_longer_the_more_peers_write_through_it(kept: BucketLog) -> None:
    intervals = []
    for writers in ([0], [0, 0, 0], [1, 2, 3]):
        for who in writers:
            kept.exchange(outgoing_of(f"peer-{who}", f"peer-{who}:{secrets.token_hex(8)}"), max(kept._head, 5))
        intervals.append(kept.flush_interval / kept.scheduler._slot)
    assert intervals[1] - intervals[0] == pytest.approx(0.0)
    assert intervals[2] - intervals[1] == pytest.approx(3 / 0.2)


def test_a_server_of_a_bucket_waits_for_news(store: S3Store, serve: Serve) -> None:
    store.prove()  # which makes it
    log = serve(store.url).log("u")
    log.exchange(_commit("ann", 1), 0)
    began = time.monotonic()
    assert log.news(1, 0.3) is False
    assert time.monotonic() - began >= 0.3
    assert log.news(0, 20.0) is True


def test_commits_through_a_server_are_looked_at_once_more_and_put_back_if_they_are_lost(
    kept: BucketLog, store: S3Store
) -> None:
    kept.exchange(outgoing_of("ann", "ann:1"), 5)
    store.objects.delete([kept.key(6)])
    clock = kept._confirmation.clock
    kept._confirmation.clock = lambda: clock() + AFTER + 1.0
    assert [one.lsn for one in store.log("u").exchange(None, 0).entries] == [1, 2, 3, 4, 5, 6]
    assert kept.unconfirmed() == []


def test_the_least_recently_used_logs_are_dropped_and_read_anew(kept: BucketLog, store: S3Store) -> None:
    store.log("v")
    assert store.log("u") is kept
    store.log("w")
    assert store.log("u") is kept
    store.log("x"), store.log("y")
    assert store.log("u") is not kept
    assert [one.lsn for one in store.log("u").exchange(outgoing_of("ann", "ann:1"), 5).entries] == [6]


def test_many_threads_take_logs_of_a_store_at_once(store: S3Store) -> None:
    store.logs_kept = 3

    def take(place: int) -> Callable[[], None]:
        def run() -> None:
            for number in range(3000):
                store.log(f"u{place}-{number % 7}")

        return run

    together(*map(take, range(8)))
    assert len(store._logs) <= 3 + 8


def _head(entries: list[Entry]) -> int:
    return entries[-1].lsn if entries else 0


@pytest.mark.parametrize("snapshot_is_read", [False, True])
@pytest.mark.parametrize("since", [0, 1, 2])
def test_a_caller_that_slept_through_gc_is_told_though_the_server_was_awake(
    kept: BucketLog, store: S3Store, since: int, *, snapshot_is_read: bool
) -> None:
    assert _head(kept.exchange(None, 0).entries) == 5
    kept.put_snapshot(3, study_snapshot(0))
    store.objects.put("study/u/boundary/00000000000000000003", b"")
    store.objects.delete([kept.key(lsn) for lsn in (1, 2, 3)])
    if snapshot_is_read:
        assert store.log("u").newest_snapshot() is not None
    for outgoing in (None, outgoing_of("ann", "ann:1")):
        with pytest.raises(BehindRetention if since else StoreCorrupt):
            store.log("u").exchange(outgoing, since)
    assert [one.lsn for one in store.log("u").exchange(outgoing_of("ann", "ann:1"), 3).entries] == [4, 5, 6]


@pytest.mark.parametrize("cleaned", [False, True])
@pytest.mark.parametrize("since", [0, 2, 5])
def test_every_caller_learns_that_a_study_was_deleted_by_another_process(
    kept: BucketLog, store: S3Store, server: Imitation, since: int, *, cleaned: bool
) -> None:
    assert _head(kept.exchange(None, 0).entries) == 5
    with contextlib.closing(S3Store(server.url("store"))) as other:
        other.log("u").destroy()
        if cleaned:
            append_many(other.catalog(), "somebody", 1)
            assert list(gc._collect(other, -60.0, dry_run=False))
            kept.history.clocks = lambda: clocks()._replace(wall=clocks().wall + gc.DAY)
    for outgoing in (None, outgoing_of("ann", "ann:1")):
        with pytest.raises(StudyDeleted):
            store.log("u").exchange(outgoing, since)
    assert TOMBSTONE not in [one.payload for one in _rest(store)]


def _rest(store: S3Store) -> list[Entry]:
    with contextlib.suppress(StudyDeleted):
        return everything(store.log("u"))
    return []


def test_two_servers_of_one_bucket_take_what_the_other_has_appended(store: S3Store, server: Imitation) -> None:
    with contextlib.closing(S3Store(server.url("store"))) as other:
        store.logs_kept = other.logs_kept = 8
        for lsn in range(1, 21):
            one, since = (store, other)[lsn // 3 % 2], max(lsn - 1 - lsn % 4, 0)
            found = one.log("u").exchange(outgoing_of(f"p{lsn % 5}", f"p{lsn % 5}:{lsn}"), since).entries
            assert [entry.lsn for entry in found] == list(range(since + 1, lsn + 1))
        assert everything(store.log("u")) == everything(other.log("u"))
