"""What goes wrong between a peer and a bucket: a proxy before a real server does it, and every request is counted."""

from __future__ import annotations

import datetime
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p.core import codec
from hopaas_p2p.errors import ConfigurationError, StoreCorrupt, StoreUnreachable
from hopaas_p2p.stores.s3.log import BucketLog
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.testing.commits import append, append_many, everything, outgoing
from tests.support import s3_faults
from tests.support.http_messages import Request
from tests.support.needs import missing
from tests.support.s3_faults import Fault, FaultProxy
from tests.support.s3_server import S3Server


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def prefix(s3_server: S3Server) -> str:
    return s3_server.new_prefix()


@pytest.fixture
def store(s3_server: S3Server, proxy: FaultProxy, prefix: str) -> Iterator[S3Store]:
    """The store as its peers see it, through the proxy."""
    store = S3Store(s3_server.url(prefix, endpoint=proxy.endpoint))
    yield store
    store.close()


@pytest.fixture
def direct(s3_server: S3Server, prefix: str) -> Iterator[S3Store]:
    """The same store, as it is."""
    store = S3Store(s3_server.url(prefix))
    yield store
    store.close()


@pytest.fixture
def log(store: S3Store, proxy: FaultProxy) -> BucketLog:
    """A log with one commit, of a peer that stands at its head; nothing counted yet."""
    log = store.log("u")
    log.exchange(None, 0)
    log.exchange(outgoing("first"), 0)
    proxy.clear()
    return log


def names(log: BucketLog) -> list[str]:
    return [entry.payload[4:].decode() for entry in everything(log)]


# --- what a commit costs -----------------------------------------------------------------------------------------


def test_a_lone_peer_pays_one_put_a_commit(log: BucketLog, proxy: FaultProxy) -> None:
    assert append_many(log, "a", 5, since=1) == [2, 3, 4, 5, 6]
    assert proxy.requests == {"PUT": 5}


def test_a_peer_that_is_up_to_date_pays_one_get_a_look(log: BucketLog, proxy: FaultProxy) -> None:
    for _ in range(3):
        assert log.exchange(None, 1).entries == []
    assert proxy.requests == {"GET": 3}


def test_who_comes_second_pays_one_get_to_see_it_and_one_put_behind(
    log: BucketLog, direct: S3Store, proxy: FaultProxy
) -> None:
    direct.log("u").exchange(outgoing("other"), 1)
    receipt = log.exchange(outgoing("mine"), 1)
    assert [entry.lsn for entry in receipt.entries] == [2, 3]
    assert proxy.requests["PUT"] == 2
    assert proxy.requests["LIST"] == 0


# --- outcomes that are not known ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [s3_faults.LOSE_REPLY, s3_faults.UNAVAILABLE_AFTER], ids=lambda fault: fault.name)
def test_a_put_that_took_effect_unseen_is_recognised(log: BucketLog, proxy: FaultProxy, fault: Fault) -> None:
    proxy.next("PUT", fault)
    receipt = log.exchange(outgoing("mine"), 1)
    assert [entry.lsn for entry in receipt.entries] == [2]
    assert proxy.requests == {"PUT": 1, "GET": 2}  # whose it is, and whether somebody stands behind it
    assert names(log) == ["first", "mine"]


@pytest.mark.parametrize(
    "fault",
    [
        s3_faults.LOSE_REQUEST,
        s3_faults.UNAVAILABLE,
        s3_faults.BROKEN,
        s3_faults.CONFLICT,
        s3_faults.TOO_MANY,
        s3_faults.SLOW_DOWN,
    ],
    ids=lambda fault: fault.name,
)
def test_a_put_that_did_not_take_effect_goes_to_the_same_key_again(
    log: BucketLog, proxy: FaultProxy, fault: Fault
) -> None:
    proxy.next("PUT", fault, fault)
    receipt = log.exchange(outgoing("mine"), 1)
    assert [entry.lsn for entry in receipt.entries] == [2]
    assert proxy.requests == {"PUT": 3, "GET": 2}
    assert proxy.happened == {fault.name: 2}
    assert names(log) == ["first", "mine"]


def test_a_first_put_that_lands_after_the_retry_changes_nothing(log: BucketLog, proxy: FaultProxy) -> None:
    proxy.next("PUT", s3_faults.LATE)
    log.exchange(outgoing("mine"), 1)
    assert proxy.release() == [412]
    assert names(log) == ["first", "mine"]


def test_a_first_put_that_lands_behind_the_peers_back_is_recognised(log: BucketLog, proxy: FaultProxy) -> None:
    log._timeout = 0.0
    proxy.next("PUT", s3_faults.LATE)
    with pytest.raises(StoreUnreachable):
        log.exchange(outgoing("mine"), 1)
    assert proxy.release() == [200]
    assert [entry.lsn for entry in log.exchange(outgoing("mine"), 1).entries] == [2]
    assert names(log) == ["first", "mine"]


def test_a_first_put_that_lands_when_the_key_is_anothers_is_refused(
    log: BucketLog, direct: S3Store, proxy: FaultProxy
) -> None:
    log._timeout = 0.0
    proxy.next("PUT", s3_faults.LATE)
    with pytest.raises(StoreUnreachable):
        log.exchange(outgoing("mine"), 1)
    direct.log("u").exchange(outgoing("other"), 1)
    log._timeout = 5.0
    assert [entry.lsn for entry in log.exchange(outgoing("mine"), 1).entries] == [2, 3]
    assert proxy.release() == [412]
    assert names(log) == ["first", "other", "mine"]


def test_an_undecided_commit_is_known_again_when_others_stand_behind_it(
    log: BucketLog, direct: S3Store, proxy: FaultProxy
) -> None:
    log._timeout = 0.0
    proxy.next("PUT", s3_faults.LOSE_REPLY)
    proxy.next("GET", s3_faults.BROKEN)
    with pytest.raises(StoreUnreachable):
        log.exchange(outgoing("mine"), 1)
    append_many(direct.log("u"), "other", 3, since=1)
    log._timeout = 5.0
    receipt = log.exchange(outgoing("mine"), 1)
    assert [entry.lsn for entry in receipt.entries] == [2, 3, 4, 5]
    assert names(log) == ["first", "mine", "other-0", "other-1", "other-2"]


def test_a_storm_of_conflicts_is_sat_out(log: BucketLog, proxy: FaultProxy) -> None:
    proxy.next("PUT", *[s3_faults.CONFLICT] * 6)
    log.exchange(outgoing("mine"), 1)
    assert proxy.requests["PUT"] == 7
    assert names(log) == ["first", "mine"]


def test_a_server_that_stays_broken_is_given_up_in_time_and_found_again(log: BucketLog, proxy: FaultProxy) -> None:
    log._timeout = 0.5
    proxy.always = lambda _: s3_faults.BROKEN
    began = time.monotonic()
    with pytest.raises(StoreUnreachable):
        log.exchange(outgoing("mine"), 1)
    assert time.monotonic() - began < 3.0
    proxy.clear()
    assert [entry.lsn for entry in log.exchange(outgoing("mine"), 1).entries] == [2]
    assert names(log) == ["first", "mine"]


def test_a_trial_is_told_across_an_outage(s3_server: S3Server, proxy: FaultProxy, prefix: str) -> None:
    import hopaas_p2p

    study = hopaas_p2p.open_study(
        hopaas_p2p.open_storage(s3_server.url(prefix, endpoint=proxy.endpoint), patience=60.0), "s"
    )
    trial = study.ask()
    proxy.always = lambda request: s3_faults.BROKEN if request.kind in ("PUT", "GET") else None
    teller = threading.Thread(target=study.tell, args=(trial, 1.0))
    teller.start()
    while proxy.happened["500"] < 12:
        assert teller.is_alive()
        time.sleep(0.01)
    proxy.always = None
    teller.join(60)
    assert not teller.is_alive()
    assert [trial.state.name for trial in study.state.trials] == ["COMPLETE"]
    study.storage.close()


# --- bodies ------------------------------------------------------------------------------------------------------


def test_a_trial_is_told_across_a_minute_of_500s(s3_server: S3Server, proxy: FaultProxy, prefix: str) -> None:
    study = hopaas_p2p.open_study(
        hopaas_p2p.open_storage(s3_server.url(prefix, endpoint=proxy.endpoint), patience=300.0), "s"
    )
    trial = study.ask()
    end = time.monotonic() + 60.0
    proxy.always = lambda _: s3_faults.BROKEN if time.monotonic() < end else None
    study.tell(trial, 1.0)
    assert time.monotonic() >= end
    assert [trial.state.name for trial in study.state.trials] == ["COMPLETE"]
    study.storage.close()


def test_a_server_that_does_not_give_back_what_it_took_is_refused(store: S3Store, proxy: FaultProxy) -> None:
    proxy.always = lambda request: (
        Fault("forgets", forward=False, status=404, code="NoSuchKey") if request.kind == "GET" else None
    )
    with pytest.raises(ConfigurationError, match="not consistent"):
        store.log("u").exchange(outgoing("mine"), 0)


def test_a_body_cut_short_is_read_again(log: BucketLog, proxy: FaultProxy) -> None:
    proxy.next("GET", s3_faults.CUT_BODY, path=f"/log/{1:020d}")
    assert names(log) == ["first"]
    assert proxy.happened == {"body cut short": 1}


def test_bytes_that_are_no_commit_are_read_twice(log: BucketLog, proxy: FaultProxy, direct: S3Store) -> None:
    for lsn in (2, 3):
        direct.objects.put(f"study/u/log/{lsn:020d}", b"by a stranger")
    assert [entry.payload for entry in everything(log, 1)] == [b"by a stranger"] * 2
    assert proxy.requests["GET"] == 5, "each twice, and the first free key"


def test_five_gigabytes_where_a_commit_should_be_are_not_read(
    log: BucketLog, proxy: FaultProxy, direct: S3Store
) -> None:
    append_many(direct.log("u"), "other", 2, since=1)
    proxy.always = lambda request: s3_faults.HUGE if request.path.endswith(f"/log/{2:020d}") else None
    began = time.monotonic()
    entries = everything(log, 1)
    assert time.monotonic() - began < 2.0
    assert [entry.lsn for entry in entries] == [2, 3]
    assert isinstance(codec.decode(entries[0].payload), codec.Garbage)
    assert entries[1].payload == outgoing("other-1").payload


def test_bytes_that_no_writer_left_are_read_twice_and_kept_as_they_are(
    log: BucketLog, proxy: FaultProxy, direct: S3Store
) -> None:
    direct.objects.put(f"study/u/log/{2:020d}", b"what is this")
    entries = everything(log, 1)
    assert [entry.payload for entry in entries] == [b"what is this"]
    assert log.exchange(outgoing("mine"), 2).entries[0].lsn == 3


# --- servers that cannot be used ---------------------------------------------------------------------------------


def test_a_server_that_ignores_the_condition_is_refused(store: S3Store, proxy: FaultProxy) -> None:
    proxy.always = lambda _: s3_faults.IGNORE_CONDITION
    with pytest.raises(ConfigurationError, match="If-None-Match"):
        store.log("u").exchange(outgoing("mine"), 0)
    assert not store.objects.listed("study/")


def test_a_proxy_that_strips_the_condition_breaks_the_signature_and_nothing_else(
    log: BucketLog, direct: S3Store, proxy: FaultProxy
) -> None:
    direct.log("u").exchange(outgoing("other"), 1)
    proxy.next("PUT", s3_faults.STRIP_CONDITION)
    with pytest.raises(ConfigurationError):
        log.exchange(outgoing("mine"), 1)
    assert names(log) == ["first", "other"]


def test_a_log_whose_beginning_was_removed_is_an_error_and_not_an_empty_study(log: BucketLog, store: S3Store) -> None:
    append_many(log, "a", 4, since=1)
    store.objects.delete([f"study/u/log/{1:020d}", f"study/u/log/{2:020d}"])
    with pytest.raises(StoreCorrupt, match="lifecycle"):
        store.log("u").exchange(None, 0)
    with pytest.raises(StoreCorrupt, match="lifecycle"):
        store.log("u").exchange(outgoing("mine"), 0)


def test_a_log_with_a_hole_is_read_up_to_it_and_goes_on_there(
    log: BucketLog, store: S3Store, caplog: pytest.LogCaptureFixture
) -> None:
    append_many(log, "a", 6, since=1)
    store.objects.delete([f"study/u/log/{4:020d}"])
    reader = store.log("u")
    with caplog.at_level("WARNING", "hopaas_p2p"):
        assert [entry.lsn for entry in reader.exchange(None, 0).entries] == [1, 2, 3]
        reader.exchange(None, 3)
    assert caplog.text.count("is missing, but there are objects after it") == 1
    assert append(reader, outgoing("new"), 3).entries[0].lsn == 4


# --- keys and clocks ---------------------------------------------------------------------------------------------


def write_profile(path: Path, key: str, secret: str) -> None:
    path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")


def test_keys_that_run_out_between_a_put_and_its_retry_lose_nothing(
    s3_server: S3Server, proxy: FaultProxy, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    profile = tmp_path / "credentials"
    if len(s3_server.keys) < 2:
        missing("a second pair of keys in HOPAAS_TEST_S3")
    write_profile(profile, *s3_server.keys[0])
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    store = S3Store(s3_server.url(prefix, endpoint=proxy.endpoint))
    log = store.log("u")
    log.exchange(outgoing("first"), 0)
    proxy.clear()

    def run_out(request: Request) -> Fault | None:
        """Old keys are refused from now on; somebody puts new ones into the file."""
        if not any(s3_server.keys[0][0] in value for name, value in request.headers if name.lower() == "authorization"):
            return None
        write_profile(profile, *s3_server.keys[1])
        return s3_faults.EXPIRED

    proxy.next("PUT", s3_faults.UNAVAILABLE_AFTER)
    proxy.always = run_out
    assert [entry.lsn for entry in log.exchange(outgoing("mine"), 1).entries] == [2]
    assert proxy.happened == {"503 after it took effect": 1, "keys run out": 1}
    assert names(log) == ["first", "mine"]
    store.close()


def test_keys_that_run_out_and_are_not_renewed_are_named(log: BucketLog, proxy: FaultProxy) -> None:
    proxy.always = lambda _: s3_faults.EXPIRED
    with pytest.raises(ConfigurationError, match="renew"):
        log.exchange(outgoing("mine"), 1)
    assert proxy.requests == {"PUT": 1}


@pytest.mark.parametrize("days", [-3, 40])
def test_a_clock_that_is_days_wrong_does_not_matter(log: BucketLog, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    true_time = time.time
    wrong = datetime.timedelta(days=days)
    monkeypatch.setattr(time, "time", lambda: true_time() + wrong.total_seconds())
    assert append_many(log, "a", 3, since=1) == [2, 3, 4]
    now = log.objects.server_now()
    assert now is not None
    assert abs(now - true_time()) < 5.0


def test_a_clock_that_no_correction_helps_is_named(log: BucketLog, proxy: FaultProxy) -> None:
    proxy.always = lambda _: Fault("skew", forward=False, status=403, code="RequestTimeTooSkewed")
    with pytest.raises(ConfigurationError, match="clock"):
        log.exchange(outgoing("mine"), 1)


def test_secrets_show_nowhere(store: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-not-to-be-shown")
    with pytest.raises(ConfigurationError) as caught:
        store.log("u").exchange(outgoing("mine"), 0)
    told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    text = "".join(told.format()) + repr(store) + repr(store.objects) + repr(store.objects.keys)
    assert "not-to-be-shown" not in text
