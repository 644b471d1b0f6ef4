"""The one reader behind all sessions: what it shows, how old that is, and whose store it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest

import hopaas_p2p
from dashboard_app import options
from dashboard_app.frames import Frame
from dashboard_app.replica_cache import ReplicaCache, cache_of
from dashboard_app.server import SCRIPT
from hopaas_p2p.core.records import StudySet, TrialCreate
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.notes import read_note, read_tags
from hopaas_p2p.open import open_store
from hopaas_p2p.peer.liveness import UNKNOWN
from hopaas_p2p.peer.session import study_client
from hopaas_p2p.stores.base import Beat
from hopaas_p2p.study.audit import audit
from tests.support.dashboard_pages import calm, texts
from tests.support.dashboard_studies import Scribe
from tests.support.processes import until

UUID = "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> str:
    scribe = Scribe()
    scribe.join("ann", "north")
    scribe.trial("ann", 1.0, lr=1e-3)
    scribe.start("ann", lr=1e-2)
    scribe.put_into(str(tmp_path / "store"))
    return str(tmp_path / "store")


@pytest.fixture
def cache(store: str) -> Iterator[ReplicaCache]:
    one = ReplicaCache(store, threaded=False)
    yield one
    one.close()


def look(cache: ReplicaCache) -> None:
    """Let the cache read the study now."""
    cache._studies[UUID].due = 0.0
    cache.tick()


def add_trial(store: str) -> None:
    opened = open_store(store)
    replica = study_client(opened.log(UUID), writer="newcomer", now_us=lambda: 1_700_000_999_000_000)
    replica.put("newcomer", TrialCreate())
    replica.exchange()
    opened.close()


def test_a_frame_is_kept_while_nothing_changes_and_replaced_when_something_does(
    store: str, cache: ReplicaCache
) -> None:
    first = cache.frame(UUID)
    assert first is not None
    look(cache)
    assert cache.frame(UUID) is first

    add_trial(store)
    look(cache)

    second = cache.frame(UUID)
    assert second is not None and second is not first
    assert (len(first.columns), len(second.columns)) == (2, 3)
    assert cache.lsn(UUID) == second.lsn == first.lsn + 1


def test_the_cache_writes_nothing(store: str, cache: ReplicaCache) -> None:
    before = cache.frame(UUID)
    assert before is not None

    for _ in range(5):
        look(cache)

    assert cache.lsn(UUID) == before.lsn
    assert not list(Path(store).glob("v1/beats/*"))


def test_what_is_written_from_a_page_is_in_the_replica_that_the_page_shows(store: str, cache: ReplicaCache) -> None:
    before = cache.frame(UUID)
    (listing,) = cache.studies()
    assert before is not None

    for person in ("", "ann"):
        cache.study(listing, person).enqueue_trial({"lr": 1e-3})
    cache.show_written(UUID)  # without another look at the store

    after = cache.frame(UUID)
    assert after is not None
    assert len(after.columns) == len(before.columns) + 2
    lines = [line for line in audit(hopaas_p2p.open_study(store, listing.name)) if line["kind"] == "trial.create"][-2:]
    assert [line["on_behalf_of"] for line in lines] == [None, "ann"]
    assert len({line["writer"] for line in lines}) == 1


def test_one_thread_serves_many_sessions_and_sees_what_is_new(store: str) -> None:
    cache = ReplicaCache(store)
    try:
        seen: list[Frame | None] = []
        sessions = [threading.Thread(target=lambda: seen.append(cache.frame(UUID))) for _ in range(8)]
        for one in sessions:
            one.start()
        for one in sessions:
            one.join(30)
        assert len(seen) == 8
        assert len({id(one) for one in seen}) == 1

        before = cache.lsn(UUID)
        add_trial(store)
        until(lambda: cache.lsn(UUID) > before, 30, what="the new trial")
    finally:
        cache.close()


def test_a_visit_after_a_while_begins_with_what_is_so_now(store: str) -> None:
    cache = ReplicaCache(store)
    try:
        assert cache.frame(UUID) is not None
        study = cache._studies[UUID]
        study.viewed_until = 0.0  # as if nobody had looked for a while
        cache._catalog.due = 0.0
        until(lambda: cache._catalog.due > 0.0, 30, what="a turn of the thread that leaves the study alone")
        add_trial(store)
        study.pulled -= 60.0

        frame = cache.frame(UUID)

        assert frame is not None
        assert len(frame.columns) == 3
    finally:
        cache.close()


def test_a_store_that_is_away_is_said_to_be_and_comes_back(
    cache: ReplicaCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = cache.frame(UUID)
    exchange = cache._pull

    def away(_replica: object) -> None:
        raise StoreUnreachable("no route to the store")

    monkeypatch.setattr(cache, "_pull", away)
    look(cache)
    assert cache.frame(UUID) is frame
    assert cache.freshness(UUID).trouble == "no route to the store"

    monkeypatch.setattr(cache, "_pull", exchange)
    look(cache)
    assert cache.freshness(UUID).trouble is None


def test_a_study_that_cannot_be_shown_keeps_no_other_from_being_shown(
    store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Scribe(name="bad").put_into(store, uuid="bad")
    make = Frame.__init__

    def choosy(self: Frame, listing: Any, *more: Any) -> None:
        if listing.name == "bad":
            raise ZeroDivisionError
        make(self, listing, *more)

    monkeypatch.setattr(Frame, "__init__", choosy)
    cache = ReplicaCache(store, threaded=False)

    assert cache.frame("bad") is None
    assert cache.frame(UUID) is not None
    assert cache.freshness("bad").trouble == "the study 'bad' cannot be shown: ZeroDivisionError"
    assert "cannot be shown" in caplog.text
    cache.close()


def test_a_lease_counts_from_the_last_change_of_a_beat(
    store: str, cache: ReplicaCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr("dashboard_app.replica_cache.time.monotonic", lambda: clock)
    opened = open_store(store)
    opened.beat(Beat("ann", "1"))
    cache.frame(UUID)
    assert cache.signs(UUID)["ann"] == UNKNOWN  # an older version's, and seen once

    def look_again(after: float, beat: str = "") -> None:
        nonlocal clock
        if beat:
            opened.beat(Beat("ann", beat))
        clock += after
        cache.lsn(UUID)  # somebody looks
        cache.tick()

    look_again(10.0, beat="2")
    assert cache.leases(UUID)["ann"] == 120.0
    look_again(50.0)
    assert cache.leases(UUID)["ann"] == 70.0
    look_again(80.0)
    assert cache.signs(UUID)["ann"].alive is False
    look_again(10.0, beat="3")
    opened.close()
    assert cache.leases(UUID)["ann"] == 120.0
    assert "nobody" not in cache.leases(UUID)


def test_a_peer_that_died_before_the_monitor_looked_is_silent_at_once(store: str, cache: ReplicaCache) -> None:
    opened = open_store(store)
    opened.beat(Beat("ann", f"ann:1:{time.time() - 500:.0f}"))
    cache.frame(UUID)
    opened.close()

    sign = cache.signs(UUID)["ann"]
    assert sign.alive is False
    assert sign.ago == pytest.approx(500, abs=60)


def test_a_result_is_computed_once_for_all_sessions(cache: ReplicaCache) -> None:
    frame = cache.frame(UUID)
    assert frame is not None
    calls = []

    def count(one: Frame) -> int:
        calls.append(one)
        return len(one.columns)

    assert [frame.once(count), frame.once(count), frame.once(count, "other key")] == [2, 2, 2]
    assert len(calls) == 2


def test_only_the_latest_results_are_kept_however_many_filters_people_try(cache: ReplicaCache) -> None:
    frame = cache.frame(UUID)
    assert frame is not None
    for tried in range(300):
        assert frame.once(lambda one: bytes(len(one.columns)), tried) == bytes(2)

    assert len(frame._made) < 150


def test_attributes_that_are_no_json_are_shown_as_they_are(store: str, cache: ReplicaCache) -> None:
    opened = open_store(store)
    replica = study_client(opened.log(UUID), writer="odd", now_us=lambda: 1)
    replica.put("odd", StudySet(system={"hopaas:tag:a": "true", "odd": "{not json"}))
    replica.exchange()
    opened.close()

    frame = cache.frame(UUID)

    assert frame is not None
    assert frame.system["odd"] == "{not json"
    assert (read_tags(frame.system), read_note(frame.system, None)) == (["a"], "")


@pytest.mark.parametrize("kind", ["memory", "postgres", "s3"])
def test_the_cache_reads_every_kind_of_store(kind: str, request: pytest.FixtureRequest) -> None:
    url = "memory://dashboard-feed" if kind == "memory" else request.getfixturevalue(f"{kind}_url")
    study = hopaas_p2p.open_study(
        url, "shared", space={"x": hopaas_p2p.Float(0, 1)}, policy=hopaas_p2p.StudyPolicy(lease_ttl=30.0)
    )
    cache = ReplicaCache(url)
    try:
        (listing,) = cache.studies()
        before = cache.frame(listing.uuid)
        assert before is not None

        trial = study.ask()
        until(lambda: cache.lsn(listing.uuid) > before.lsn, 30, what="the trial")
        running = cache.frame(listing.uuid)
        assert running is not None
        (number,) = running.state.running
        owner = running.state.trials[number].owner
        left = until(lambda: cache.leases(listing.uuid).get(owner or ""), 30, what="the lease")
        study.tell(trial, 1.0)

        assert 0 < left <= 30.0
        assert cache.freshness(listing.uuid).trouble is None
    finally:
        cache.close()
        study.close()


def test_an_address_names_no_store(tmp_path: Path) -> None:
    """Whoever sends a link does not choose what we connect to."""
    for name in ("ours", "theirs"):
        Scribe(name=f"study of {name}").put_into(str(tmp_path / name))
    options.use(options.DashboardOptions(store=str(tmp_path / "ours")))
    test = AppTest.from_file(str(SCRIPT), default_timeout=60)
    test.query_params["store"] = (tmp_path / "theirs").as_uri()
    try:
        assert "study of ours" in texts(calm(test))
        assert cache_of.cache_info().currsize == 1
    finally:
        cache_of(str(tmp_path / "ours")).close()
        cache_of.cache_clear()
        options.use(options.DashboardOptions())
