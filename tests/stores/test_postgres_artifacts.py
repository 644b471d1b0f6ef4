"""Files in a Postgres database: whose they are, what becomes of half of one, and what an older schema becomes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from hopaas_p2p import access
from hopaas_p2p.errors import ConfigurationError, Denied, StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.net import backoff
from hopaas_p2p.stores.base import Store
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.testing.commits import append_many
from tests.support.latency import Relay
from tests.support.postgres import Server
from tests.support.postgres_fixtures import OWNER
from tests.support.postgres_people import Place

_PART = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"weights")
    return path


def content(store: Store, key: str, directory: Path) -> bytes:
    target = directory / "target"
    store.artifacts().get(key, target)
    return target.read_bytes()


def _with_files(store: PostgresStore) -> PostgresStore:
    """The store, with a log that may have files."""
    append_many(store.log("files"), "a", 1)
    return store


def keys(store: Store) -> list[str]:
    return store.artifacts().keys("")


# --- whose they are ----------------------------------------------------------------------------------------------


def test_grants_decide_about_a_studys_files(place: Place, source: Path, tmp_path: Path) -> None:
    ann, bob, eve = place.person("ann"), place.person("bob"), place.person("eve")
    place.study(ann)
    key = f"{place.uuid()}/file/one"
    owner, other, stranger = place.store(ann), place.store(bob), place.store(eve)
    owner.artifacts().put(key, source)

    for denied in (stranger, other):
        for attempt in (
            lambda store=denied: content(store, key, tmp_path),
            lambda store=denied: store.artifacts().put(key, source),
            lambda store=denied: store.artifacts().delete(key),
        ):
            with pytest.raises(Denied):
                attempt()
        assert keys(denied) == []

    access.grant(ann, "s", "bob", "viewer")
    assert content(other, key, tmp_path) == b"weights"
    assert keys(other) == [key]
    for attempt in (lambda: other.artifacts().put(key, source), lambda: other.artifacts().delete(key)):
        with pytest.raises(Denied):
            attempt()

    access.grant(ann, "s", "bob", "worker")
    other.artifacts().delete(key)
    other.artifacts().put(key, source)
    assert keys(owner) == keys(other) == [key]
    assert keys(stranger) == []


def test_a_file_belongs_to_a_study_of_this_database(place: Place, source: Path) -> None:
    for url in (place.person("ann"), place.admin):
        artifacts = place.store(url).artifacts()
        for key in ("files/0123456789abcdef", "catalog/x"):
            with pytest.raises(Denied, match=r"belongs to no study in this database\. Set HOPAAS_ARTIFACTS"):
                artifacts.put(key, source)
            with pytest.raises(KeyError):
                artifacts.get(key, source.with_name("target"))
            artifacts.delete(key)


def test_a_grant_that_went_while_a_file_was_sent_ends_it(place: Place) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    store = place.store(bob)
    sent = {"key": f"{place.uuid()}/file/x", "size": _PART + 1, "upload": "u" * 32}
    store.call("put_part", **sent, part=0, data=b"x" * _PART)
    access.grant(ann, "s", "bob", "viewer")
    with pytest.raises(Denied):
        store.call("put_part", **sent, part=1, data=b"x")
    assert keys(store) == []


def test_nobody_adds_to_another_users_upload(place: Place) -> None:
    place.study(place.person("ann"))
    eve_url = place.person("eve")
    access.grant(place.admin, "s", "eve", "worker")
    ann, eve = place.store(place.person("ann")), place.store(eve_url)
    sent = {"key": f"{place.uuid()}/file/x", "size": _PART + 1, "upload": "u" * 32}
    ann.call("put_part", **sent, part=0, data=b"x" * _PART)
    for part, data in ((0, b"y" * _PART), (1, b"y")):
        with pytest.raises(StoreCorrupt, match=r"given up\. Nothing was stored\. Upload the file again") as refused:
            eve.call("put_part", **sent, part=part, data=data)
        assert type(refused.value) is StoreCorrupt, "the log has not broken"


def test_a_deleted_studys_files_go_with_it(place: Place, source: Path, tmp_path: Path) -> None:
    url = place.person("ann")
    study = place.study(url)
    key = f"{place.uuid()}/file/one"
    store = place.store(url)
    store.artifacts().put(key, source)
    study._storage.delete_study(study._study_id)
    for attempt in (lambda: content(store, key, tmp_path), lambda: store.artifacts().put(key, source)):
        with pytest.raises(StudyDeleted):
            attempt()
    assert place.server.execute("SELECT count(*) FROM hopaas.artifact_parts", database="store") == [(0,)]


# --- half of one -------------------------------------------------------------------------------------------------


def test_half_a_file_is_seen_by_nobody_and_goes_after_a_day(place: Place, source: Path, tmp_path: Path) -> None:
    store = _with_files(place.store(place.admin))
    store.artifacts().put("files/12345678", source)
    sent = {"key": "files/12345678", "size": 3 * _PART, "upload": "u" * 32}
    store.call("put_part", **sent, part=0, data=b"x" * _PART)
    assert content(store, "files/12345678", tmp_path) == b"weights"
    with pytest.raises(StoreCorrupt, match=r"2097152 of 3145728 .* Upload the file again"):
        store.call("put_part", **sent, part=2, data=b"x" * _PART)
    assert content(store, "files/12345678", tmp_path) == b"weights"
    place.server.execute("UPDATE hopaas.artifacts SET at = now() - interval '25 hours'", database="store")
    store.artifacts().put("files/abcdefgh", source)
    assert place.server.execute("SELECT key FROM hopaas.artifacts ORDER BY key", database="store") == [
        ("files/12345678",),
        ("files/abcdefgh",),
    ]


def test_what_is_too_large_is_refused_with_its_first_part(place: Place, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate((64 << 20) + 1)
    store = _with_files(place.store(place.admin))
    with pytest.raises(ConfigurationError, match="HOPAAS_ARTIFACTS"):
        store.artifacts().put("files/12345678", large)
    sent = {"key": "files/12345678", "size": 10, "upload": "u" * 32}
    for part, size in ((0, _PART + 1), (0, 9), (1, 1), (-1, 1)):
        with pytest.raises((StoreCorrupt, ConfigurationError)):
            store.call("put_part", **sent, part=part, data=b"x" * size)


@pytest.mark.parametrize("cut", ["request", "reply", "mid-reply"])
def test_a_connection_that_breaks_in_the_middle_costs_one_part(
    postgres: Server, postgres_url: str, relay: Relay, tmp_path: Path, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "_FIRST_PAUSE", 0.01)
    data = random.Random(1).randbytes((3 << 20) + 17)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    store = _with_files(PostgresStore(postgres.url("store", user=OWNER, port=relay.port)))
    artifacts = store.artifacts()
    sends, sent = artifacts._retry, []  # type: ignore[attr-defined]

    def cut_after_two(function: str, **given: Any) -> Any:
        answer = sends(function, **given)
        sent.append(len(given["data"]))
        if len(sent) == 2:
            relay.cut(cut)  # type: ignore[arg-type]
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "_retry", cut_after_two)
        artifacts.put("files/12345678", source)
    assert sum(sent) == len(data)
    assert relay.cuts == 1
    told: list[int] = []

    def cut_once(moved: int) -> None:
        told.append(moved)
        if len(told) == 2:
            relay.cut(cut)  # type: ignore[arg-type]

    store.artifacts().get("files/12345678", target, cut_once)
    assert relay.cuts == 2
    assert target.read_bytes() == data
    assert sum(told) == len(data)
    assert len(postgres.execute("SELECT 1 FROM hopaas.artifacts", database="store")) == 1
    store.close()


def test_a_file_replaced_while_it_is_read_is_not_mixed_with_the_new_one(place: Place, tmp_path: Path) -> None:
    store = _with_files(place.store(place.admin))
    source = tmp_path / "source"
    source.write_bytes(b"a" * (2 << 20))
    store.artifacts().put("files/12345678", source)
    source.write_bytes(b"b" * (2 << 20))
    with pytest.raises(StoreUnreachable, match="replaced"):
        store.artifacts().get(
            "files/12345678", tmp_path / "target", lambda _: store.artifacts().put("files/12345678", source)
        )


def test_a_users_own_program_gets_no_further(place: Place) -> None:
    """What the functions are made of cannot be called or read by itself."""
    with place.session(place.person("eve")) as say:
        for sql in ("SELECT hopaas.entered_by_key('a/b', 'owner')", "SELECT * FROM hopaas.artifact_parts"):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                say(sql)
        for key in ("../x", "/etc/passwd", "", "a//b", "x" * 301, "a\nb"):
            with pytest.raises(psycopg2.Error):
                say(f"SELECT hopaas.put_part_v1('{key}', '{'u' * 32}', 1, 0, 'x')")
