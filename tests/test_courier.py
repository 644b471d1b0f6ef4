"""The courier among studies that are deleted, locked or broken, and beside threads that do not wait for it."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from scribe import COMPLETE, defined

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, Policy, StudyDefine, StudySet, TrialCreate, TrialFinish
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import HopaasError, NewerFormat, StoreUnreachable, StudyDeleted
from hopaas_p2p.peer import exchanges
from hopaas_p2p.peer.courier import Courier
from hopaas_p2p.peer.membership import Membership
from hopaas_p2p.peer.outbox import Ticket
from hopaas_p2p.stores.base import Beat, Outgoing, Receipt
from hopaas_p2p.stores.memory import MemoryLog, MemoryStore
from hopaas_p2p.testing.commits import everything, sealed
from hopaas_p2p.testing.faults import Fault, FaultyStore
from tests.processes import until


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
def courier(store: MemoryStore, clock: Clock) -> Iterator[Courier]:
    courier = Courier(store, linger=1.0, clock=clock, threaded=False, describe=dict, patience=0.0)
    yield courier
    courier.close()


def members(courier: Courier) -> list[Membership[State]]:
    found = [courier.membership(number, uuid) for number, uuid in enumerate(("first", "second", "third"))]
    for membership in found:
        courier.commit(membership, TrialCreate())
    return found


def draft(courier: Courier, membership: Membership[State], step: int) -> None:
    membership.replica.draft(0, 1, courier.uuid).reports[step] = 1.0
    courier.note_draft(membership)


def reports(store: MemoryStore, uuid: str) -> dict[int, float]:
    state = Courier(store, threaded=False).membership(0, uuid)
    state.replica.exchange()
    return state.replica.state.trials[0].reports


def tick_for(courier: Courier, clock: Clock, seconds: float) -> None:
    """What the courier's thread does in this time, errors included."""
    end = clock.now + seconds
    while clock.now < end:
        try:
            pause = courier.tick()
        except HopaasError:
            pause = 5.0
        clock.now += max(pause, 0.01)


def destroy(store: MemoryStore) -> None:
    store.log("first").destroy()


def overtake(store: MemoryStore) -> None:
    store.log("first").exchange(Outgoing("new", sealed(b"\x91\x02")), 0)


@pytest.mark.parametrize("trouble", [destroy, overtake], ids=["deleted", "written by a newer version"])
def test_a_study_in_trouble_does_not_keep_the_courier_from_the_others(
    trouble: object, store: MemoryStore, courier: Courier, clock: Clock
) -> None:
    studies = members(courier)
    trouble(store)  # type: ignore[operator]
    for step, membership in enumerate(studies):
        draft(courier, membership, step)

    tick_for(courier, clock, 10.0)

    assert reports(store, "second") == {1: 1.0}
    assert reports(store, "third") == {2: 1.0}


@pytest.mark.parametrize("trouble", [destroy, overtake], ids=["deleted", "written by a newer version"])
def test_a_farewell_reaches_the_other_studies_too(
    trouble: object, store: MemoryStore, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    studies = members(courier)
    trouble(store)  # type: ignore[operator]
    for step, membership in enumerate(studies):
        draft(courier, membership, step)

    with caplog.at_level(logging.WARNING, "hopaas_p2p"):
        courier.close()
        told = len(caplog.records)
        courier.say_farewell()  # as at the end of the process

    assert reports(store, "second") == {1: 1.0}
    assert reports(store, "third") == {2: 1.0}
    assert told > 0
    assert len(caplog.records) == told


def test_a_deleted_study_is_told_once_by_the_courier_and_at_every_call(
    store: MemoryStore, courier: Courier, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    first, *_ = members(courier)
    destroy(store)
    draft(courier, first, 0)
    with caplog.at_level(logging.WARNING, "hopaas_p2p"):
        tick_for(courier, clock, 60.0)
    assert len([record for record in caplog.records if "deleted" in record.getMessage()]) == 1
    for _ in range(2):
        with pytest.raises(StudyDeleted):
            courier.commit(first, TrialFinish(0, 1, COMPLETE, (1.0,)))


def test_a_newer_format_is_told_at_every_call(store: MemoryStore, courier: Courier) -> None:
    first, *_ = members(courier)
    overtake(store)
    for _ in range(2):
        with pytest.raises(NewerFormat):
            courier.commit(first, TrialFinish(0, 1, COMPLETE, (1.0,)))
    assert len(everything(store.log("first"))) == 4  # the first call could not know yet, the second wrote nothing


def test_reports_linger_for_company_and_leave_by_themselves(store: MemoryStore, courier: Courier, clock: Clock) -> None:
    first, *_ = members(courier)
    before = len(everything(store.log("first")))
    for step in range(5):
        draft(courier, first, step)
        clock.now += 0.1
        courier.tick()
    assert len(everything(store.log("first"))) == before
    tick_for(courier, clock, 3.0)
    assert len(everything(store.log("first"))) == before + 1
    assert reports(store, "first") == dict.fromkeys(range(5), 1.0)


class CrowdedStore(MemoryStore):
    """Its logs say how long reports had better wait, and when a commit is welcome."""

    def __init__(self) -> None:
        super().__init__()
        self.linger = 8.0
        self.while_waiting: list[Callable[[], object]] = []

    def log(self, uuid: str) -> MemoryLog:
        log = super().log(uuid)
        log.__class__ = CrowdedLog
        log.store = self  # type: ignore[attr-defined]
        return log


class CrowdedLog(MemoryLog):
    store: CrowdedStore

    @property
    def linger(self) -> float:
        return self.store.linger

    def approach(self, since: int) -> Receipt:
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
    courier = Courier(crowded, linger=asked, clock=clock, threaded=False, describe=dict)
    membership = courier.membership(0, "first")
    courier.commit(membership, TrialCreate())
    draft(courier, membership, 0)
    tick_for(courier, clock, expected - 0.1)
    assert membership.replica.waiting
    tick_for(courier, clock, 0.3)
    assert not membership.replica.waiting
    crowded.linger = 0.5
    draft(courier, membership, 1)
    tick_for(courier, clock, min(expected, 1.0) - 0.2)
    assert membership.replica.waiting, "a second at least"
    courier.close()


def test_reports_do_not_linger_until_the_trial_seems_stuck(crowded: CrowdedStore, clock: Clock) -> None:
    define = StudyDefine("s", ("minimize",), Policy(progress_timeout=10.0))
    log = crowded.log("watched")
    log.exchange(Outgoing("f", codec.encode(Commit("founder", 1, "founder", 0, (define,)))), 0)
    courier = Courier(crowded, clock=clock, threaded=False, describe=dict)
    membership = courier.membership(0, "watched")
    courier.commit(membership, TrialCreate())
    assert courier.linger_of(membership) == 2.5
    courier.close()


def test_reports_leave_at_once_when_flushed(crowded: CrowdedStore, clock: Clock) -> None:
    courier = Courier(crowded, clock=clock, threaded=False, describe=dict)
    membership = courier.membership(0, "first")
    courier.commit(membership, TrialCreate())
    for step in range(3):
        draft(courier, membership, step)
    courier.flush()
    assert not membership.replica.waiting
    assert reports(crowded, "first") == dict.fromkeys(range(3), 1.0)
    courier.close()


def test_what_is_queued_while_a_commit_waits_for_its_turn_goes_along(crowded: CrowdedStore, clock: Clock) -> None:
    courier = Courier(crowded, clock=clock, threaded=False, describe=dict)
    membership = courier.membership(0, "first")
    courier.commit(membership, TrialCreate())
    before = len(everything(crowded.log("first")))
    late: list[Ticket] = []
    crowded.while_waiting = [lambda: late.append(courier.put(membership, TrialCreate())) for _ in range(3)]
    courier.commit(membership, TrialCreate())
    assert [ticket.verdicts[0].number for ticket in late if ticket.verdicts] == [2, 3, 4]
    assert len(everything(crowded.log("first"))) == before + 1
    courier.close()


def test_a_thread_whose_records_another_has_sent_waits_for_no_further_exchange(clock: Clock) -> None:
    """With a plain lock, the thread that has just exchanged takes it again before the others wake."""
    entered, go_on = threading.Event(), threading.Event()

    class Slow(CrowdedLog):
        def approach(self, since: int) -> Receipt:
            entered.set()
            assert go_on.wait(30)
            go_on.clear()
            return Receipt([])

    store = CrowdedStore()
    log = store.log("first")
    log.exchange(Outgoing("f", codec.encode(Commit("founder", 1, "founder", 0, (defined(),)))), 0)
    log.__class__ = Slow
    store.log = lambda _: log  # type: ignore[method-assign]
    courier = Courier(store, threaded=False, describe=dict)
    membership = courier.membership(0, "first")
    courier.pull(membership)
    told: list[object] = []
    first = threading.Thread(target=lambda: told.append(courier.commit(membership, TrialCreate())), daemon=True)
    first.start()
    assert entered.wait(30)
    entered.clear()
    second = threading.Thread(target=lambda: told.append(courier.commit(membership, TrialCreate())), daemon=True)
    second.start()
    until(lambda: len(membership.replica._outbox._queue) == 3)  # with the introduction
    greedy = threading.Thread(target=courier.pull, args=(membership,), daemon=True)
    go_on.set()
    greedy.start()
    for thread in (first, second):
        thread.join(30)
        assert not thread.is_alive()
    assert len(told) == 2
    greedy.join(30)
    courier.close()


def test_a_join_that_breaks_half_way_is_no_join(store: MemoryStore) -> None:
    """Half of a log is true of no moment: nobody may read it as if it were."""
    log = store.log("first")
    for i in range(4):
        log.exchange(Outgoing(str(i), codec.encode(Commit("other", i + 1, "other", 0, (TrialCreate(),)))), 0)
    whole = log.exchange

    def half(outgoing: Outgoing | None, since: int, beat: object = None) -> Receipt:
        if since >= 2:
            raise StoreUnreachable
        return Receipt(whole(None, since).entries[:2], more=True)

    courier = Courier(store, threaded=False, describe=dict, patience=0.0)
    membership = courier.membership(0, "first")
    log.exchange = half  # type: ignore[assignment]
    for _ in range(2):
        with pytest.raises(StoreUnreachable):
            courier.pull(membership)
        assert not membership.replica.joined
    with pytest.raises(StoreUnreachable):
        courier.refresh_for_reading(membership)
    log.exchange = whole  # type: ignore[method-assign]
    courier.pull(membership)
    assert membership.replica.joined
    assert len(membership.replica.state.trials) == 4
    courier.close()


def test_what_was_not_sent_when_a_call_gave_up_is_sent_at_the_next_contact(store: MemoryStore, clock: Clock) -> None:
    faulty = FaultyStore(store, [None, None, Fault.REFUSE])
    courier = Courier(faulty, clock=clock, threaded=False, describe=dict, patience=0.0)
    membership = courier.membership(0, "first")
    courier.commit(membership, TrialCreate())
    with pytest.raises(StoreUnreachable):
        courier.commit(membership, TrialFinish(0, 1, COMPLETE, (3.0,)))
    tick_for(courier, clock, 5.0)
    assert membership.replica.state.trials[0].values == (3.0,)
    courier.close()


def test_who_waits_for_a_store_that_does_not_answer_is_told_why_once(
    store: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(exchanges, "time", SimpleNamespace(sleep=sleep))
    courier = Courier(
        FaultyStore(store, [Fault.REFUSE] * 1000), clock=clock, threaded=False, describe=dict, patience=20.0
    )
    membership = courier.membership(0, "first")
    with pytest.raises(StoreUnreachable) as raised:
        courier.catch_up(membership)
    assert caplog.messages == [f"still trying, for 20 s in all: {raised.value}"]
    courier.patience = 2.0
    caplog.clear()
    with pytest.raises(StoreUnreachable):
        courier.catch_up(membership)
    assert caplog.messages == [], "it is told soon enough by the error"
    courier.close()


def test_the_courier_reads_a_state_that_other_threads_change(store: MemoryStore, clock: Clock) -> None:
    """Looking at the running trials while another thread starts and ends some must not stumble."""
    courier = Courier(store, clock=clock, threaded=False, describe=dict)
    membership = courier.membership(0, "first")
    courier.commit(membership, TrialCreate())
    other = Courier(store, threaded=False, describe=dict)
    busy = other.membership(0, "first")
    for _ in range(300):
        other.put(busy, TrialCreate(prefer_waiting=True))
    other.pull(busy)
    done = threading.Event()
    errors: list[BaseException] = []

    def look() -> None:
        try:
            while not done.is_set():
                clock.now += 12.0
                courier._keeper.due(0, membership.replica.state, spare=frozenset(), now=clock.now)
                courier._keeper.resting(0, membership.replica.state, now=clock.now)
                courier.someone_may_be_dead(membership)
        except BaseException as error:  # noqa: BLE001  # it is looked at below
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        looker = threading.Thread(target=look)
        looker.start()
        for number in range(300):
            courier.commit(membership, TrialCreate())
            other.commit(busy, TrialFinish(number + 1, 1, COMPLETE, (1.0,)), StudySet())
            if errors:
                break
    finally:
        done.set()
        sys.setswitchinterval(interval)
        looker.join(30)
    assert errors == []


def test_an_adopted_owner_is_beaten_for_however_often_this_peer_exchanges(
    store: MemoryStore, clock: Clock, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where beats ride along, this peer's own does: the other's has to be sent by itself."""
    monkeypatch.setattr(MemoryStore, "beats_ride", True)
    membership = members(courier)[0]
    courier.adopted.add("parent")
    seen = set()
    for _ in range(24):  # six ttls, with an exchange every quarter of one
        courier.pull(membership)
        tick_for(courier, clock, 3.0)
        seen.add(store.beats(["parent"]).get("parent"))
    assert len(seen - {None}) >= 12


def test_what_was_spooled_is_sent_again_until_the_log_holds_it(
    store: MemoryStore, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may answer with a part of what is new, and not have appended yet."""
    exchange, pushed = MemoryLog.exchange, list[str]()

    def hesitant(log: MemoryLog, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> Receipt:
        if outgoing is None:
            return exchange(log, None, since, beat)
        pushed.append(outgoing.nonce)
        if len(pushed) > 1:
            return exchange(log, outgoing, since, beat)
        return Receipt(exchange(log, None, since, beat).entries[:1], more=True)

    monkeypatch.setattr(MemoryLog, "exchange", hesitant)
    membership = courier.membership(0, "first")
    spooled = codec.encode(Commit("gone", 1, "gone", 0, (TrialCreate(),)))
    membership.replica.send_for_another("gone:1", spooled)
    assert pushed == ["gone:1"] * 2
    assert [entry.payload for entry in everything(store.log("first"))].count(spooled) == 1
