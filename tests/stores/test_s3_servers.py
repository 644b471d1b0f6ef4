"""What S3 servers refuse, lack or call by another name, and what peers make of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import hopaas_p2p
from hopaas_p2p.cli import main, s3
from hopaas_p2p.core import codec
from hopaas_p2p.errors import ConfigurationError, Denied, StoreCorrupt, StoreUnreachable
from hopaas_p2p.net import backoff
from hopaas_p2p.stores.checks import examine
from hopaas_p2p.stores.objects.contract import NotRemoved
from hopaas_p2p.stores.s3 import gc
from hopaas_p2p.stores.s3.address import parse
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.testing.commits import outgoing
from tests.support.http_messages import Request
from tests.support.s3_fixtures import s3_environment
from tests.support.s3_imitation import Imitation
from tests.support.s3_server import S3Server


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    s3_environment(monkeypatch)


@pytest.fixture
def store(server: Imitation) -> Iterator[S3Store]:
    """A store, of a process that has written to it."""
    store = S3Store(server.url("store"))
    store.log("u").exchange(outgoing("first"), 0)
    yield store
    store.close()


def test_objects_are_removed_whether_they_are_there_or_not(server: Imitation, store: S3Store) -> None:
    server.requests.clear()
    for name in ("a", "b"):
        store.objects.put(name, b"x")
    store.objects.delete(["a", "was-never-there", "b"])
    assert [key for key in server.contents() if key.endswith(("/a", "/b"))] == []
    assert server.requests["DELETE"] == 3


def test_a_cleanup_goes_on_after_requests_that_are_lost(
    server: Imitation, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(gc, "_AT_ONCE", 10)
    for number in range(30):
        store.objects.put(f"study/old/log/{number:020}", b"x")
    lost: set[str] = set()

    def asked(request: Request) -> int | None:
        if request.kind != "DELETE" or not request.path.endswith("3") or request.path in lost:
            return None
        lost.add(request.path)
        return 503

    server.asked = asked
    (removal,) = gc._remove(store, "", "", store.objects.details("study/old/"), dry_run=False)
    assert (removal.objects, len(lost)) == (30, 3)
    assert store.objects.listed("study/old/") == []


def test_a_key_that_may_remove_nothing_is_denied(server: Imitation, store: S3Store) -> None:
    store.objects.put("a", b"x")
    server.asked = lambda request: 403 if request.kind == "DELETE" else None
    with pytest.raises(Denied, match="remove"):
        store.objects.delete(["a"])


def test_an_object_that_may_not_be_removed_keeps_no_other(server: Imitation, store: S3Store) -> None:
    for study in ("a", "b"):
        for number in range(40):
            store.objects.put(f"study/{study}/log/{number:020}", b"x")
    kept = f"study/a/log/{3:020}"
    server.asked = lambda request: 403 if request.kind == "DELETE" and request.path.endswith(kept) else None
    store.catalog().exchange(outgoing("a list"), 0)
    removed: list[gc.Removal] = []
    with pytest.raises(Denied, match=f"remove {kept}"):
        removed.extend(gc._collect(store, -60.0, dry_run=False))
    assert [one.objects for one in removed] == [39, 40, 1], "what is gone is said"
    assert store.objects.listed("study/a/log/") == [kept]
    assert store.objects.listed("study/b/log/") == [], "the next study is cleaned up"


def test_a_cleanup_names_what_stays_of_studies_and_of_heartbeats(
    server: Imitation, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "_BEATS", -60.0)
    store.objects.put("study/gone/log/1", b"x")
    store.objects.put("beats/silent", b"x")
    server.asked = lambda request: 403 if request.kind == "DELETE" else None
    store.catalog().exchange(outgoing("a list"), 0)
    with pytest.raises(Denied) as denied:
        list(gc._collect(store, -60.0, dry_run=False))
    assert isinstance(denied.value, NotRemoved)
    assert {"study/gone/log/1", "beats/silent"} <= denied.value.stay.keys()


def test_the_command_that_cleans_up_says_what_it_removed_before_what_it_may_not(
    server: Imitation, store: S3Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        store.objects.put(f"study/gone/log/{number:020}", b"x")
    kept = f"study/gone/log/{1:020}"
    server.asked = lambda request: 403 if request.kind == "DELETE" and request.path.endswith(kept) else None
    store.catalog().exchange(outgoing("a list"), 0)
    monkeypatch.setattr(s3, "collect", lambda store, **_: gc._collect(store, -60.0, dry_run=False))
    assert main.run(["admin", "gc", "--store", store.url]) == Denied.exit_code
    said = capsys.readouterr()
    assert re.search(r"a deleted study +2 ", said.out)
    assert re.search(f"Removed 3 objects.*remove {kept} ", said.err, re.DOTALL), said.err


def test_a_501_is_about_conditional_writes_only_where_one_was_asked_for(server: Imitation, store: S3Store) -> None:
    server.asked = lambda _: 501
    with pytest.raises(ConfigurationError, match="list") as refusal:
        store.objects.listed("study/")
    assert "conditional" not in str(refusal.value)
    with pytest.raises(ConfigurationError, match="conditional"):
        store.objects.put_new("a", b"x")


def test_a_bucket_that_was_there_is_away_and_not_wrong(server: Imitation, store: S3Store) -> None:
    """MinIO says so while it starts with a new pool."""
    server.no_bucket = True
    with pytest.raises(StoreUnreachable, match="the bucket is gone"):
        store.log("u").exchange(None, 1)
    with pytest.raises(ConfigurationError, match="no such bucket"):
        S3Store(server.url("store")).log("u").exchange(None, 1)
    server.no_bucket = False
    assert store.log("u").exchange(None, 0).entries[0].lsn == 1


def test_a_directory_bucket_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigurationError, match="in no order"):
        parse("s3://tuning--use1-az4--x-s3/campaign")


def test_an_endpoint_without_tls_that_is_named_without_a_scheme_is_refused_at_once_with_the_cure(
    s3_server: S3Server,
) -> None:
    url = s3_server.url("store").replace("http://", "").replace("http%3A%2F%2F", "")
    with pytest.raises(ConfigurationError, match=r"does not speak TLS on this port.* write endpoint=http://HOST:PORT"):
        hopaas_p2p.open_study(url, "s")


def test_a_study_whose_first_commit_was_overwritten_is_damaged(server: Imitation) -> None:
    study = hopaas_p2p.open_study(server.url("store"), "s", space={"x": hopaas_p2p.Float(0, 1)})
    uuid = study.handle.uuid
    study.tell(study.ask(), 1.0)
    study.close()
    store = S3Store(server.url("store"))
    store.objects.put(f"study/{uuid}/log/{1:020d}", codec.encode(codec.Commit("w", 1, "w", 0, ())))
    store.close()
    with pytest.raises(StoreCorrupt):
        _ = hopaas_p2p.open_study(server.url("store"), "s", create=False).space


def test_the_doctor_finds_a_key_to_which_a_free_key_is_forbidden_and_names_the_policy(
    server: Imitation, store: S3Store
) -> None:
    def judge(request: Request) -> int | None:
        path = request.path.partition("?")[0].partition("/bucket/")[2]
        return 403 if request.kind == "GET" and path not in server.contents() else None

    server.asked = judge
    found = {one.check: one for one in examine(S3Store(server.url("store"), create=False))}
    assert not found["free keys"].passed
    assert "--no-condition" in found["free keys"].cure
