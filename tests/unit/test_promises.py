"""Promises that no other file holds: clocks that are wrong by days, the time until a trial is back, old logs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import (
    Commit,
    Policy,
    StudyDefine,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialSet,
    TrialState,
)
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.peer.session import LogClient
from hopaas_p2p.stores.base import Beat, ExchangeResult, Outgoing, Store
from hopaas_p2p.stores.memory import MemoryLog, MemoryStore
from tests.support.ticking import tick

GOLDEN = Path(__file__).parents[1] / "golden"
TTL = 100.0
DAY = 86_400_000_000  # microseconds


class _Time:
    """Seconds that pass when the test says so."""

    now = 0.0


def _peer(store: Store, time: _Time, *, ahead: float = 0.0, wrong_by: int = 0) -> tuple[Peer, LogClient[State]]:
    """A peer with a monotonic clock that begins anywhere, and a wall clock that is wrong."""
    peer = Peer(
        store,
        clock=lambda: time.now + ahead,
        now_us=lambda: round(time.now * 1e6) + wrong_by,
        threaded=False,
        describe=dict,
    )
    return peer, peer.log("study")


@pytest.fixture
def store() -> Store:
    return MemoryStore("promises")


def _define(store: Store, name: str = "study") -> None:
    define = Commit("creator", 1, "creator", 0, (StudyDefine(name, ("minimize",), Policy(ttl=TTL)),))
    store.log(name).exchange(Outgoing("creator:1", codec.encode(define)), 0)


def _wait(time: _Time, peer: Peer, *, until: Callable[[], bool]) -> float:
    """Let the scheduler's thread work until something is so; the seconds that took."""
    began = time.now
    while not until():
        time.now += min(1.0, max(0.01, tick(peer)))
        assert time.now - began < 10 * TTL, "it never came"
    return time.now - began


def test_a_study_whose_peers_see_each_other_too_late_for_its_ttl_says_from_which_ttl_on_they_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MemoryStore, "freshness", 5.0)
    for name, ttl in (("late", 4.0), ("in-time", 20.0)):
        hopaas_p2p.open_study("memory://ttl", name, policy=hopaas_p2p.StudyPolicy(lease_ttl=ttl)).close()
    (warning,) = [record.getMessage() for record in caplog.records if "lease_ttl" in record.getMessage()]
    assert warning.startswith("lease_ttl is 4 s")
    assert warning.endswith("use at least lease_ttl=20")


@pytest.mark.parametrize("died_after", [0.0, 1.0, TTL / 3, TTL * 0.9, 5 * TTL])
def test_a_dead_owners_trial_is_back_within_twice_the_ttl(store: Store, died_after: float) -> None:
    time = _Time()
    _define(store)
    owner, of_owner = _peer(store, time, ahead=5e5)
    owner.commit(of_owner, TrialCreate())
    observer, of_observer = _peer(store, time, ahead=3e5)
    observer.commit(of_observer, TrialCreate())
    alive_until = time.now + died_after
    while time.now < alive_until:
        tick(owner)
        tick(observer)
        time.now += 1.0

    took = _wait(time, observer, until=lambda: bool(of_observer.state.waiting))

    assert took <= 2 * TTL
    lost = of_observer.state.trials[0]
    assert lost.state is TrialState.FAIL
    assert lost.retried_by in of_observer.state.waiting


@pytest.mark.parametrize("wrong_by", [-400 * DAY, -DAY, DAY, 400 * DAY])
def test_a_clock_that_is_wrong_by_days_costs_no_peer_its_trial_and_saves_no_dead_one(
    store: Store, wrong_by: int
) -> None:
    time = _Time()
    _define(store)
    owner, of_owner = _peer(store, time, ahead=7e5, wrong_by=wrong_by)
    observer, of_observer = _peer(store, time, wrong_by=-wrong_by)
    owner.commit(of_owner, TrialCreate())
    observer.commit(of_observer, TrialCreate())

    for _ in range(round(10 * TTL)):
        time.now += 1.0
        tick(owner)
        tick(observer)
    observer.pull(of_observer)

    assert of_observer.state.trials[0].state is TrialState.RUNNING
    assert owner.lease_valid(of_owner, owner.uuid)
    assert _wait(time, observer, until=lambda: bool(of_observer.state.waiting)) <= 2 * TTL
    (verdict,) = owner.commit(of_owner, TrialFinish(0, 1, TrialState.COMPLETE, (0.5,)))
    assert verdict.refusal == "late"


def _owner_in_two_studies(store: Store) -> tuple[_Time, Peer, LogClient[State], LogClient[State]]:
    """A clock, and a peer that has begun trial 0 of two studies, with its logs."""
    time = _Time()
    _define(store)
    _define(store, "other")
    owner, of_owner = _peer(store, time)
    owner.commit(of_owner, TrialCreate())
    other = owner.log("other")
    owner.commit(other, TrialCreate())
    tick(owner)
    return time, owner, of_owner, other


@pytest.mark.parametrize("rides", [True, False])
def test_a_beat_after_a_silence_does_not_make_a_lease_valid_before_the_log_was_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, rides: bool
) -> None:
    monkeypatch.setattr(MemoryStore, "piggybacks_heartbeats", rides)
    time, owner, of_owner, other = _owner_in_two_studies(store)
    assert owner.lease_valid(of_owner, owner.uuid)
    observer, of_observer = _peer(store, time)
    observer.commit(of_observer, TrialCreate())

    _wait(time, observer, until=lambda: bool(of_observer.state.waiting))
    assert not owner.lease_valid(of_owner, owner.uuid)
    of_owner.session.suspended_until = time.now + 1.0  # its log is not read in this round
    owner.commit(other, TrialCreate())
    tick(owner)

    assert owner.lease_valid(other, owner.uuid)
    assert not owner.lease_valid(of_owner, owner.uuid)
    owner.pull(of_owner)
    assert of_owner.state.trials[0].state is TrialState.FAIL


def _holds(peer: Peer, log: LogClient[State], owner: str) -> bool:
    """Whether this process takes the lease of trial 0 for valid, as a trial does."""
    return peer.lease_valid(log, owner) and log.state.trials[0].state is TrialState.RUNNING


@pytest.mark.parametrize("rides", [True, False])
def test_beats_that_leave_in_time_and_arrive_too_late_keep_no_lease_valid(
    store: Store, monkeypatch: pytest.MonkeyPatch, rides: bool
) -> None:
    monkeypatch.setattr(MemoryStore, "piggybacks_heartbeats", rides)
    time, owner, of_owner, other = _owner_in_two_studies(store)
    observer, of_observer = _peer(store, time)
    observer.commit(of_observer, TrialCreate())
    for _ in range(round(TTL * 0.3)):
        tick(observer)
        time.now += 1.0
    assert owner.lease_valid(of_owner, owner.uuid)
    beat, exchange, slow = MemoryStore.beat, MemoryLog.exchange, []

    def arrive_late(self: MemoryStore, one: Beat) -> None:
        if one.peer == owner.uuid and not slow:
            slow.append(one)  # it left 0.3 ttl after the one before, and arrives 0.8 ttl later
            for _ in range(round(TTL * 0.8)):
                time.now += 1.0
                tick(observer)
        beat(self, one)

    def bring_a_beat(
        self: MemoryLog, outgoing: Outgoing | None, since: int, beat: Beat | None = None
    ) -> ExchangeResult:
        if beat is not None:
            store.beat(beat)
        return exchange(self, outgoing, since)

    monkeypatch.setattr(MemoryStore, "beat", arrive_late)
    monkeypatch.setattr(MemoryLog, "exchange", bring_a_beat)
    of_owner.session.suspended_until = time.now + TTL  # its log is not read meanwhile
    of_owner.session.exchanged_at = time.now  # it had not changed a moment before
    owner._next_beat = 0.0
    owner.commit(other, TrialCreate())
    tick(owner)

    assert slow
    assert of_observer.state.trials[0].state is TrialState.FAIL
    assert not _holds(owner, of_owner, owner.uuid)
    tick(owner)
    assert not _holds(owner, of_owner, owner.uuid)


def test_a_trial_that_comes_to_a_process_has_no_valid_lease_before_that_process_has_beaten_for_its_owner(
    store: Store,
) -> None:
    time = _Time()
    _define(store)
    dead, of_dead = _peer(store, time)
    dead.commit(of_dead, TrialCreate())
    heir, of_heir = _peer(store, time)
    heir.commit(of_heir, TrialCreate())
    for _ in range(round(TTL)):  # nobody else looks
        time.now += 0.9
        heir._beat_if_due(time.now)
        heir.pull(of_heir)
    heir.act_for(frozenset({dead.uuid}))
    heir.adopt(dead.uuid, "study", 0)

    assert heir.lease_valid(of_heir, heir.uuid)
    assert not heir.lease_valid(of_heir, dead.uuid)
    tick(heir)
    assert not heir.lease_valid(of_heir, dead.uuid) or of_heir.session.exchanged_at >= time.now
    heir.pull(of_heir)
    assert heir.lease_valid(of_heir, dead.uuid)
    assert heir.lease_valid(of_heir, heir.uuid)


def test_a_process_that_only_reports_on_a_trial_which_came_to_it_keeps_its_lease(store: Store) -> None:
    time = _Time()
    _define(store)
    dead, of_dead = _peer(store, time)
    dead.commit(of_dead, TrialCreate())
    heir, of_heir = _peer(store, time)
    observer, of_observer = _peer(store, time)
    observer.commit(of_observer, TrialCreate())
    heir.act_for(frozenset({dead.uuid}))
    heir.pull(of_heir)
    heir.adopt(dead.uuid, "study", 0)

    while time.now < 3 * TTL:
        time.now += 1.0
        tick(heir)
        tick(observer)

    observer.pull(of_observer)
    assert of_observer.state.trials[0].state is TrialState.RUNNING
    heir.pull(of_heir)
    assert heir.lease_valid(of_heir, dead.uuid)
    assert heir.uuid not in of_observer.state.peers


def test_an_owner_that_comes_back_while_an_observer_reads_the_log_again_keeps_its_trial(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = _Time()
    _define(store)
    owner, of_owner = _peer(store, time)
    owner.commit(of_owner, TrialCreate())
    observer, of_observer = _peer(store, time)
    observer.commit(of_observer, TrialCreate())
    beats, back = MemoryStore.beats, []

    def read_before_it_comes_back(self: MemoryStore, peers: Iterable[str]) -> dict[str, str]:
        found = beats(self, peers)
        if time.now >= TTL + 1.0 and not back:
            back.append(time.now)
            tick(owner)
            owner.pull(of_owner)
        return found

    monkeypatch.setattr(MemoryStore, "beats", read_before_it_comes_back)
    while time.now < 1.9 * TTL:
        time.now += 1.0
        tick(observer)

    assert back
    assert of_observer.state.trials[0].state is TrialState.RUNNING


def _when_it_takes_over(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> list[object]:
    """Do this once, when an observer that was stopped after its last look sends its takeover."""
    exchange, done = MemoryLog.exchange, list[object]()

    def arrive_late(self: MemoryLog, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        commit = None if outgoing is None else codec.decode(outgoing.payload)
        if isinstance(commit, Commit) and not done and any(isinstance(one, TrialReclaim) for one in commit.records):
            done.append(None)
            do()
        return exchange(self, outgoing, since, beat)

    monkeypatch.setattr(MemoryLog, "exchange", arrive_late)
    return done


@pytest.mark.parametrize("by", ["itself", "a child", "another trial"])
def test_a_takeover_that_comes_after_its_owner_has_written_again_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    time = _Time()
    _define(store)
    owner, of_owner = _peer(store, time)
    owner.commit(of_owner, TrialCreate(), TrialCreate())
    observer, of_observer = _peer(store, time)
    observer.commit(of_observer, TrialCreate())
    child, of_child = _peer(store, time)
    child.act_for(frozenset({owner.uuid}))
    writer, log = (child, of_child) if by == "a child" else (owner, of_owner)
    report = TrialSet(int(by == "another trial"), 1, reports={0: 1.0})
    came = _when_it_takes_over(monkeypatch, lambda: writer.commit(log, report, owner=owner.uuid))

    while time.now < 1.9 * TTL:  # it does not beat again
        time.now += 1.0
        tick(observer)

    assert came
    assert of_observer.state.trials[0].state is TrialState.RUNNING
    assert of_observer.state.refusals == {"alive": 2}
    assert _wait(time, observer, until=lambda: len(of_observer.state.waiting) == 2) <= TTL


def test_an_owner_whose_commit_arrives_while_an_observer_reads_the_log_again_is_alive_for_a_ttl_from_then(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = _Time()
    _define(store)
    owner, of_owner = _peer(store, time)
    owner.commit(of_owner, TrialCreate(), TrialCreate())
    observer, of_observer = _peer(store, time)
    observer.commit(of_observer, TrialCreate())
    beats, back = MemoryStore.beats, list[float]()

    def written_meanwhile(self: MemoryStore, peers: Iterable[str]) -> dict[str, str]:
        found = beats(self, peers)
        if time.now >= TTL + 1.0 and not back:
            back.append(time.now)
            owner.commit(of_owner, TrialSet(1, 1, reports={0: 1.0}))  # its beat is still on its way
        return found

    monkeypatch.setattr(MemoryStore, "beats", written_meanwhile)
    while not back or time.now < back[0] + 0.9 * TTL:
        time.now += 1.0
        tick(observer)

    assert of_observer.state.trials[0].state is TrialState.RUNNING
    assert of_observer.state.refusals == {}, "nothing is written that has to be refused"
    assert _wait(time, observer, until=lambda: bool(of_observer.state.waiting)) <= TTL


def test_an_owner_that_wrote_before_a_look_that_failed_is_alive_for_a_ttl_from_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = _Time()
    _define(store)
    owner, of_owner = _peer(store, time)
    owner.commit(of_owner, TrialCreate())
    observer, of_observer = _peer(store, time)
    observer.commit(of_observer, TrialCreate())
    beats, failed = MemoryStore.beats, list[float]()

    def fail_once(self: MemoryStore, peers: Iterable[str]) -> dict[str, str]:
        if time.now >= 0.9 * TTL and not failed:
            failed.append(time.now)
            raise StoreUnreachable
        return beats(self, peers)

    monkeypatch.setattr(MemoryStore, "beats", fail_once)
    while time.now < 1.7 * TTL:
        time.now += 1.0
        if time.now == 0.85 * TTL:
            owner.commit(of_owner, TrialSet(0, 1, reports={0: 1.0}))
            observer.pull(of_observer)
        tick(observer)

    assert failed
    assert of_observer.state.trials[0].state is TrialState.RUNNING


def test_a_trial_whose_report_arrives_while_an_observer_reads_the_log_again_is_not_stuck(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = _Time()
    define = StudyDefine("study", ("minimize",), Policy(ttl=TTL, progress_timeout=2 * TTL))
    store.log("study").exchange(Outgoing("creator:1", codec.encode(Commit("creator", 1, "creator", 0, (define,)))), 0)
    owner, of_owner = _peer(store, time)
    owner.commit(of_owner, TrialCreate())
    observer, of_observer = _peer(store, time)
    observer.commit(of_observer, TrialCreate())
    beats, reported = MemoryStore.beats, list[float]()

    def reported_meanwhile(self: MemoryStore, peers: Iterable[str]) -> dict[str, str]:
        if time.now >= 2 * TTL and not reported:
            reported.append(time.now)
            owner.commit(of_owner, TrialSet(0, 1, reports={0: 1.0}))
        return beats(self, peers)

    monkeypatch.setattr(MemoryStore, "beats", reported_meanwhile)
    while time.now < 3.9 * TTL:
        time.now += 1.0
        tick(owner)
        tick(observer)

    assert reported
    assert of_observer.state.trials[0].stop is None
    assert _wait(time, observer, until=lambda: of_observer.state.trials[0].stop is not None) <= TTL


def test_an_observer_that_is_stopped_while_it_reads_beats_has_seen_them_no_earlier_than_it_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = _Time()
    _define(store)
    owner, of_owner = _peer(store, time)
    owner.commit(of_owner, TrialCreate())
    observer, of_observer = _peer(store, time)
    observer.commit(of_observer, TrialCreate())
    tick(observer)
    beats, stopped = MemoryStore.beats, list[float]()

    def read_late(self: MemoryStore, peers: Iterable[str]) -> dict[str, str]:
        if not stopped:
            stopped.append(time.now)
            for _ in range(round(TTL * 0.45)):
                time.now += 1.0
                tick(owner)
        return beats(self, peers)

    monkeypatch.setattr(MemoryStore, "beats", read_late)
    while of_observer.state.trials[0].state is TrialState.RUNNING:
        time.now += 1.0
        tick(observer)

    assert stopped
    assert not owner.lease_valid(of_owner, owner.uuid)


_SUSPENDED = """
import time
asleep, real = 0.0, time.clock_gettime
monotonic = time.CLOCK_MONOTONIC  # stands still while the machine is suspended
time.clock_gettime = lambda clock: real(clock) + (0.0 if clock == monotonic else asleep)
import hopaas_p2p
study = hopaas_p2p.open_study("memory://suspended", "s", space={"x": hopaas_p2p.Float(0, 1)})
trial = study.ask()
assert trial.lease_valid
asleep = 3600.0
assert not trial.lease_valid
"""


def test_a_machine_that_was_suspended_does_not_trust_the_leases_of_before() -> None:
    subprocess.run([sys.executable, "-c", _SUSPENDED], check=True, timeout=120)
