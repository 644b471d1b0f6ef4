"""The one reader behind all sessions: what it shows, how old that is, and whose store it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")

from streamlit.testing.v1 import AppTest

import hopaas_p2p
from dashboard_app import options
from dashboard_app.feed import Feed, close_all, feeds
from dashboard_app.frames import Frame
from dashboard_app.server import SCRIPT
from hopaas_p2p.core.records import StudySet, TrialCreate
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.peer.replica import study_replica
from hopaas_p2p.stores.base import Beat
from hopaas_p2p.stores.url import open_store
from tests.dashboard_pages import calm, texts
from tests.dashboard_studies import Scribe
from tests.processes import until

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
def feed(store: str) -> Iterator[Feed]:
    one = Feed(store, threaded=False)
    yield one
    one.close()


def add_trial(store: str) -> None:
    opened = open_store(store)
    replica = study_replica(opened.log(UUID), writer="newcomer", now_us=lambda: 1_700_000_999_000_000)
    replica.put("newcomer", TrialCreate())
    replica.exchange()
    opened.close()


def test_a_frame_is_kept_while_nothing_changes_and_replaced_when_something_does(store: str, feed: Feed) -> None:
    first = feed.frame(UUID)
    assert first is not None
    feed.hurry(UUID)
    feed.tick()
    assert feed.frame(UUID) is first

    add_trial(store)
    feed.hurry(UUID)
    feed.tick()

    second = feed.frame(UUID)
    assert second is not None and second is not first
    assert (len(first.columns), len(second.columns)) == (2, 3)
    assert feed.lsn(UUID) == second.lsn == first.lsn + 1


def test_the_feed_writes_nothing(store: str, feed: Feed) -> None:
    before = feed.frame(UUID)
    assert before is not None

    for _ in range(5):
        feed.hurry(UUID)
        feed.tick()

    assert feed.lsn(UUID) == before.lsn
    assert not list(Path(store).glob("v1/beats/*"))


def test_one_thread_serves_many_sessions_and_sees_what_is_new(store: str) -> None:
    feed = Feed(store)
    try:
        seen: list[Frame | None] = []
        sessions = [threading.Thread(target=lambda: seen.append(feed.frame(UUID))) for _ in range(8)]
        for one in sessions:
            one.start()
        for one in sessions:
            one.join(30)
        assert len(seen) == 8
        assert len({id(one) for one in seen}) == 1

        before = feed.lsn(UUID)
        add_trial(store)
        until(lambda: feed.lsn(UUID) > before, 30, what="the new trial")
    finally:
        feed.close()


def test_a_visit_after_a_while_begins_with_what_is_so_now(store: str) -> None:
    feed = Feed(store)
    try:
        assert feed.frame(UUID) is not None
        source = feed._sources[UUID]
        source.wanted_until = 0.0  # as if nobody had looked for a while
        feed._catalog_due = 0.0
        until(lambda: feed._catalog_due > 0.0, 30, what="a turn of the thread that leaves the study alone")
        add_trial(store)
        source.pulled -= 60.0

        frame = feed.frame(UUID)

        assert frame is not None
        assert len(frame.columns) == 3
    finally:
        feed.close()


def test_a_store_that_is_away_is_said_to_be_and_comes_back(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = feed.frame(UUID)
    exchange = feed._pull

    def away(_replica: object) -> None:
        raise StoreUnreachable("no route to the store")

    monkeypatch.setattr(feed, "_pull", away)
    feed.hurry(UUID)
    feed.tick()
    assert feed.frame(UUID) is frame
    assert feed.freshness(UUID).trouble == "no route to the store"

    monkeypatch.setattr(feed, "_pull", exchange)
    feed.hurry(UUID)
    feed.tick()
    assert feed.freshness(UUID).trouble is None


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
    feed = Feed(store, threaded=False)

    assert feed.frame("bad") is None
    assert feed.frame(UUID) is not None
    assert feed.freshness("bad").trouble == "this study cannot be shown: ZeroDivisionError"
    assert "cannot be shown" in caplog.text
    feed.close()


def test_a_lease_counts_from_the_last_change_of_a_beat(store: str, feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr("dashboard_app.feed.time.monotonic", lambda: clock)
    opened = open_store(store)
    opened.beat(Beat("ann", "1"))
    feed.frame(UUID)
    assert feed.lease_left(UUID, "ann") == 120.0

    clock += 50.0
    feed.lsn(UUID)  # somebody looks
    feed.tick()
    assert feed.lease_left(UUID, "ann") == 70.0

    opened.beat(Beat("ann", "2"))
    clock += 10.0
    feed.lsn(UUID)
    feed.tick()
    opened.close()
    assert feed.lease_left(UUID, "ann") == 120.0
    assert feed.lease_left(UUID, "nobody") is None


def test_a_clock_that_is_off_is_seen_in_what_a_peer_tells(
    store: str, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.frame(UUID)
    assert feed.clock_behind(UUID, "newcomer") is None
    monkeypatch.setattr("dashboard_app.feed.time.time", lambda: 1_700_000_999.0 + 3600.0)

    add_trial(store)
    feed.hurry(UUID)
    feed.tick()

    assert feed.clock_behind(UUID, "newcomer") == pytest.approx(3600.0)


def test_a_result_is_computed_once_for_all_sessions(feed: Feed) -> None:
    frame = feed.frame(UUID)
    assert frame is not None
    calls = []

    def count(one: Frame) -> int:
        calls.append(one)
        return len(one.columns)

    assert [frame.once(count), frame.once(count), frame.once(count, "other key")] == [2, 2, 2]
    assert len(calls) == 2


def test_attributes_that_are_no_json_are_shown_as_they_are(store: str, feed: Feed) -> None:
    opened = open_store(store)
    replica = study_replica(opened.log(UUID), writer="odd", now_us=lambda: 1)
    replica.put("odd", StudySet(system={"hopaas:tags": '["a"]', "odd": "{not json"}))
    replica.exchange()
    opened.close()

    frame = feed.frame(UUID)

    assert frame is not None
    assert (frame.tags, frame.system["odd"], frame.note) == (["a"], "{not json", "")


@pytest.mark.parametrize("kind", ["memory", "postgres", "s3"])
def test_the_feed_reads_every_kind_of_store(kind: str, request: pytest.FixtureRequest) -> None:
    url = "memory://dashboard-feed" if kind == "memory" else request.getfixturevalue(f"{kind}_url")
    study = hopaas_p2p.open_study(url, "shared", space={"x": hopaas_p2p.Float(0, 1)}, lease_ttl=30.0)
    feed = Feed(url)
    try:
        (listing,) = feed.studies()
        before = feed.frame(listing.uuid)
        assert before is not None

        trial = study.ask()
        until(lambda: feed.lsn(listing.uuid) > before.lsn, 30, what="the trial")
        running = feed.frame(listing.uuid)
        assert running is not None
        (number,) = running.state.running
        owner = running.state.trials[number].owner
        left = until(lambda: feed.lease_left(listing.uuid, owner or ""), 30, what="the lease")
        study.tell(trial, 1.0)

        assert 0 < left <= 30.0
        assert feed.freshness(listing.uuid).trouble is None
        assert feed.round_trip is not None
    finally:
        feed.close()
        study.close()


# --- which store -------------------------------------------------------------------------------------------------


@pytest.fixture
def two_stores(tmp_path: Path) -> Iterator[tuple[str, str]]:
    for name in ("first", "second"):
        Scribe(name=f"study of the {name}").put_into(str(tmp_path / name))
    pair = (str(tmp_path / "first"), str(tmp_path / "second"))
    options.use(options.Options(stores=pair))
    yield pair
    close_all()
    options.use(options.Options())


@pytest.mark.parametrize(("asked", "shown"), [("", "first"), ("second", "second"), ("elsewhere", "first")])
def test_the_address_names_one_of_our_stores_and_no_other(two_stores: tuple[str, str], asked: str, shown: str) -> None:
    """A URL that only an address names is never opened: whoever sends the link does not choose what we connect to."""
    test = AppTest.from_file(str(SCRIPT), default_timeout=60)
    if asked:
        test.query_params["store"] = str(Path(two_stores[0]).parent.as_uri()) + f"/{asked}"

    ran = calm(test)

    assert f"study of the {shown}" in texts(ran)
    assert len({one.url for one in feeds()}) <= 2
