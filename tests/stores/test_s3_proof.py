"""Servers that break the condition are refused before the first commit, and while peers write."""

from __future__ import annotations

import re

import pytest

import hopaas_p2p
from hopaas_p2p.errors import BrokenChain, ConfigurationError
from hopaas_p2p.stores.checks import examine
from hopaas_p2p.stores.objects.race import KEYS
from hopaas_p2p.stores.s3.store import RENEW, S3Store
from hopaas_p2p.testing.commits import outgoing
from tests.support.http_messages import Request
from tests.support.s3_fixtures import s3_environment
from tests.support.s3_imitation import Imitation

_CAUSES = ("pool", "versioning", "gateway", "old release")


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    s3_environment(monkeypatch)


def open_and_write(server: Imitation) -> S3Store:
    """A store of a process that has written, long ago."""
    store = S3Store(server.url("store"))
    later(store, 0.0)
    store.log("u").exchange(outgoing("first"), 0)
    return store


def later(store: S3Store, seconds: float) -> None:
    """Set the clock of its proof so many seconds on, and stop it there."""
    now = store.clock() + seconds
    store.clock = lambda: now


WRONG = {
    "two pools": {"pools": 2},
    "looks first, links later": {"links_after": 0.02},
    "versions in Ceph, or no header": {"keeps_condition": False},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_no_store_is_created_where_the_condition_is_broken(server: Imitation, wrong: dict[str, int]) -> None:
    vars(server).update(wrong)
    with pytest.raises(ConfigurationError) as refusal:
        hopaas_p2p.open_study(server.url("store"), "s")
    said = str(refusal.value)
    assert [said.find(cause) for cause in _CAUSES] == sorted(said.find(cause) for cause in _CAUSES)
    assert -1 not in [said.find(cause) for cause in _CAUSES]
    assert "keys)" in said, "what was seen"
    assert server.contents() == []


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_nor_does_a_peer_write_its_first_commit_there(server: Imitation, wrong: dict[str, int]) -> None:
    open_and_write(server).close()
    before = server.contents()
    vars(server).update(wrong)
    peer = S3Store(server.url("store"))
    with pytest.raises(ConfigurationError, match="If-None-Match"):
        peer.log("u").exchange(outgoing("mine"), 1)
    with pytest.raises(ConfigurationError, match="If-None-Match"):
        peer.log("v").exchange(outgoing("mine"), 0)
    assert server.contents() == before
    peer.close()


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("empty", [True, False])
def test_the_doctor_refuses_it_on_an_empty_prefix_too(server: Imitation, wrong: dict[str, int], *, empty: bool) -> None:
    if not empty:
        open_and_write(server).close()
    vars(server).update(wrong)
    store = S3Store(server.url("store"), create=False)
    found = {one.check: one for one in examine(store)}
    assert not found["race"].passed
    assert "pool" in found["race"].cure
    store.close()


def test_a_sound_server_passes_the_doctor_on_an_empty_prefix_which_stays_empty(server: Imitation) -> None:
    store = S3Store(server.url("store"), create=False)
    found = {one.check: one for one in examine(store)}
    assert found["race"].passed
    assert "there is no store" in found["store"].detail
    assert server.contents() == []
    store.close()


def test_a_peer_proves_it_with_three_puts_per_key_and_leaves_nothing(server: Imitation) -> None:
    open_and_write(server).close()
    before, _ = server.contents(), server.requests.clear()
    peer = S3Store(server.url("store"))
    peer.prove()
    assert server.requests == {"GET": 1, "PUT": 3 * KEYS, "DELETE": KEYS}
    peer.prove()
    assert server.requests.total() == 1 + 4 * KEYS
    assert server.contents() == before
    peer.close()


def test_a_peer_that_writes_proves_it_again_every_few_minutes(server: Imitation) -> None:
    store = open_and_write(server)
    log = store.log("u")
    server.requests.clear()
    later(store, RENEW - 1)
    log.exchange(outgoing("second"), 1)
    assert server.requests["PUT"] == 1
    later(store, 2)
    log.exchange(outgoing("third"), 2)
    assert server.requests["PUT"] == 2 + 6
    server.keeps_condition = False
    later(store, RENEW + 1)
    for _ in range(2):
        with pytest.raises(BrokenChain, match="If-None-Match"):
            log.exchange(outgoing("fourth"), 3)
    store.close()


def test_a_peer_proves_it_again_after_the_server_was_away(server: Imitation) -> None:
    store = open_and_write(server)
    log = store.log("u")
    server.asked = lambda _: 503
    with pytest.raises(hopaas_p2p.errors.StoreUnreachable):
        log.exchange(None, 1)
    server.asked, server.keeps_condition = None, False
    later(store, 10)
    with pytest.raises(BrokenChain, match="If-None-Match"):
        log.exchange(outgoing("second"), 1)
    store.close()


@pytest.mark.parametrize("may", ["log|snapshot", "log"])
def test_a_key_that_may_only_write_to_one_study_proves_it_there(server: Imitation, may: str) -> None:
    open_and_write(server).close()

    def judge(request: Request) -> int | None:
        allowed = request.kind in ("GET", "LIST") or re.search(f"/study/u/({may})/", request.path)
        return None if allowed else 403

    server.asked = judge
    peer = S3Store(server.url("store"))
    assert [entry.lsn for entry in peer.log("u").exchange(outgoing("mine"), 1).entries] == [2]
    assert [entry.lsn for entry in peer.log("u").exchange(None, 0).entries] == [1, 2]
    server.keeps_condition = False
    other = S3Store(server.url("store"))
    with pytest.raises(ConfigurationError, match="If-None-Match"):
        other.log("u").exchange(outgoing("other"), 2)
    for one in (peer, other):
        one.close()


def test_a_server_that_fails_now_and_then_is_proved_all_the_same(server: Imitation) -> None:
    open_and_write(server).close()
    failing = iter(range(10**6))
    server.asked = lambda request: 503 if request.kind == "PUT" and next(failing) % 6 == 0 else None
    peer = S3Store(server.url("store"))
    peer.prove()
    server.asked = lambda request: 503 if request.kind == "PUT" else None
    other = S3Store(server.url("store"))
    with pytest.raises(hopaas_p2p.errors.StoreUnreachable):
        other.prove()
    for one in (peer, other):
        one.close()


def test_a_peer_whose_server_breaks_the_condition_in_mid_run_stops_and_says_why(server: Imitation) -> None:
    study = hopaas_p2p.open_study(server.url("store"), "s", space={"x": hopaas_p2p.Float(0, 1)})
    study.tell(study.ask(), 1.0)
    store = study.storage.peer.store
    assert isinstance(store, S3Store)
    server.keeps_condition = False
    later(store, RENEW + 1)
    for _ in range(2):
        with pytest.raises(BrokenChain, match="pool"):
            study.ask()
    study.close()
