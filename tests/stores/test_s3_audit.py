"""Own commits, looked at once more: what that costs, and that no commit of another passes for one's own."""

from __future__ import annotations

import time

import pytest

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit
from hopaas_p2p.errors import BrokenChain, StoreUnreachable
from hopaas_p2p.stores.base import Outgoing, append
from hopaas_p2p.stores.s3 import confirmation
from hopaas_p2p.stores.s3.confirmation import AFTER, SELDOM
from hopaas_p2p.stores.s3.log import BucketLog
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.testing.commits import everything
from tests.support.http_messages import Request
from tests.support.s3_imitation import Imitation


def said(writer: str, seq: int) -> Outgoing:
    """One of a writer's commits."""
    return Outgoing(f"{writer}:{seq}", codec.encode(Commit(writer, seq, writer, 0, ())))


def written(store: S3Store, count: int, *, alone: bool = False) -> BucketLog:
    """The handle that has written so many commits; unless `alone`, somebody else has written the first one."""
    log, known = store.log("u"), 0
    if not alone:
        append(store.log("u"), said("v", 1), 0)
    for turn in range(count):
        known = append(log, said("w", turn + 1), known)[-1].lsn
    return log


def asked(store: S3Store, log: BucketLog, *, after: float) -> tuple[int, int]:
    """GETs and LISTs that the audit makes when so many seconds have passed since the last commit."""
    assert log._confirmation is not None
    log._confirmation.clock = lambda: time.monotonic() + after
    before = store.objects.requests.copy()
    log._confirmation.check()
    made = store.objects.requests - before
    return made["GET"], made["LIST"]


def forge(store: S3Store, lsn: int) -> None:
    store.objects.put(f"study/u/log/{lsn:020d}", b"another's")


def test_thirty_commits_of_which_later_ones_carry_copies_are_looked_at_with_one_listing(store: S3Store) -> None:
    log = written(store, 30)
    assert asked(store, log, after=SELDOM - AFTER) == (0, 0)
    assert asked(store, log, after=SELDOM) == (0, 1)
    assert asked(store, log, after=3 * SELDOM) == (0, 0), "once"


def test_a_few_commits_are_read_because_that_is_cheaper(store: S3Store) -> None:
    log = written(store, 12)
    assert asked(store, log, after=SELDOM) == (12, 0)


def test_commits_of_which_no_object_carries_a_copy_are_looked_at_after_half_a_minute(store: S3Store) -> None:
    log = written(store, 12, alone=True)
    assert asked(store, log, after=AFTER) == (12, 0)
    for turn in range(50):
        append(log, said("w", 13 + turn), 12 + turn)
    assert asked(store, log, after=2 * AFTER) == (0, 1)


def test_a_real_servers_listing_stands_for_reading(s3_url: str) -> None:
    store = S3Store(s3_url)
    log = written(store, 20)
    assert asked(store, log, after=SELDOM) == (0, 1)
    store.close()


def test_where_etags_say_nothing_all_commits_are_read(server: Imitation, store: S3Store) -> None:
    """As on a server that encrypts with keys of its own."""
    server.etag_of = lambda data: f'"{len(data)}-opaque"'
    log = written(store, 20)
    assert asked(store, log, after=SELDOM) == (20, 1)


def test_where_a_listing_is_refused_all_commits_are_read(server: Imitation, store: S3Store) -> None:
    log = written(store, 20)

    def refuse(request: Request) -> int | None:
        return 403 if request.kind == "LIST" else None

    server.asked = refuse
    assert asked(store, log, after=SELDOM) == (20, 1)


@pytest.mark.parametrize("count", [5, 20])
@pytest.mark.parametrize("ending", [False, True])
def test_a_commit_that_is_anothers_now_is_found_among_few_and_many(store: S3Store, count: int, *, ending: bool) -> None:
    log = written(store, count)
    forge(store, 3)
    with pytest.raises(BrokenChain, match="commit 3, which the store had accepted"):
        if ending:
            log.confirm()
        else:
            asked(store, log, after=SELDOM)


def test_commits_that_were_cleaned_up_meanwhile_are_not_missed(store: S3Store) -> None:
    log = written(store, 20)
    store.objects.put(f"study/u/boundary/{16:020d}", b"as gc does")
    store.objects.delete([f"study/u/log/{lsn:020d}" for lsn in range(1, 17)])
    assert asked(store, log, after=SELDOM) == (15, 2)
    assert store.objects.listed("study/u/log/") == [f"study/u/log/{lsn:020d}" for lsn in range(17, 22)]


@pytest.mark.parametrize("count", [5, 20])
@pytest.mark.parametrize("ending", [False, True])
def test_a_commit_that_the_bucket_has_lost_is_put_back(store: S3Store, count: int, *, ending: bool) -> None:
    log = written(store, count)
    before = everything(store.log("u"))
    store.objects.delete([f"study/u/log/{lsn:020d}" for lsn in (3, count + 1)])
    if ending:
        log.confirm()
    else:
        asked(store, log, after=SELDOM)
    assert everything(store.log("u")) == before


@pytest.mark.parametrize("call", ["exchange", "wait_turn"])
def test_nothing_is_put_back_on_a_server_that_has_ceased_to_honour_the_condition(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def broken(_root: str) -> bool:
        raise BrokenChain("If-None-Match")

    log = written(store, 5)
    lost = f"study/u/log/{3:020d}"
    store.objects.delete([lost])
    log._confirmation.clock = lambda: time.monotonic() + SELDOM
    monkeypatch.setattr(store, "prove", broken)
    with pytest.raises(BrokenChain, match="If-None-Match"):
        log.exchange(said("w", 6), 6) if call == "exchange" else log.wait_turn(6)
    assert lost not in store.objects.listed("study/u/log/")


def test_a_commit_that_is_gone_and_was_too_large_to_be_kept_is_said(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirmation, "_KEPT_BYTES", 0)
    log = written(store, 5)
    store.objects.delete([f"study/u/log/{6:020d}"])
    with pytest.raises(BrokenChain, match="commit 6, which the store had accepted from this process, is gone"):
        log.confirm()


def test_a_commit_that_could_not_be_put_back_is_put_back_later(server: Imitation, store: S3Store) -> None:
    log = written(store, 5)
    before = everything(store.log("u"))
    store.objects.delete([f"study/u/log/{6:020d}"])
    server.asked = lambda request: 503 if request.kind == "PUT" else None
    with pytest.raises(StoreUnreachable):
        log.confirm()
    server.asked = None
    log.confirm()
    assert everything(store.log("u")) == before


@pytest.mark.parametrize("count", [5, 20])
@pytest.mark.parametrize("status", [503, 403])
def test_a_commit_that_could_not_be_looked_at_is_looked_at_later(
    server: Imitation, store: S3Store, count: int, status: int
) -> None:
    log = written(store, count)
    forge(store, 3)
    server.asked = lambda _: status
    asked(store, log, after=SELDOM)
    server.asked = None
    with pytest.raises(BrokenChain, match="commit 3, which the store had accepted"):
        asked(store, log, after=SELDOM + AFTER)


def test_a_commit_that_could_not_be_looked_at_is_not_asked_for_at_every_exchange(
    server: Imitation, store: S3Store
) -> None:
    log = written(store, 5)
    server.asked = lambda _: 503
    assert asked(store, log, after=SELDOM) == (5, 0)
    assert asked(store, log, after=SELDOM) == (0, 0)


def test_nothing_is_appended_behind_a_loss_even_for_a_caller_that_tries_again(store: S3Store) -> None:
    """As a server does, which has no session."""
    log = written(store, 5)
    forge(store, 3)
    with pytest.raises(BrokenChain):
        asked(store, log, after=SELDOM)
    before = store.objects.listed("study/u/log/")
    for _ in range(2):
        with pytest.raises(BrokenChain, match="commit 3, which the store had accepted"):
            append(log, said("w", 6), 6)
    assert store.objects.listed("study/u/log/") == before


def test_an_end_that_cannot_look_at_its_commits_says_so(server: Imitation, store: S3Store) -> None:
    log = written(store, 20)
    server.asked = lambda _: 503
    with pytest.raises(StoreUnreachable, match="20 of this process's commits"):
        log.confirm()
    server.asked = None
    log.confirm()


def test_an_end_does_not_wait_for_each_commit_of_a_bucket_that_does_not_answer(
    server: Imitation, store: S3Store
) -> None:
    """Each request of a server that is silent takes four seconds, and there may be a thousand."""
    log = written(store, 40)
    server.asked = lambda _: 503
    before = store.objects.requests.copy()
    with pytest.raises(StoreUnreachable, match="accepted 40 of this process's commits"):
        log.confirm()
    assert store.objects.requests - before == {"LIST": 1, "GET": 16}
    server.asked = lambda request: 503 if request.kind == "LIST" or request.path.endswith("3") else None
    with pytest.raises(StoreUnreachable, match="4 of this process's commits"):
        log.confirm()
    server.asked = None
    log.confirm()
