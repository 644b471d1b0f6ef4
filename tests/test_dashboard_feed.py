"""The one reader behind all sessions, what a browser asks it, and what stands before the server."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("streamlit")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from streamlit.testing.v1 import AppTest

import hopaas_p2p
from dashboard_app import options, pulse
from dashboard_app.feed import Feed, close_all, feeds
from dashboard_app.frames import Frame
from dashboard_app.front import Front, policy
from dashboard_app.notebook import tame
from dashboard_app.optunas import _read_only
from dashboard_app.server import SCRIPT
from dashboard_app.theme import plain, safe
from hopaas_p2p.core.records import StudySet, TrialCreate
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.peer.replica import study_replica
from hopaas_p2p.stores.base import Beat
from hopaas_p2p.stores.url import open_store
from tests.dashboard_pages import calm, texts
from tests.dashboard_studies import Scribe
from tests.processes import until

UUID = "0123456789abcdef"


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def get(app: Any, address: str, **headers: str) -> Reply:
    """What an ASGI application answers, without a server."""
    path, _, query = address.partition("?")
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], told, b"".join(message.get("body", b"") for message in sent[1:]))


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


# --- the pulse ---------------------------------------------------------------------------------------------------


def test_a_ticket_gets_its_answer_and_another_gets_none() -> None:
    app = Starlette(routes=[pulse.route("/base/")])
    ticket = pulse.issue(None, lambda: {"version": "7"})

    known, unknown = get(app, f"/base/pulse?ticket={ticket}"), get(app, "/base/pulse?ticket=guess")

    assert json.loads(known.body) == {"version": "7"}
    assert known.headers["cache-control"] == "no-store"
    assert unknown.status == get(app, "/base/pulse").status == 404


def test_a_ticket_is_kept_while_its_page_lives_and_forgotten_after(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr("dashboard_app.pulse.time.monotonic", lambda: clock)
    tickets = pulse._Tickets()
    first = tickets.issue(None, lambda: {"n": 1})
    assert tickets.issue(first, lambda: {"n": 2}) == first
    assert tickets.ask(first) == {"n": 2}

    clock = 2000.0
    second = tickets.issue(None, lambda: {"n": 3})

    assert tickets.ask(first) is None
    assert tickets.ask(second) == {"n": 3}
    assert tickets.issue(first, lambda: {"n": 4}) != first


# --- before the server -------------------------------------------------------------------------------------------


@pytest.fixture
def behind(tmp_path: Path) -> Starlette:
    folder = tmp_path / "streamlit"
    (folder / "static/js").mkdir(parents=True)
    (folder / "static/js/main.js").write_text("let answer = 42;\n" * 100)
    (folder / "secret.txt").write_text("no")

    async def home(_request: object) -> PlainTextResponse:
        return PlainTextResponse("home")

    front = Middleware(Front, base_path="mon", folder=folder)
    return Starlette(routes=[Route("/{path:path}", home)], middleware=[front])


def test_streamlits_files_are_sent_compressed_and_may_be_kept(behind: Starlette) -> None:
    reply = get(behind, "/mon/static/js/main.js", accept_encoding="gzip, br")

    assert reply.headers["content-encoding"] == "gzip"
    assert "immutable" in reply.headers["cache-control"]
    assert gzip.decompress(reply.body).startswith(b"let answer")
    assert len(reply.body) < 200


@pytest.mark.parametrize("path", ["/mon/static/../secret.txt", "/static/js/main.js", "/mon/static/js/other.js"])
def test_nothing_but_those_files_is_served_by_the_front(behind: Starlette, path: str) -> None:
    assert get(behind, path, accept_encoding="gzip").body == b"home"


def test_who_takes_no_compression_gets_the_file_from_behind(behind: Starlette) -> None:
    assert get(behind, "/mon/static/js/main.js").body == b"home"


def test_every_answer_keeps_the_page_to_this_server(behind: Starlette) -> None:
    headers = get(behind, "/", host="lab.example.org:8501").headers

    assert (
        "connect-src 'self' ws://lab.example.org:8501 wss://lab.example.org:8501 data:"
        in headers["content-security-policy"]
    )
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http:" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a_host_that_is_none_adds_nothing_to_the_policy() -> None:
    assert policy("evil.example; script-src *") == policy("")


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


# --- texts from others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '" onload="x', "&amp;<b>"])
def test_text_in_html_stays_text(text: str) -> None:
    shown = safe(text)

    assert "<" not in shown
    assert '"' not in shown


@pytest.mark.parametrize("text", ["**bold**", "[x](javascript:1)", "# head", ":red[x]", "$x$", "![i](http://e)", "<b>"])
def test_text_in_markdown_means_nothing(text: str) -> None:
    shown = plain(text)

    marks = [at for at, letter in enumerate(shown) if letter in "*[](#:$!<`"]
    assert marks
    assert all(shown[at - 1] == "\\" for at in marks)


def test_a_note_fetches_no_picture_from_elsewhere() -> None:
    assert tame("see ![p](https://evil/pixel.png) and $x$") == "see \\![p](https://evil/pixel.png) and \\$x\\$"


def test_optunas_dashboard_changes_nothing_when_we_are_read_only() -> None:
    asked: list[str] = []
    answers: list[str] = []

    def app(environ: dict[str, object], start_response: object) -> list[bytes]:
        asked.append(str(environ["REQUEST_METHOD"]))
        return [b"ok"]

    guarded = _read_only(app)  # type: ignore[arg-type]

    for method in ("GET", "DELETE", "POST", "PUT"):
        guarded({"REQUEST_METHOD": method}, lambda status, _headers: answers.append(status))

    assert asked == ["GET"]
    assert answers == ["403 Forbidden"] * 3


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
