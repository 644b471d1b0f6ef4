"""The peer among studies that are deleted, locked or broken, and beside threads that do not wait for it."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hopaas_p2p.core import codec
from hopaas_p2p.core.names import handover_prefix, request_name
from hopaas_p2p.core.records import (
    Commit,
    PeerJoin,
    Policy,
    StudyDefine,
    StudyRegistered,
    StudyRemoved,
    StudySet,
    TrialCreate,
    TrialFinish,
    TrialSet,
)
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import Denied, HopaasError, StoreUnreachable, StudyDeleted
from hopaas_p2p.peer import caller as caller_module
from hopaas_p2p.peer import handover
from hopaas_p2p.peer.outbox import PendingCommit
from hopaas_p2p.peer.peer import Caller, Peer
from hopaas_p2p.peer.session import LogClient
from hopaas_p2p.peer.spool import SpoolSender
from hopaas_p2p.stores.base import Beat, ExchangeResult, Outgoing
from hopaas_p2p.stores.memory import MemoryArtifacts, MemoryLog, MemoryStore
from hopaas_p2p.testing.commits import everything
from hopaas_p2p.testing.faults import Fault, FaultyStore
from tests.support.processes import until
from tests.support.scribe import COMPLETE, RUNNING, defined
from tests.support.ticking import tick


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    for uuid in ("first", "second", "third"):
        commit = Commit("founder", 1, "founder", 0, (defined(ttl=12.0),))
        store.log(uuid).exchange(Outgoing("f", codec.encode(commit)), 0)
    return store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def peer(store: MemoryStore, clock: Clock) -> Iterator[Peer]:
    peer = Peer(store, linger=1.0, clock=clock, threaded=False, describe=dict, patience=0.0)
    yield peer
    peer.close()


def drivers_of(peer: Peer) -> list[LogClient[State]]:
    found = [peer.log(uuid) for number, uuid in enumerate(("first", "second", "third"))]
    for driver in found:
        peer.commit(driver, TrialCreate())
    return found


def draft(peer: Peer, driver: LogClient[State], step: int) -> None:
    driver.session.draft(0, 1, peer.uuid).reports[step] = 1.0
    peer.note_draft(driver)


def reports(store: MemoryStore, uuid: str) -> dict[int, float]:
    state = Peer(store, threaded=False).log(uuid)
    state.exchange()
    return state.state.trials[0].reports


def tick_for(peer: Peer, clock: Clock, seconds: float) -> None:
    """What the scheduler's thread does in this time, errors included."""
    end = clock.now + seconds
    while clock.now < end:
        try:
            pause = tick(peer)
        except HopaasError:
            pause = 5.0
        clock.now += max(pause, 0.01)


def destroy(store: MemoryStore) -> None:
    store.log("first").destroy()


def test_a_study_in_trouble_does_not_keep_the_peer_from_the_others(
    store: MemoryStore, peer: Peer, clock: Clock
) -> None:
    studies = drivers_of(peer)
    destroy(store)
    for step, driver in enumerate(studies):
        draft(peer, driver, step)

    tick_for(peer, clock, 10.0)

    assert reports(store, "second") == {1: 1.0}
    assert reports(store, "third") == {2: 1.0}


def test_a_farewell_reaches_the_other_studies_too(
    store: MemoryStore, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    studies = drivers_of(peer)
    destroy(store)
    for step, driver in enumerate(studies):
        draft(peer, driver, step)

    with caplog.at_level(logging.WARNING, "hopaas_p2p"):
        peer.close()
        told = len(caplog.records)
        peer.say_farewell()  # as at the end of the process

    assert reports(store, "second") == {1: 1.0}
    assert reports(store, "third") == {2: 1.0}
    assert told > 0
    assert len(caplog.records) == told


@pytest.mark.parametrize("sent_by", ["the scheduler", "flush"])
def test_a_change_of_the_list_of_studies_that_was_not_answered_is_made_at_the_next_contact(
    store: MemoryStore, clock: Clock, sent_by: str
) -> None:
    founder = Peer(store, threaded=False)
    founder.commit_to_catalog(StudyRegistered("first", "a"))
    faulty = FaultyStore(store, [Fault.REFUSE])
    peer = Peer(faulty, linger=1.0, clock=clock, threaded=False, describe=dict, patience=0.0)
    with pytest.raises(StoreUnreachable) as unanswered:
        peer.commit_to_catalog(StudyRemoved("first"))

    if sent_by == "flush":
        peer.flush()
    else:
        tick_for(peer, clock, 60.0)

    founder.pull(founder.catalog)
    assert unanswered.value.queued
    assert not founder.studies()
    peer.close()


def refused(_: MemoryLog) -> None:
    raise Denied


@pytest.mark.parametrize("may_end_it", [True, False], ids=["an owner", "a worker"])
def test_a_peer_stops_work_on_a_study_whose_deletion_was_cut_short(
    store: MemoryStore, peer: Peer, clock: Clock, monkeypatch: pytest.MonkeyPatch, may_end_it: bool
) -> None:
    first, second, _ = drivers_of(peer)
    deleter = Peer(store, threaded=False)
    for record in (StudyRegistered("first", "a"), StudyRegistered("second", "b"), StudyRemoved("first")):
        deleter.commit_to_catalog(record)  # and no more: it was killed before the log was ended
    real, held = MemoryLog.destroy, []

    def destroy_it(log: MemoryLog) -> None:
        held.append(first.turn.locked())
        (real if may_end_it else refused)(log)

    monkeypatch.setattr(MemoryLog, "destroy", destroy_it)

    tick_for(peer, clock, 700.0)

    assert held == [True], "another thread may be in the middle of an exchange"
    with pytest.raises(StudyDeleted):
        peer.commit(first, TrialCreate())
    peer.commit(second, TrialCreate())
    if may_end_it:
        with pytest.raises(StudyDeleted):
            store.log("first").exchange(None, 0)


def test_a_rescue_whose_answer_did_not_reach_the_store_is_answered_by_the_next_check(
    store: MemoryStore, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, answered = {"first": drivers_of(peer)[0]}, dict[str, str]()
    store.beat(Beat(request_name("first"), "please"))

    def away(*_: object) -> None:
        raise StoreUnreachable

    with monkeypatch.context() as patch, pytest.raises(StoreUnreachable):
        patch.setattr(MemoryArtifacts, "put", away)
        handover.answer_requests(store, logs, answered, writer=peer.uuid)
    for _ in range(2):
        handover.answer_requests(store, logs, answered, writer=peer.uuid)
        assert len(store.artifacts().keys(handover_prefix("first"))) == 1


def test_a_deleted_study_is_told_once_by_the_scheduler_and_at_every_call(
    store: MemoryStore, peer: Peer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    first, *_ = drivers_of(peer)
    destroy(store)
    draft(peer, first, 0)
    with caplog.at_level(logging.WARNING, "hopaas_p2p"):
        tick_for(peer, clock, 60.0)
    assert len([record for record in caplog.records if "deleted" in record.getMessage()]) == 1
    for _ in range(2):
        with pytest.raises(StudyDeleted):
            peer.commit(first, TrialFinish(0, 1, COMPLETE, (1.0,)))


def test_reports_linger_for_company_and_leave_by_themselves(store: MemoryStore, peer: Peer, clock: Clock) -> None:
    first, *_ = drivers_of(peer)
    before = len(everything(store.log("first")))
    for step in range(5):
        draft(peer, first, step)
        clock.now += 0.1
        tick(peer)
    assert len(everything(store.log("first"))) == before
    tick_for(peer, clock, 3.0)
    assert len(everything(store.log("first"))) == before + 1
    assert reports(store, "first") == dict.fromkeys(range(5), 1.0)


class CrowdedStore(MemoryStore):
    """Its logs say how long reports had better wait, and when a commit is welcome."""

    def __init__(self) -> None:
        super().__init__()
        self.flush_interval = 8.0
        self.while_waiting: list[Callable[[], object]] = []

    def log(self, uuid: str) -> MemoryLog:
        log = super().log(uuid)
        log.__class__ = CrowdedLog
        log.store = self  # type: ignore[attr-defined]
        return log


class CrowdedLog(MemoryLog):
    rate_limited = True
    store: CrowdedStore

    @property
    def flush_interval(self) -> float:
        return self.store.flush_interval

    def wait_turn(self, since: int) -> ExchangeResult:
        while self.store.while_waiting:
            self.store.while_waiting.pop(0)()
        return self.exchange(None, since)


@pytest.fixture
def crowded() -> CrowdedStore:
    store = CrowdedStore()
    commit = Commit("founder", 1, "founder", 0, (defined(ttl=12.0),))
    store.log("first").exchange(Outgoing("f", codec.encode(commit)), 0)
    return store


@pytest.mark.parametrize(("asked", "expected"), [(None, 8.0), (2.0, 2.0)])
def test_reports_linger_as_long_as_a_crowded_log_says_unless_somebody_knows_better(
    crowded: CrowdedStore, clock: Clock, asked: float | None, expected: float
) -> None:
    peer = Peer(crowded, linger=asked, clock=clock, threaded=False, describe=dict)
    driver = peer.log("first")
    peer.commit(driver, TrialCreate())
    draft(peer, driver, 0)
    tick_for(peer, clock, expected - 0.1)
    assert driver.session.has_pending
    tick_for(peer, clock, 0.3)
    assert not driver.session.has_pending
    crowded.flush_interval = 0.5
    draft(peer, driver, 1)
    tick_for(peer, clock, min(expected, 1.0) - 0.2)
    assert driver.session.has_pending, "a second at least"
    peer.close()


def test_reports_do_not_linger_until_the_trial_seems_stuck(crowded: CrowdedStore, clock: Clock) -> None:
    define = StudyDefine("s", ("minimize",), Policy(progress_timeout=10.0))
    log = crowded.log("watched")
    log.exchange(Outgoing("f", codec.encode(Commit("founder", 1, "founder", 0, (define,)))), 0)
    peer = Peer(crowded, clock=clock, threaded=False, describe=dict)
    driver = peer.log("watched")
    peer.commit(driver, TrialCreate())
    assert driver.session.flush_interval == 2.5
    peer.close()


def test_reports_leave_at_once_when_flushed(crowded: CrowdedStore, clock: Clock) -> None:
    peer = Peer(crowded, clock=clock, threaded=False, describe=dict)
    driver = peer.log("first")
    peer.commit(driver, TrialCreate())
    for step in range(3):
        draft(peer, driver, step)
    peer.flush()
    assert not driver.session.has_pending
    assert reports(crowded, "first") == dict.fromkeys(range(3), 1.0)
    peer.close()


def test_what_is_queued_while_a_commit_waits_for_its_turn_goes_along(crowded: CrowdedStore, clock: Clock) -> None:
    peer = Peer(crowded, clock=clock, threaded=False, describe=dict)
    driver = peer.log("first")
    peer.commit(driver, TrialCreate())
    before = len(everything(crowded.log("first")))
    late: list[PendingCommit] = []
    crowded.while_waiting = [lambda: late.append(peer.put(driver, TrialCreate())) for _ in range(3)]
    peer.commit(driver, TrialCreate())
    assert [ticket.verdicts[0].number for ticket in late if ticket.verdicts] == [2, 3, 4]
    assert len(everything(crowded.log("first"))) == before + 1
    peer.close()


def test_a_thread_whose_records_another_has_sent_waits_for_no_further_exchange(clock: Clock) -> None:
    """With a plain lock, the thread that has just exchanged takes it again before the others wake."""
    entered, go_on = threading.Event(), threading.Event()

    class Slow(CrowdedLog):
        def wait_turn(self, since: int) -> ExchangeResult:
            entered.set()
            assert go_on.wait(30)
            go_on.clear()
            return ExchangeResult([])

    store = CrowdedStore()
    log = store.log("first")
    log.exchange(Outgoing("f", codec.encode(Commit("founder", 1, "founder", 0, (defined(),)))), 0)
    log.__class__ = Slow
    store.log = lambda _: log  # type: ignore[method-assign]
    peer = Peer(store, threaded=False, describe=dict)
    driver = peer.log("first")
    peer.pull(driver)
    told: list[object] = []
    first = threading.Thread(target=lambda: told.append(peer.commit(driver, TrialCreate())), daemon=True)
    first.start()
    assert entered.wait(30)
    entered.clear()
    second = threading.Thread(target=lambda: told.append(peer.commit(driver, TrialCreate())), daemon=True)
    second.start()
    until(lambda: len(driver.session.queued) == 3)  # with the introduction
    greedy = threading.Thread(target=peer.pull, args=(driver,), daemon=True)
    go_on.set()
    greedy.start()
    for thread in (first, second):
        thread.join(30)
        assert not thread.is_alive()
    assert len(told) == 2
    greedy.join(30)
    peer.close()


def test_what_is_queued_while_this_process_gets_another_name_is_said_under_the_new_one(peer: Peer) -> None:
    driver = drivers_of(peer)[0]
    before, lock = peer.uuid, driver.lock

    class Late:
        """A lock that another thread holds until it has found that another process uses the same name."""

        def __enter__(self) -> None:
            driver.lock = lock
            peer._take_another_name()
            peer.pull(driver)
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    driver.lock = Late()  # type: ignore[assignment]
    pending = peer.put(driver, StudySet(user={"a": "b"}))

    assert pending.owner == peer.uuid != before


def test_a_join_that_breaks_half_way_is_no_join(store: MemoryStore) -> None:
    """Half of a log is true of no moment: nobody may read it as if it were."""
    log = store.log("first")
    for i in range(4):
        log.exchange(Outgoing(str(i), codec.encode(Commit("other", i + 1, "other", 0, (TrialCreate(),)))), 0)
    whole = log.exchange

    def half(outgoing: Outgoing | None, since: int, beat: object = None) -> ExchangeResult:
        if since >= 2:
            raise StoreUnreachable
        return ExchangeResult(whole(None, since).entries[:2], more=True)

    peer = Peer(store, threaded=False, describe=dict, patience=0.0)
    driver = peer.log("first")
    log.exchange = half  # type: ignore[assignment]
    for _ in range(2):
        with pytest.raises(StoreUnreachable):
            peer.pull(driver)
        assert not driver.session.joined
    with pytest.raises(StoreUnreachable):
        peer.refresh_for_reading(driver)
    log.exchange = whole  # type: ignore[method-assign]
    peer.pull(driver)
    assert driver.session.joined
    assert len(driver.state.trials) == 4
    peer.close()


def test_what_was_not_sent_when_a_call_gave_up_is_sent_at_the_next_contact(store: MemoryStore, clock: Clock) -> None:
    faulty = FaultyStore(store, [None, None, Fault.REFUSE])
    peer = Peer(faulty, clock=clock, threaded=False, describe=dict, patience=0.0)
    driver = peer.log("first")
    peer.commit(driver, TrialCreate())
    with pytest.raises(StoreUnreachable):
        peer.commit(driver, TrialFinish(0, 1, COMPLETE, (3.0,)))
    tick_for(peer, clock, 5.0)
    assert driver.state.trials[0].values == (3.0,)
    peer.close()


def test_who_waits_for_a_store_that_does_not_answer_is_told_why_once(
    store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(caller_module, "time", SimpleNamespace(sleep=sleep))
    peer = Peer(FaultyStore(store, [Fault.REFUSE] * 1000), clock=clock, threaded=False, describe=dict, patience=20.0)
    driver = peer.log("first")
    with pytest.raises(StoreUnreachable) as raised:
        peer.catch_up(driver)
    assert caplog.messages == [f"still trying, for 20 s in all: {raised.value}"]
    peer.patience = 2.0
    caplog.clear()
    with pytest.raises(StoreUnreachable):
        peer.catch_up(driver)
    assert caplog.messages == [], "it is told soon enough by the error"
    peer.close()


def test_the_scheduler_reads_a_state_that_other_threads_change(store: MemoryStore, clock: Clock) -> None:
    """Looking at the running trials while another thread starts and ends some must not stumble."""
    peer = Peer(store, clock=clock, threaded=False, describe=dict)
    driver = peer.log("first")
    peer.commit(driver, TrialCreate())
    other = Peer(store, threaded=False, describe=dict)
    busy = other.log("first")
    for _ in range(300):
        other.put(busy, TrialCreate(prefer_waiting=True))
    other.pull(busy)
    done = threading.Event()
    errors: list[BaseException] = []

    def look() -> None:
        try:
            while not done.is_set():
                clock.now += 12.0
                owners, state = driver.session.owners, driver.state
                watched = owners.watched(state, frozenset())
                owners.look(state, store.beats(watched), watched, spare=frozenset(), now=clock.now)
                owners.resting(state, clock.now)
                peer.doubted_until(driver, other.uuid, since=0.0)
        except BaseException as error:  # noqa: BLE001  # it is looked at below
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        looker = threading.Thread(target=look)
        looker.start()
        for number in range(300):
            peer.commit(driver, TrialCreate())
            other.commit(busy, TrialFinish(number + 1, 1, COMPLETE, (1.0,)), StudySet())
            if errors:
                break
    finally:
        done.set()
        sys.setswitchinterval(interval)
        looker.join(30)
    assert errors == []


def test_an_adopted_owner_is_beaten_for_however_often_this_peer_exchanges(
    store: MemoryStore, clock: Clock, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where beats ride along, this peer's own does: the other's has to be sent by itself."""
    monkeypatch.setattr(MemoryStore, "piggybacks_heartbeats", True)
    driver = drivers_of(peer)[0]
    parent = Commit("parent", 1, "parent", 0, (TrialCreate(),))
    store.log("first").exchange(Outgoing("p", codec.encode(parent)), 0)
    peer.adopt("parent", "first", 1)
    seen = set()
    for _ in range(24):  # six ttls, with an exchange every quarter of one
        peer.pull(driver)
        tick_for(peer, clock, 3.0)
        seen.add(store.beats(["parent"]).get("parent"))
    assert len(seen - {None}) >= 12


def test_an_owner_is_beaten_for_as_long_as_the_trial_runs_that_was_adopted(
    store: MemoryStore, clock: Clock, peer: Peer
) -> None:
    """A parent that was killed may have left other trials, which are to be taken over, also if nobody else is left."""
    driver = drivers_of(peer)[0]
    peer.act_for(frozenset({"parent"}))
    parent = Commit("parent", 1, "parent", 0, (TrialCreate(), TrialCreate()))
    store.log("first").exchange(Outgoing("p", codec.encode(parent)), 0)
    peer.adopt("parent", "first", 1)
    tick_for(peer, clock, 12.0)
    before = store.beats(["parent"])
    assert before
    peer.commit(driver, TrialFinish(1, 1, COMPLETE, (1.0,)), owner="parent")
    tick_for(peer, clock, 36.0)
    assert peer.adopted == set()
    assert [lease.why for lease in driver.state.trials[2].history] == ["its owner fell silent"]


def test_adopted_owners_are_listed_while_another_thread_adopts_one(peer: Peer) -> None:
    drivers_of(peer)
    others = ["another"]

    class Owner(str):
        """Another thread adopts a trial while this name is looked at."""

        __slots__ = ()

        def __hash__(self) -> int:
            if others and listing:
                peer.adopt(others.pop(), "first", 98)
            return super().__hash__()

    listing = False
    peer.adopt(Owner("parent"), "first", 99)
    listing = True
    assert "parent" in peer.adopted
    assert peer.adopted == {"parent", "another"}


def test_what_was_spooled_is_sent_again_until_the_log_holds_it(
    store: MemoryStore, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may answer with a part of what is new, and not have appended yet."""
    exchange, pushed = MemoryLog.exchange, list[str]()

    def hesitant(log: MemoryLog, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        if outgoing is None:
            return exchange(log, None, since, beat)
        pushed.append(outgoing.nonce)
        if len(pushed) > 1:
            return exchange(log, outgoing, since, beat)
        return ExchangeResult(exchange(log, None, since, beat).entries[:1], more=True)

    monkeypatch.setattr(MemoryLog, "exchange", hesitant)
    driver = peer.log("first")
    spooled = codec.encode(Commit("gone", 1, "gone", 0, (TrialCreate(),)))
    peer.spool.append(driver, [Outgoing("gone:1", spooled)])
    assert pushed == ["gone:1"] * 2
    assert [entry.payload for entry in everything(store.log("first"))].count(spooled) == 1


class SlowSnapshots(MemoryStore):
    """A store in which a snapshot takes until `go`."""

    snapshots = True

    def __init__(self) -> None:
        super().__init__("slow snapshots")
        self.go, self.writing = threading.Event(), threading.Event()

    def log(self, uuid: str) -> MemoryLog:
        log = super().log(uuid)

        def slow(_lsn: int, _data: bytes) -> None:
            self.writing.set()
            self.go.wait(60.0)

        log.put_snapshot = slow  # type: ignore[method-assign]
        return log


def test_no_beat_waits_for_a_snapshot() -> None:
    store = SlowSnapshots()
    define = Commit("creator", 1, "creator", 0, (StudyDefine("study", ("minimize",), Policy(ttl=0.3)),))
    store.log("study").exchange(Outgoing("creator:1", codec.encode(define)), 0)
    peer = Peer(store, describe=dict)
    log = peer.log("study")
    peer.introduce(log)
    peer.commit(log, TrialCreate())
    log.session.snapshot_due = True
    peer.jobs.wake(peer._snapshots)
    until(store.writing.is_set)
    before = store.beats([peer.uuid])
    until(lambda: store.beats([peer.uuid]) != before)
    assert not store.go.is_set()
    store.go.set()
    peer.close()


class CountingStore(MemoryStore):
    """Remembers whose beats were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        asked = list(peers)
        self.read += asked
        return super().beats(asked)


def _running(store: MemoryStore, clock: Clock, owner: str) -> tuple[Peer, LogClient[State]]:
    """A peer that watches a trial that this owner runs."""
    for commit in (
        Commit("founder", 1, "founder", 0, (defined(ttl=12.0),)),
        Commit(owner, 1, owner, 0, (TrialCreate(), TrialCreate())),
    ):
        store.log("one").exchange(Outgoing(f"{commit.writer}:1", codec.encode(commit)), 0)
    peer = Peer(store, linger=1.0, clock=clock, threaded=False, describe=dict, patience=0.0)
    log = peer.log("one")
    peer.introduce(log)
    return peer, log


def test_the_beats_of_an_owner_that_writes_to_the_log_are_not_read(clock: Clock) -> None:
    store = CountingStore()
    peer, log = _running(store, clock, "ann")
    tick_for(peer, clock, 4.0)
    assert "ann" in store.read
    store.read.clear()
    for seq in range(2, 40):  # ann beats no more, and reports
        commit = Commit("ann", seq, "ann", 0, (TrialSet(0, 1, reports={seq: 0.5}),))
        store.log("one").exchange(Outgoing(f"ann:{seq}", codec.encode(commit)), 0)
        peer.pull(log)
        tick_for(peer, clock, 1.0)
    assert "ann" not in store.read
    assert log.state.trials[0].owner == log.state.trials[1].owner == "ann"
    tick_for(peer, clock, 12.0 * 1.25 + 0.1)
    assert "ann" in store.read
    assert log.state.counts[RUNNING] == 0, "silent for a ttl: reclaimed"
    peer.close()


def test_the_beats_of_an_owner_whose_trial_is_new_are_not_read_if_it_has_just_written(clock: Clock) -> None:
    """Each of its trials is shorter than the time between two looks."""
    store = CountingStore()
    peer, log = _running(store, clock, "ann")
    tick_for(peer, clock, 4.0)
    store.read.clear()
    for turn in range(8):
        name = f"bob-{turn}"
        commit = Commit(name, 1, name, 0, (TrialCreate(),))
        store.log("one").exchange(Outgoing(f"{name}:1", codec.encode(commit)), 0)
        peer.pull(log)
        for _ in range(4):  # no more than one look
            tick(peer)
            clock.now += 0.3
        end = Commit(name, 2, name, 0, (TrialFinish(len(log.state.trials) - 1, 1, COMPLETE, (0.5,)),))
        store.log("one").exchange(Outgoing(f"{name}:2", codec.encode(end)), 0)
        peer.pull(log)
    assert set(store.read) == {"ann"}
    peer.close()


def test_a_peer_is_introduced_before_its_trials_although_its_threads_ask_at_once(store: MemoryStore) -> None:
    """A lease whose peer is not known yet would belong to no site, and its GPU hours to no limit."""
    asked, go_on = threading.Event(), threading.Event()

    def describe() -> dict[str, str]:
        first = not asked.is_set()
        asked.set()
        if first:
            assert go_on.wait(20)
        return {"site": "north"}

    peer = Peer(store, threaded=False, describe=describe, patience=0.0)
    driver = peer.log("first")
    slow = threading.Thread(target=peer.commit, args=(driver, TrialCreate()))
    slow.start()
    assert asked.wait(20)
    peer.commit(driver, TrialCreate())
    go_on.set()
    slow.join()
    peer.close()
    _, *commits = [codec.decode(entry.payload) for entry in everything(store.log("first"))]
    records = [type(record) for commit in commits for record in commit.records]
    assert records == [PeerJoin, TrialCreate, TrialCreate]


def test_a_caller_waits_no_longer_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("hopaas_p2p.peer.peer.time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    peer: Any = SimpleNamespace(clock=lambda: now[0], closed=False, silent_since=math.inf, jitter=random.Random(1))
    peer.has_given_up = lambda silent_since: False
    caller = Caller(peer, 20.0, 0.0)
    with pytest.raises(StoreUnreachable):
        while True:
            caller.sleep_after(StoreUnreachable("the disk is full"))
    assert now[0] == pytest.approx(20.0)


@pytest.mark.parametrize("raised", [StoreUnreachable("the disk is full. It may be sent."), ValueError("another")])
def test_the_end_does_not_repeat_the_reason_for_which_the_program_ends(
    raised: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Peer) -> None:
        raise StoreUnreachable("the disk is full.")

    monkeypatch.setattr(Peer, "_send_and_confirm", fails)
    with pytest.raises(type(raised)), contextlib.closing(Peer(MemoryStore())):
        raise raised
    assert ("the disk is full" in caplog.text) == isinstance(raised, ValueError)


def test_what_was_told_is_kept_whatever_the_programs_own_error_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise AttributeError("no message")

    def fails(_: Peer) -> None:
        raise StoreUnreachable("the disk is full.")

    kept: list[object] = []
    monkeypatch.setattr(Peer, "_send_and_confirm", fails)
    monkeypatch.setattr(SpoolSender, "keep_all", lambda _, logs: kept.append(logs))
    with pytest.raises(Odd), contextlib.closing(Peer(MemoryStore())):
        raise Odd
    assert kept
