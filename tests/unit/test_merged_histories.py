"""Two histories of one log become one list of trials, whatever numbers each gave them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest

from hopaas_p2p.core import codec
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.codec import following
from hopaas_p2p.core.records import (
    Commit,
    Float,
    Record,
    StudyDefine,
    StudySet,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialState,
)
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.moving import rescue
from hopaas_p2p.moving.rescue import Rescued, _shared, united
from hopaas_p2p.stores.base import Entry

COMPLETE, FAIL, RUNNING, WAITING = TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING


class History:
    """Commits one after the other, with the sums before them."""

    def __init__(self, lsn: int = 0, total: int = 0, entries: Iterable[Entry] = ()) -> None:
        self.lsn, self.total = lsn, total
        self.entries = list(entries)
        self.sequences: dict[str, int] = {}

    def fork(self) -> History:
        other = History(self.lsn, self.total, self.entries)
        other.sequences = dict(self.sequences)
        return other

    def say(self, writer: str, *records: Record) -> bytes:
        sequence = self.sequences[writer] = self.sequences.get(writer, 0) + 1
        payload = codec.encode(Commit(writer, sequence, writer, 1000 * sequence, records))
        self.append(payload)
        return payload

    def append(self, payload: bytes) -> None:
        self.lsn += 1
        self.entries.append(Entry(self.lsn, payload, before=self.total))
        self.total = following(self.total, payload)

    def start(self, writer: str, x: float, *, prefer_waiting: bool = False) -> None:
        self.say(writer, TrialCreate(RUNNING, params={"x": x}, prefer_waiting=prefer_waiting))

    def tell(self, writer: str, number: int, value: float, epoch: int = 1) -> None:
        self.say(writer, TrialFinish(number, epoch, COMPLETE, (value,)))


def begun() -> History:
    """A study with one result; all that follow know that much."""
    log = History()
    log.say("a", StudyDefine("s", ("minimize",), space={"x": Float(0.0, 100.0)}))
    log.start("a", 0.0)
    log.tell("a", 0, 0.0)
    return log


@pytest.fixture
def shared() -> History:
    return begun()


def merged(
    shared: History, *histories: History, without: Iterable[bytes] = (), loose: Iterable[bytes] = ()
) -> tuple[list[TrialCreate], Rescued]:
    """The trials of these histories, which have so much in common."""
    state = State()
    for entry in shared.entries:
        apply(state, entry.lsn, codec.decode(entry.payload))
    rest = [entry for one in histories for entry in one.entries if entry.lsn > shared.lsn]
    rest = [entry for entry in rest if entry.payload not in without]
    found = united(state, shared.total, rest, loose)
    assert found.study is not None
    return list(found.study.trials.values()), found


def results(trials: list[TrialCreate]) -> list[tuple[float, float]]:
    """Parameter and value of every trial with a result."""
    return sorted((trial.params["x"], trial.values[0]) for trial in trials if trial.values)


def test_a_result_is_that_of_the_trial_which_its_owner_meant() -> None:
    """Both start trial 1 at one lsn, and the log keeps b's; a's result for it stands behind both."""
    log = begun()
    other = log.fork()
    log.start("b", 1.0)
    other.start("a", 2.0)
    log.tell("b", 1, 10.0)
    other.tell("a", 1, 20.0)

    trials, _ = merged(begun(), log, other)

    assert results(trials) == [(0.0, 0.0), (1.0, 10.0), (2.0, 20.0)]


def test_trials_of_one_owner_that_moved_by_one_number_are_not_mixed_up() -> None:
    """In the log alone a's second trial has the number that its first had, and would get the first one's result."""
    log, other = begun(), begun()
    other.start("a", 2.0)
    other.start("a", 3.0)
    other.tell("a", 1, 20.0)
    other.tell("a", 2, 30.0)
    mixed = [*log.entries, Entry(4, b"another's", before=log.total), *other.entries[4:]]

    trials, _ = merged(log, History(entries=mixed), other)

    assert results(trials) == [(0.0, 0.0), (2.0, 20.0), (3.0, 30.0)]


def test_a_queued_trial_that_two_peers_ran_has_both_results(shared: History) -> None:
    shared.say("a", TrialCreate(WAITING, params={"x": 5.0}))
    log, other = shared.fork(), shared.fork()
    log.start("b", 1.0, prefer_waiting=True)
    log.tell("b", 1, 10.0)
    other.start("c", 2.0, prefer_waiting=True)
    other.tell("c", 1, 20.0)

    trials, _ = merged(shared, log, other)

    assert results(trials) == [(0.0, 0.0), (5.0, 10.0), (5.0, 20.0)], "both ran what was queued"


def test_a_trial_that_one_history_took_for_dead_has_its_result_and_no_retry(shared: History) -> None:
    shared.start("b", 1.0)
    log, other = shared.fork(), shared.fork()
    log.say("a", TrialReclaim(1, 1, reason="silent"))
    other.tell("b", 1, 10.0)

    for first, second in ((log, other), (other, log)):
        trials, _ = merged(shared, first, second)
        assert results(trials) == [(0.0, 0.0), (1.0, 10.0)]
        assert len(trials) == 2, "the retry has nothing left to do"


def test_what_people_said_of_a_trial_stays_with_it_where_a_retry_is_left_out(shared: History) -> None:
    """Trials behind the retry get the number before theirs; attributes of the study name them by number."""
    shared.start("b", 1.0)
    log, other = shared.fork(), shared.fork()
    log.say("a", TrialReclaim(1, 1, reason="silent"))  # its retry is trial 2
    log.start("c", 3.0)
    log.tell("c", 3, 30.0)
    log.say("c", StudySet(system={"dashboard:3:note_str:0": '"the best"', "hopaas:3:tag:odd": "true"}))
    other.tell("b", 1, 10.0)

    trials, found = merged(shared, log, other)

    assert found.study is not None
    assert [trial.params["x"] for trial in trials] == [0.0, 1.0, 3.0]
    assert set(found.study.settings.system) == {"dashboard:2:note_str:0", "hopaas:2:tag:odd"}


def test_what_was_on_its_way_is_found_by_the_sums(shared: History) -> None:
    """A peer stopped while its commit was under way. Others had read it before it was overwritten."""
    log, other = shared.fork(), shared.fork()
    log.start("b", 1.0)
    under_way = other.say("c", TrialCreate(RUNNING, params={"x": 2.0}))
    other.start("d", 3.0)
    other.tell("d", 2, 30.0)

    trials, found = merged(shared, log, other, without=[under_way], loose=[under_way])

    assert results(trials) == [(0.0, 0.0), (3.0, 30.0)]
    assert not found.uncertain


def test_a_commit_that_two_histories_follow_is_found_once(shared: History) -> None:
    lost = shared.say("a", TrialCreate(RUNNING, params={"x": 1.0}))
    log, other = shared.fork(), shared.fork()
    log.tell("a", 1, 10.0)
    other.start("b", 2.0)

    trials, found = merged(begun(), log, other, without=[lost], loose=[lost, lost])

    assert results(trials) == [(0.0, 0.0), (1.0, 10.0)]
    assert (found.histories, found.uncertain) == (2, {})


def test_a_result_that_never_left_is_that_of_its_owners_own_trial(shared: History) -> None:
    log, other = shared.fork(), shared.fork()
    log.start("b", 1.0)
    other.start("c", 2.0)
    unsent = other.fork()
    unsent.tell("c", 1, 20.0)

    trials, _ = merged(shared, log, other, loose=[unsent.entries[-1].payload])

    assert results(trials) == [(0.0, 0.0), (2.0, 20.0)]


def test_so_is_one_that_somebody_sent_to_the_log_later(shared: History) -> None:
    """There the number is another peer's, and the log refuses it."""
    log, other = shared.fork(), shared.fork()
    log.start("b", 1.0)
    other.start("c", 2.0)
    unsent = other.fork()
    unsent.tell("c", 1, 20.0)
    log.append(unsent.entries[-1].payload)

    trials, _ = merged(shared, log, other)

    assert results(trials) == [(0.0, 0.0), (2.0, 20.0)]


def test_behind_a_commit_that_nobody_kept_a_result_is_kept_and_marked(shared: History) -> None:
    log, other = shared.fork(), shared.fork()
    log.start("b", 1.0)
    gone = other.say("c", TrialCreate(RUNNING, params={"x": 2.0}))
    other.tell("c", 1, 20.0)

    trials, found = merged(shared, log, other, without=[gone])

    assert [trial.values for trial in trials if trial.values] == [(0.0,), (20.0,)]
    assert len(found.unknown) == 1
    assert set(found.uncertain.values()) == {shared.lsn + 1}


def test_what_follows_a_first_commit_that_followed_another_log_is_marked() -> None:
    log = History(total=7)
    log.say("a", StudyDefine("s", ("minimize",), space={"x": Float(0.0, 100.0)}))
    log.start("a", 1.0)

    assert united(State(), 0, log.entries).uncertain == {0: 0}


def test_many_histories_are_replayed_in_linear_time(monkeypatch: pytest.MonkeyPatch, shared: History) -> None:
    """2,000 writers whose second commit is before their first, each a history of its own, took over a minute."""
    for at in range(300):
        shared.append(codec.encode(Commit(f"w{at}", 2, f"w{at}", 0, (TrialFinish(0, 1, FAIL),))))
    for at in range(300):
        shared.append(codec.encode(Commit(f"w{at}", 1, f"w{at}", 0, (TrialFinish(0, 1, FAIL),))))
    applied = 0

    def count(*arguments: Any) -> tuple[Verdict, ...]:
        nonlocal applied
        applied += 1
        return apply(*arguments)

    monkeypatch.setattr(rescue, "apply", count)
    trials, _ = merged(History(), shared)
    assert results(trials) == [(0.0, 0.0)]
    assert applied < 110 * len(shared.entries)


def test_what_more_histories_have_than_are_replayed_follows_the_longest(shared: History) -> None:
    histories = [shared.fork() for _ in range(150)]
    for at, one in enumerate(histories, 1):
        one.say(f"w{at}", TrialCreate(COMPLETE, params={"x": float(at)}, values=(float(at),)))
    trials, found = merged(shared, *histories)
    assert results(trials) == [(float(at), float(at)) for at in range(151)]
    assert (found.histories, len(found.uncertain)) == (100, 50)


def test_links_between_trials_follow_their_new_numbers(shared: History) -> None:
    log, other = shared.fork(), shared.fork()
    log.start("b", 1.0)
    other.start("c", 2.0)
    other.say("d", TrialReclaim(1, 1, reason="silent"))
    other.start("d", 9.0, prefer_waiting=True)
    other.tell("d", 2, 30.0)

    trials, _ = merged(shared, log, other)

    retry = next(trial for trial in trials if trial.values == (30.0,))
    lost = next(number for number, trial in enumerate(trials) if trial.state is FAIL)
    assert (retry.system["failed_trial"], retry.system["retry_history"]) == (f"{lost}", f"[{lost}]")


# --- a server with pools, and peers that do everything at once ---


class Server:
    """Each write goes to a pool by chance, and is refused only if that one has it; what is read is the newest."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.pools = 1
        self.order = itertools.count()
        self.objects: dict[tuple[int, int], tuple[int, Entry]] = {}

    def put_new(self, entry: Entry) -> bool:
        key = self.rng.randrange(self.pools), entry.lsn
        if key in self.objects:
            return False
        self.objects[key] = next(self.order), entry
        return True

    def get(self, lsn: int) -> Entry | None:
        there = [self.objects[pool, lsn] for pool in range(2) if (pool, lsn) in self.objects]
        return max(there)[1] if there else None


class Peer:
    """Reads, checks the sums, and writes what comes to its mind; remembers what it was told is safe."""

    def __init__(self, name: str, server: Server, values: itertools.count[int]) -> None:
        self.name, self.server, self.values = name, server, values
        self.state, self.total = State(), 0
        self.acknowledged: list[Entry] = []
        self.running: dict[int, tuple[float, int]] = {}
        self.told: list[tuple[float, float]] = []
        self.stopped = False

    def read(self) -> None:
        while not self.stopped and (entry := self.server.get(self.state.lsn + 1)):
            if entry.before != self.total:
                self.stopped = True
                return
            self.take(entry)

    def take(self, entry: Entry) -> tuple[Verdict, ...]:
        self.total = following(self.total, entry.payload)
        return apply(self.state, entry.lsn, codec.decode(entry.payload))

    def commit(self, record: Record) -> Verdict | None:
        commit = Commit(self.name, len(self.acknowledged) + 1, self.name, 1000 * next(self.values), (record,))
        entry = Entry(self.state.lsn + 1, codec.encode(commit), before=self.total)
        if not self.server.put_new(entry):
            return None
        self.acknowledged.append(entry)
        return self.take(entry)[0]

    def act(self, rng: random.Random) -> None:
        what = rng.random()
        others = [n for n in self.state.running if self.state.trials[n].owner != self.name]
        if self.running and what < 0.45:
            number = rng.choice(list(self.running))
            x, epoch = self.running[number]
            value = float(next(self.values))
            verdict = self.commit(TrialFinish(number, epoch, COMPLETE, (value,)))
            if verdict is not None:
                del self.running[number]
                if verdict.accepted or verdict.refusal == "late":
                    self.told.append((x, value))
        elif others and what < 0.55:
            number = rng.choice(others)
            self.commit(TrialReclaim(number, self.state.trials[number].epoch, reason="silent"))
        elif what < 0.65:
            self.commit(TrialCreate(WAITING, params={"x": rng.random() * 100}))
        else:
            verdict = self.commit(TrialCreate(RUNNING, params={"x": rng.random() * 100}, prefer_waiting=True))
            if verdict is not None and verdict.number is not None:
                trial = self.state.trials[verdict.number]
                self.running[trial.number] = trial.params["x"], trial.epoch


def worked(seed: int) -> tuple[list[Peer], dict[int, Entry]]:
    """A server that gets a second pool under some peers, and the log as it stands in the end."""
    rng = random.Random(seed)
    server = Server(rng)
    values = itertools.count(1)
    peers = [Peer(f"p{number}", server, values) for number in range(rng.randint(2, 8))]
    peers[0].commit(StudyDefine("s", ("minimize",), space={"x": Float(0.0, 100.0)}))
    for step in range(400):
        server.pools = 1 if step < 100 else 2
        peer = rng.choice(peers)
        if rng.random() < 0.7:
            peer.read()
        if not peer.stopped:
            peer.act(rng)
    heads = range(1, max(lsn for _, lsn in server.objects) + 1)
    log = {lsn: entry for lsn in heads if (entry := server.get(lsn)) is not None}
    for peer in peers:  # at its end a peer looks for its last commits
        peer.stopped |= any(log[entry.lsn] != entry for entry in peer.acknowledged)
    return peers, log


def rescued(log: dict[int, Entry], peers: Iterable[Peer]) -> list[list[tuple[float, float]]]:
    """Parameter and value of each result in the log and in what these peers have kept: certain ones, and all."""
    kept = [entry for peer in peers if peer.stopped for entry in peer.acknowledged if log[entry.lsn] != entry]
    shared = min([_shared(log, len(log)), *[entry.lsn - 1 for entry in kept]])
    state, total = State(), 0
    for lsn in range(1, shared + 1):
        apply(state, lsn, codec.decode(log[lsn].payload))
        total = following(total, log[lsn].payload)
    rest = [entry for entry in (*log.values(), *kept) if entry.lsn > shared]
    found = united(state, total, rest)
    assert found.study is not None
    trials = found.study.trials
    certain = [trial for number, trial in trials.items() if number not in found.uncertain]
    return [
        sorted((one.params.get("x", -1.0), one.values[0]) for one in some if one.values)
        for some in (certain, list(trials.values()))
    ]


@pytest.mark.parametrize("seed", range(30))
def test_whatever_peers_do_each_result_is_there_once_with_the_parameters_that_its_owner_ran(seed: int) -> None:
    peers, log = worked(seed)
    certain, everything = rescued(log, peers)
    assert everything == sorted(one for peer in peers for one in peer.told)
    assert certain == everything


@pytest.mark.parametrize("seed", range(30))
def test_where_a_peer_was_killed_what_is_not_marked_is_true(seed: int) -> None:
    peers, log = worked(seed)
    certain, _ = rescued(log, peers[1:])
    told = [one for peer in peers for one in peer.told]
    assert [one for one in certain if one not in told] == []
    assert len(certain) == len(set(certain))
