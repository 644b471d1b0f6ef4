"""Lost replies, doubled and late requests, dead processes: a peer loses nothing and doubles nothing."""

from __future__ import annotations

import random
from pathlib import Path

import optuna
import pytest
from msgspec.structs import replace

import hopaas_p2p
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import Commit, TrialCreate, TrialFinish, TrialReclaim, TrialSet, TrialState
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.peer import caller as caller_module
from hopaas_p2p.peer import peer as peer_module
from hopaas_p2p.peer.outbox import PendingCommit
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.peer.session import LogClient, LogSession, study_client
from hopaas_p2p.storage import options as options_module
from hopaas_p2p.stores.base import Log, Store
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.memory import MemoryStore
from hopaas_p2p.testing.commits import append, everything, outgoing
from hopaas_p2p.testing.faults import SURVIVABLE, Crash, Fault, FaultyStore, at_random
from tests.support.invariants import Witness
from tests.support.scribe import COMPLETE, X, defined


def replica_of(log: Log, writer: str) -> LogClient[State]:
    return study_client(log, writer=writer, now_us=lambda: 0)


def founded() -> MemoryStore:
    """A store with an empty study in it."""
    store = MemoryStore()
    founder = replica_of(store.log("study"), "founder")
    founder.put("founder", defined())
    founder.exchange()
    return store


@pytest.fixture
def inner() -> MemoryStore:
    return founded()


@pytest.fixture
def duplicates() -> int:
    """How often this store appends a commit that arrives twice more, each time too late to be recognised."""
    return 2


def replayed(store: Store) -> State:
    """The State after the log, every commit of which is held against the invariants."""
    state, witness = State(), Witness()
    for entry in everything(store.log("study")):
        apply(state, entry.lsn, codec.decode(entry.payload), entry.stamp)
        witness.look(state)
    return state


def retried(replica: LogClient[State], ticket: PendingCommit) -> tuple[Verdict, ...]:
    """Exchange until the log has decided, however often the store fails."""
    for _ in range(200):
        if ticket.verdicts is not None:
            return ticket.verdicts
        try:
            replica.exchange()
        except StoreUnreachable:
            continue
    raise AssertionError("the log never decided")


# --- one fault at a time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", SURVIVABLE, ids=lambda fault: fault.name)
def test_an_ask_counts_once_whatever_happens_to_its_exchange(inner: MemoryStore, fault: Fault) -> None:
    store = FaultyStore(inner, [None, fault])
    replica = replica_of(store.log("study"), "ann")

    (verdict,) = retried(replica, replica.put("ann", TrialCreate()))

    assert store.happened == {fault: 1}
    assert verdict == Verdict(True, 0)
    assert len(replayed(inner).trials) == 1
    replica.exchange()
    assert snapshot.digest(replica.state) == snapshot.digest(replayed(inner))


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.LOSE_REPLY, Fault.DELAY], ids=lambda fault: fault.name)
def test_a_commit_of_unknown_fate_is_sent_again_byte_for_byte_and_before_anything_else(fault: Fault) -> None:
    store = FaultyStore(founded(), [None, fault, fault, None])
    replica = replica_of(store.log("study"), "ann")
    first = replica.put("ann", TrialCreate())
    with pytest.raises(StoreUnreachable):
        replica.exchange()
    second = replica.put("ann", TrialCreate())
    with pytest.raises(StoreUnreachable):
        replica.exchange()

    replica.exchange()
    assert first.verdicts is not None
    assert second.verdicts is None
    replica.exchange()

    assert store.sent[0] == store.sent[1] == store.sent[2]
    assert store.sent[3] != store.sent[0]
    assert second.verdicts == (Verdict(True, 1),)


def test_a_commit_that_comes_late_behind_its_writers_next_one_changes_nothing(
    inner: MemoryStore, duplicates: int
) -> None:
    store = FaultyStore(inner, [None, Fault.DELAY, None, None, None])
    replica = replica_of(store.log("study"), "ann")
    retried(replica, replica.put("ann", TrialCreate()))
    retried(replica, replica.put("ann", TrialFinish(0, 1, COMPLETE, (1.0,))))
    late = store.sent[0]
    inner.log("study").exchange(replace(late, chain=None), len(everything(inner.log("study"))))
    state = replayed(inner)
    assert state.refusals.get("duplicate", 0) == duplicates
    assert [trial.state for trial in state.trials] == [COMPLETE]


def test_what_a_dead_process_had_sent_counts_and_what_it_had_not_does_not() -> None:
    for fault, trials in ((Fault.CRASH_BEFORE, 0), (Fault.CRASH_AFTER, 1)):
        inner = founded()
        replica = replica_of(FaultyStore(inner, [None, fault]).log("study"), "ann")
        replica.put("ann", TrialCreate())
        with pytest.raises(Crash):
            replica.exchange()
        assert len(replayed(inner).trials) == trials


def test_reports_that_wait_while_the_store_is_away_leave_later_and_once(inner: MemoryStore) -> None:
    store = FaultyStore(inner, [None, None, Fault.REFUSE, Fault.LOSE_REPLY])
    replica = replica_of(store.log("study"), "ann")
    retried(replica, replica.put("ann", TrialCreate()))
    replica.session.draft(0, 1, "ann").reports[1] = 0.5
    with pytest.raises(StoreUnreachable):
        replica.exchange()
    replica.session.draft(0, 1, "ann").reports[2] = 0.25
    with pytest.raises(StoreUnreachable):
        replica.exchange()
    while replica.session.has_pending:
        replica.exchange()
    assert replayed(inner).trials[0].reports == {1: 0.5, 2: 0.25}


# --- a peer that loses its memory --------------------------------------------------------------------------------


def forget(replica: LogClient[State]) -> None:
    """As after an exchange that died half-way: the state is not to be relied on."""
    replica.session.joined = False


def test_a_peer_that_rejoins_from_a_snapshot_behind_its_own_commit_learns_the_verdict(inner: MemoryStore) -> None:
    store = FaultyStore(inner, [None, Fault.LOSE_REPLY])
    replica = replica_of(store.log("study"), "ann")
    ticket = replica.put("ann", TrialCreate(), TrialReclaim(7, 1))
    with pytest.raises(StoreUnreachable):
        replica.exchange()
    other = replica_of(inner.log("study"), "bob")
    retried(other, other.put("bob", TrialCreate()))
    other.write_snapshot()
    forget(replica)

    replica.exchange()

    assert ticket.verdicts == (Verdict(True, 0), Verdict(False, None, "no such trial"))
    assert len(everything(inner.log("study"))) == 3
    assert not replica.session.has_pending


def test_a_peer_that_rejoins_before_its_commit_arrived_sends_it_once(inner: MemoryStore) -> None:
    store = FaultyStore(inner, [None, Fault.REFUSE])
    replica = replica_of(store.log("study"), "ann")
    ticket = replica.put("ann", TrialCreate())
    with pytest.raises(StoreUnreachable):
        replica.exchange()
    replica_of(inner.log("study"), "bob").exchange()
    forget(replica)
    assert retried(replica, ticket) == (Verdict(True, 0),)
    assert len(everything(inner.log("study"))) == 2


def test_a_state_that_broke_half_way_is_thrown_away_and_joined_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = founded()
    replica = replica_of(inner.log("study"), "ann")
    retried(replica, replica.put("ann", TrialCreate()))
    other = replica_of(inner.log("study"), "bob")
    retried(other, other.put("bob", TrialCreate()))
    ticket = replica.put("ann", TrialFinish(0, 1, COMPLETE, (1.0,)))

    with monkeypatch.context() as patch:

        def breaks(*_: object) -> tuple[Verdict, ...]:
            raise MemoryError

        patch.setattr(replica.session, "machine", replica.session.machine._replace(apply=breaks))
        with pytest.raises(MemoryError):
            replica.exchange()

    assert retried(replica, ticket) == (Verdict(True, 0),)
    assert snapshot.digest(replica.state) == snapshot.digest(replayed(inner))


# --- storms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_in_a_storm_every_ask_and_tell_of_every_peer_counts_exactly_once(inner: MemoryStore, seed: int) -> None:
    random_ = random.Random(seed)
    peers = {}
    for index, name in enumerate(("ann", "bob", "eve")):
        store = FaultyStore(inner, at_random(100 * seed + index, likelihood=0.4))
        peers[name] = replica_of(store.log("study"), name)
    told: dict[int, float] = {}
    running: list[tuple[str, int, int]] = []
    for _ in range(90):
        name = random_.choice(list(peers))
        replica = peers[name]
        if running and random_.random() < 0.5:
            owner, number, epoch = running.pop(random_.randrange(len(running)))
            value = random_.random()
            record = TrialFinish(number, epoch, COMPLETE, (value,))
            (verdict,) = retried(peers[owner], peers[owner].put(owner, record))
            assert verdict.accepted
            told[number] = value
        else:
            (verdict,) = retried(replica, replica.put(name, TrialCreate(params={"x": 0.5}, dists={"x": X})))
            assert verdict.number is not None
            running.append((name, verdict.number, 1))

    state = replayed(inner)
    assert {trial.number: trial.values for trial in state.trials if trial.state is COMPLETE} == {
        number: (value,) for number, value in told.items()
    }
    assert sorted(state.running) == sorted(number for _, number, _ in running)
    for replica in peers.values():
        replica.log = inner.log("study")
        replica.exchange()
        assert snapshot.digest(replica.state) == snapshot.digest(state)


@pytest.mark.parametrize("seed", range(5))
def test_in_a_storm_with_dying_peers_no_acknowledged_tell_is_lost(inner: MemoryStore, seed: int) -> None:
    random_ = random.Random(seed)
    faults = at_random(seed, likelihood=0.3, faults=Fault)
    told: dict[int, float] = {}
    for life in range(25):
        name = f"peer-{life}"
        replica = replica_of(FaultyStore(inner, faults).log("study"), name)
        try:
            for _ in range(5):
                (verdict,) = retried(replica, replica.put(name, TrialCreate()))
                assert verdict.number is not None
                value = random_.random()
                retried(replica, replica.put(name, TrialFinish(verdict.number, 1, COMPLETE, (value,))))
                told[verdict.number] = value
        except Crash:
            continue
    state = replayed(inner)
    assert len(told) > 20
    assert all(state.trials[number].values == (value,) for number, value in told.items())
    writers = [c.writer + str(c.seq) for c in _commits(inner)]
    assert len(writers) - len(set(writers)) == state.refusals.get("duplicate", 0)


def _commits(store: Store) -> list[Commit]:
    decoded = [codec.decode(entry.payload) for entry in everything(store.log("study"))]
    return [commit for commit in decoded if isinstance(commit, Commit)]


@pytest.mark.parametrize("seed", range(3))
def test_a_peer_in_a_storm_acknowledges_only_what_stands(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (peer_module, caller_module):
        monkeypatch.setattr(module, "FIRST_PAUSE", 1e-5)
        monkeypatch.setattr(module, "LONGEST_PAUSE", 1e-5)
    inner = founded()
    peer = Peer(FaultyStore(inner, at_random(seed, 0.4)), threaded=False, describe=dict)
    driver = peer.log("study")
    for number in range(30):
        assert peer.start(driver, TrialCreate()).verdicts == (Verdict(True, number),)
        record = TrialSet(number, 1, reports={0: float(number)})
        *_, finished = peer.commit(driver, record, TrialFinish(number, 1, COMPLETE, (float(number),)))
        assert finished.accepted
    state = replayed(inner)
    assert [trial.values for trial in state.trials] == [(float(number),) for number in range(30)]
    assert [trial.reports for trial in state.trials] == [{0: float(number)} for number in range(30)]


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.LOSE_REPLY], ids=lambda fault: fault.name)
def test_a_call_that_gives_up_waiting_leaves_no_trial_running(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (peer_module, caller_module):
        monkeypatch.setattr(module, "FIRST_PAUSE", 1e-5)
    inner = founded()
    peer = Peer(FaultyStore(inner, [None, fault]), threaded=False, patience=0.0, describe=dict)
    driver = peer.log("study")
    with pytest.raises(StoreUnreachable):
        peer.start(driver, TrialCreate())
    peer.flush()
    state = replayed(inner)
    assert not state.running
    assert all(trial.state is not TrialState.COMPLETE for trial in state.trials)


def test_a_second_ctrl_c_while_an_abandoned_start_is_released_leaves_no_trial_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner = founded()
    peer = Peer(FaultyStore(inner, [None, Fault.LOSE_REPLY]), threaded=False, patience=0.0, describe=dict)
    driver, release, interrupted = peer.log("study"), LogSession._release, list[object]()

    def interrupt_once(session: LogSession[State], pending: PendingCommit) -> None:
        if not interrupted:
            interrupted.append(pending)
            raise KeyboardInterrupt
        release(session, pending)

    with pytest.raises(StoreUnreachable):
        peer.start(driver, TrialCreate())
    monkeypatch.setattr(LogSession, "_release", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        peer.flush()
    peer.flush()
    state = replayed(inner)
    assert (len(interrupted), list(state.running), list(state.waiting)) == (1, [], [0])


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_plain_optuna_does_not_notice_a_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_jobs: int) -> None:
    for module in (peer_module, caller_module):
        monkeypatch.setattr(module, "FIRST_PAUSE", 1e-4)
        monkeypatch.setattr(module, "LONGEST_PAUSE", 1e-3)
    monkeypatch.setattr(
        options_module, "open_store", lambda *_, **__: FaultyStore(DirectoryStore(tmp_path), at_random(n_jobs, 0.3))
    )
    storage = hopaas_p2p.open_storage(str(tmp_path))
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=1))

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1.0, 1.0)
        for step in range(3):
            trial.report(x, step)
        trial.set_user_attr("twice", 2 * x)
        return x**2

    study.optimize(objective, n_trials=30, n_jobs=n_jobs)
    storage.close()
    monkeypatch.undo()

    fresh = hopaas_p2p.open_storage(str(tmp_path))
    trials = optuna.load_study(study_name=study.study_name, storage=fresh).trials
    assert [trial.number for trial in trials] == list(range(30))
    assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in trials)
    assert all(trial.value == trial.params["x"] ** 2 for trial in trials)
    assert all(trial.intermediate_values == dict.fromkeys(range(3), trial.params["x"]) for trial in trials)
    assert all(trial.user_attrs == {"twice": 2 * trial.params["x"]} for trial in trials)
    fresh.close()


def test_a_storm_is_brought_back_by_its_seed() -> None:
    def storm() -> list[Fault | None]:
        weather = at_random(5, 0.5)
        return [next(weather) for _ in range(50)]

    assert storm() == storm()
    assert len(set(storm())) == 5


def test_a_read_gets_by_with_what_is_known_while_the_store_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = [None] * 40
    store = FaultyStore(DirectoryStore(tmp_path), calm)
    monkeypatch.setattr(options_module, "open_store", lambda *_, **__: store)
    storage = hopaas_p2p.open_storage(str(tmp_path), patience=0.0)
    study = optuna.create_study(study_name="s", storage=storage)
    study.optimize(lambda trial: trial.number, n_trials=3)
    writer = replica_of(DirectoryStore(tmp_path).log(storage.handle(study._study_id).uuid), "bob")
    retried(writer, writer.put("bob", TrialCreate()))

    store._faults = iter([Fault.REFUSE])  # type: ignore[assignment]
    assert len(study.trials) == 3
    store._faults = iter([None, None])  # type: ignore[assignment]
    assert len(study.trials) == 4
    storage.close()


def test_a_peer_that_never_reached_the_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(DirectoryStore(tmp_path).catalog(), outgoing("something"))
    store = FaultyStore(DirectoryStore(tmp_path), [Fault.REFUSE] * 3)
    monkeypatch.setattr(options_module, "open_store", lambda *_, **__: store)
    storage = hopaas_p2p.open_storage(str(tmp_path), patience=0.0)
    with pytest.raises(StoreUnreachable, match="did not answer"):
        storage.get_all_studies()
    storage.close()
