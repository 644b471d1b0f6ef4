"""A store served through a folder: one study on both sides, whatever dies, and however long the link is down."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.codec import following
from hopaas_p2p.core.records import Commit, Stamp, TrialCreate, TrialFinish, TrialReclaim
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.errors import (
    BehindRetention,
    BrokenChain,
    ConfigurationError,
    Denied,
    HopaasError,
    InvalidInput,
    NoStore,
    StoreAway,
    StoreCorrupt,
    StoreUnreachable,
    StudyDeleted,
)
from hopaas_p2p.open import open_store
from hopaas_p2p.peer.peer import Peer as RealPeer
from hopaas_p2p.remote import box as boxes
from hopaas_p2p.remote.box import Box
from hopaas_p2p.runtime.atomic import state_folder
from hopaas_p2p.stores.base import Beat, Entry, ExchangeResult, Outgoing, Store
from hopaas_p2p.stores.directory.files import Directory
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.memory import MemoryArtifacts, MemoryLog
from hopaas_p2p.testing.commits import append_many, everything, outgoing
from hopaas_p2p.testing.faults import SURVIVABLE, Fault, at_random
from tests.support.box_world import STUDY, Peer, World, founded, replayed, same_study_on_both_sides, world
from tests.support.processes import SPACE, until
from tests.support.scribe import COMPLETE, FAIL, RUNNING
from tests.support.served import FolderProcess
from tests.support.ticking import tick

CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
KEY = "study-1/7/model"
Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes worlds, and ends them."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()

        def made(**options: Any) -> World:
            folder = tmp_path / f"world-{next(numbers)}"
            folder.mkdir()
            return stack.enter_context(world(folder, **options))

        yield made


@pytest.fixture
def here(make: Make) -> World:
    """Two sides, a server, and a study."""
    made = make()
    founded(made)
    return made


def tell(peer: Peer, verdict: Verdict, value: float = 1.0, epoch: int = 1) -> Verdict:
    assert verdict.number is not None
    return peer.say(TrialFinish(verdict.number, epoch, COMPLETE, values=(value,)))


def finishes(state: State) -> list[str]:
    return [trial.state.name for trial in state.trials]


def send_in_vain(peer: Peer, *records: Any) -> None:
    """Say something that is not answered in time."""
    peer.replica.log._store.connections.timeout = 0.3  # type: ignore[attr-defined]
    peer.replica.put(peer.name, *records)
    with pytest.raises(StoreUnreachable):
        peer.replica.exchange()
    peer.replica.log._store.connections.timeout = 5.0  # type: ignore[attr-defined]


# --- one study ---------------------------------------------------------------------------------------------------


@pytest.mark.path
def test_peers_on_both_sides_run_one_study(here: World) -> None:
    near, far, other = here.near_peer("near"), here.far_peer("far"), here.near_peer("other")
    numbers = []
    for _ in range(5):
        for peer in (near, far, other):
            asked = peer.say(TrialCreate())
            tell(peer, asked)
            numbers.append(asked.number)
    assert numbers == list(range(15))
    state = same_study_on_both_sides(here)
    assert finishes(state) == ["COMPLETE"] * 15
    assert snapshot.digest(near.read()) == snapshot.digest(far.read())
    sent = [one for one in here.far_side.sent if one.writer == "near"]
    assert [one.nonce for one in sent[:2]] == ["near:1", "near:2"], "commits are carried as they were sealed"
    commit = codec.decode(sent[0].payload)
    assert isinstance(commit, Commit)
    assert (commit.writer, commit.seq) == ("near", 1)


def test_a_folder_that_cannot_be_read_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    url = Box.make(tmp_path / "box", str(tmp_path / "store")).url
    monkeypatch.setattr(boxes, "read_regular", fail)
    with pytest.raises(StoreAway, match="cannot be used at the moment: Stale file handle"):
        open_store(url)


def test_authors_and_roles_are_those_of_the_far_store(make: Make) -> None:
    made = make()
    stamped = [Entry(lsn, outgoing(f"c{lsn}").payload, Stamp("ann", "worker", 17 + lsn)) for lsn in (1, 2, 3)]

    class Stamping(MemoryLog):
        def exchange(self, outgoing: object, since: int, beat: object = None) -> ExchangeResult:
            return ExchangeResult(stamped[since:])

    made.far._logs[STUDY] = Stamping()
    assert everything(made.store().log(STUDY)) == stamped


def test_a_commit_that_stood_in_the_far_log_before_is_not_appended_again(here: World) -> None:
    here.near_peer("near").say(TrialCreate())
    sent = everything(here.far.log(STUDY))[-1].payload
    fresh = here.store().log(STUDY)
    assert fresh.exchange(Outgoing("near:1", sent), 0).entries[-1].payload == sent
    assert len(everything(here.far.log(STUDY))) == 2


def test_a_long_log_is_read_from_anywhere(make: Make) -> None:
    made = make()
    append_many(made.far.log(STUDY), "a", 700)
    log = made.store().log(STUDY)
    entries = everything(log)
    assert [entry.payload for entry in entries] == [outgoing(f"a-{i}").payload for i in range(700)]
    for since in (699, 0, 256, 255, 513, 700, 1):
        assert log.exchange(None, since).entries == entries[since:]


def test_however_many_peers_ask_the_store_is_asked_as_often(make: Make) -> None:
    asked = {}
    for peers in (1, 12):
        made = make(pace=0.2)
        founded(made)
        logs = [(store := made.store(), store.log(STUDY)) for _ in range(peers)]
        began = len(made.far_side.asked)
        until_then = time.monotonic() + 1.0
        while time.monotonic() < until_then:
            for store, log in logs:
                assert len(log.exchange(None, 0).entries) == 1
                store.beats(["founder"])
        asked[peers] = len(made.far_side.asked) - began
    assert asked[12] <= asked[1] + 3 <= 18


# --- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", CRASHES)
def test_a_server_may_die_at_any_exchange(make: Make, fault: Fault) -> None:
    for moment in itertools.count():
        made = make(faults=[*[None] * moment, fault])
        founded(made)
        near, far = made.near_peer("near"), made.far_peer("far")
        for peer in (near, far, near):
            tell(peer, peer.say(TrialCreate()))
        state = same_study_on_both_sides(made)
        made.stop()
        assert finishes(state) == ["COMPLETE"] * 3
        assert state.lsn == 7
        if not made.crashes:
            assert moment > 4
            return


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_storm_loses_and_doubles_nothing(make: Make, seed: int, servers: int) -> None:
    made = make(faults=at_random(seed + 100, 0.2, (*SURVIVABLE, *CRASHES)), servers=servers)
    founded(made, attempts=1)
    peers = [made.near_peer("near"), made.near_peer("other"), made.far_peer("far")]
    for turn in range(12):
        peer = peers[turn % 3]
        assert tell(peer, peer.say(TrialCreate()), float(turn)).accepted
    made.settled()
    state = same_study_on_both_sides(made)
    assert finishes(state) == ["COMPLETE"] * 12
    assert sorted(trial.values[0] for trial in state.trials if trial.values) == list(map(float, range(12)))


def test_two_servers_append_nothing_twice(make: Make) -> None:
    made = make(servers=2)
    founded(made)
    peers = [made.near_peer(f"near-{i}") for i in range(3)]
    for _ in range(5):
        for peer in peers:
            tell(peer, peer.say(TrialCreate()))
    assert same_study_on_both_sides(made).lsn == 31


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_answer_that_the_folder_could_not_take_is_given_later(
    here: World, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    answer, faults = Box.answer, iter([StoreUnreachable("the disk is full")])

    def failing(self: Box, name: str, data: bytes) -> None:
        error = next(faults, None)
        if error is None or when == "after":
            answer(self, name, data)
        if error is not None:
            raise error

    monkeypatch.setattr(Box, "answer", failing)
    near = here.near_peer("near")
    tell(near, near.say(TrialCreate()))
    state = same_study_on_both_sides(here)
    assert (finishes(state), state.lsn) == (["COMPLETE"], 3)


def test_garbage_in_the_folder_is_passed_over(here: World) -> None:
    objects = Box(here.box).objects
    for number, body in enumerate((b"", b"nonsense", b"\x93\xa8exchange\xa1x", b"\x90" * 9000, bytes(range(256)))):
        objects.put_new(f"requests/eve-{number}", body)
    (here.box / "requests" / "a name with spaces").write_bytes(b"x")
    (here.box / "requests" / "pipe").mkdir()
    os.mkfifo(here.box / "requests" / "fifo")
    near = here.near_peer("near")
    tell(near, near.say(TrialCreate()))
    assert finishes(same_study_on_both_sides(here)) == ["COMPLETE"]


@pytest.mark.parametrize("uuid", ["access", "..", "a/b", "", "x" * 100])
def test_only_studies_and_their_list_are_asked_for(here: World, uuid: str) -> None:
    store = here.store()
    with pytest.raises(InvalidInput, match="not a study's uuid"):
        store.connections.ask("exchange", None, 0, place=uuid)
    with pytest.raises(InvalidInput):
        store.connections.ask("keys", place="study/../../")
    with pytest.raises(Denied, match="list of studies"):
        store.catalog().destroy()


# --- the link is down --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["server", "link"])
def test_what_was_told_while_the_link_was_down_goes_when_it_is_back_though_the_peer_is_gone(
    here: World, how: str
) -> None:
    near = here.near_peer("near")
    asked = near.say(TrialCreate())
    here.break_off(how)
    send_in_vain(near, TrialFinish(asked.number or 0, 1, COMPLETE, values=(3.0,)))
    del near
    assert replayed(everything(here.far.log(STUDY))).running
    here.restore()
    here.settled()
    assert finishes(same_study_on_both_sides(here)) == ["COMPLETE"]


@pytest.mark.parametrize("how", ["server", "link"])
def test_a_trial_that_was_asked_for_by_a_peer_that_has_gone_is_not_begun_when_the_link_is_back(
    here: World, how: str
) -> None:
    gone, other = here.near_peer("gone"), here.near_peer("other")
    assert gone.read().lsn == other.read().lsn > 0
    here.break_off(how)
    for peer in (gone, other):
        send_in_vain(peer, TrialCreate())
    gone.replica.withdraw()
    time.sleep(0.2)
    here.restore()
    here.settled()
    assert [trial.owner for trial in same_study_on_both_sides(here).trials] == ["other"]


def test_only_the_start_of_a_trial_is_called_back_and_only_before_it_was_carried(here: World) -> None:
    near = here.near_peer("near")
    number = near.say(TrialCreate()).number or 0
    near.replica.withdraw()
    here.break_off("server")
    send_in_vain(near, TrialFinish(number, 1, COMPLETE, values=(3.0,)), TrialCreate())
    near.replica.withdraw()
    here.restore()
    here.settled()
    assert finishes(same_study_on_both_sides(here)) == ["COMPLETE", "RUNNING"]


@pytest.mark.parametrize("how", ["server", "link"])
def test_a_result_that_comes_after_a_reclaim_is_kept_as_a_late_one(make: Make, how: str) -> None:
    made = make()
    founded(made, budget=10)
    near, far = made.near_peer("near"), made.far_peer("far")
    asked = near.say(TrialCreate())
    made.break_off(how)
    send_in_vain(near, TrialFinish(asked.number or 0, 1, COMPLETE, values=(3.0,)))
    assert far.say(TrialReclaim(asked.number or 0, 1)).accepted
    made.restore()
    near.read()
    made.settled()
    state = same_study_on_both_sides(made)
    assert [trial.late_of for trial in state.trials if trial.state is COMPLETE] == [0]
    assert state.trials[0].state is FAIL


def test_reads_go_on_while_the_link_is_down_also_after_a_restart_of_the_server(here: World) -> None:
    near = here.near_peer("near")
    near.say(TrialCreate())
    assert near.read().trials
    here.break_off("link")
    assert len(near.read().trials) == 1
    assert len(here.near_peer("new").read().trials) == 1
    here.stop()
    here.restore()
    here.break_off("link")
    assert len(here.near_peer("newer").read().trials) == 1


def test_a_peer_joins_from_the_copy_while_the_link_is_down(here: World) -> None:
    near = here.near_peer("near")
    for _ in range(3):
        near.say(TrialCreate())
    near.read()
    here.break_off("link")
    log = here.store().log(STUDY)
    assert log.newest_snapshot() is None
    assert len(everything(log)) == 4


@pytest.mark.parametrize("how", ["server", "link"])
def test_a_log_that_nobody_has_brought_yet_is_not_taken_for_an_empty_one(here: World, how: str) -> None:
    here.break_off(how)
    with pytest.raises(StoreUnreachable, match="the link is cut" if how == "link" else "serve folder` run"):
        here.store(timeout=0.5 if how == "server" else 5.0).log(STUDY).exchange(None, 0)
    here.restore()
    assert len(here.near_peer("near").read().trials) == 0


def test_a_damaged_copy_is_made_anew(here: World) -> None:
    near = here.near_peer("near")
    for _ in range(4):
        near.say(TrialCreate())
    near.read()
    here.stop()
    copy = max((state_folder() / "boxes").rglob(STUDY), key=lambda one: one.stat().st_mtime_ns)
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    here.restore()
    assert len(same_study_on_both_sides(here).trials) == 4


def test_a_link_that_is_down_is_said_once_and_so_is_its_return(here: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hopaas_p2p")
    near = here.near_peer("near")
    asked = near.say(TrialCreate())
    here.break_off("link")
    send_in_vain(near, TrialFinish(asked.number or 0, 1, COMPLETE, values=(3.0,)))
    for _ in range(20):
        with contextlib.suppress(StoreUnreachable):
            here.store().beats(["near"])
    assert caplog.messages == ["the link is cut"]
    here.restore()
    here.settled()
    until(lambda: _beats_again(here))
    assert caplog.messages[1:] == ["the store answers again"]


def _beats_again(made: World) -> bool:
    """Whether the server's pauses after failures are over."""
    with contextlib.suppress(StoreUnreachable):
        return made.store().log(STUDY).removed_up_to() == 0 and made.store().beats(["near"]) == {}
    return False


# --- leases ------------------------------------------------------------------------------------------------------


def test_beats_cross_both_ways(make: Make) -> None:
    made = make()
    here = made.store()
    here.beat(Beat("near", "near:1"))
    assert made.far.beats(["near"]) == {"near": "near:1"}
    made.far.beat(Beat("far", "far:1"))
    assert here.beats(["near", "far", "eve"]) == {"near": "near:1", "far": "far:1"}
    made.far.beat(Beat("far", "far:2"))
    assert here.beats(["far"]) == {"far": "far:2"}


@pytest.mark.parametrize("how", ["server", "link"])
def test_without_server_or_link_a_beat_does_not_count_and_nobody_is_looked_at(make: Make, how: str) -> None:
    made = make()
    here = made.store(timeout=0.5)
    here.beat(Beat("near", "near:1"))
    here.beats(["near"])
    made.break_off(how)
    with pytest.raises(StoreUnreachable):
        here.beat(Beat("near", "near:2"))
    with pytest.raises(StoreUnreachable):
        here.beats(["near"])
    assert made.far.beats(["near"]) == {"near": "near:1"}


class Clock:
    now = 1000.0


def _real_peer(clock: Clock, store: Store, name: str) -> RealPeer:
    return RealPeer(store, clock=lambda: clock.now, threaded=False, describe=dict, patience=0.0, uuid=name)


@pytest.mark.parametrize("how", ["server", "link"])
def test_owners_doubt_their_leases_while_the_link_is_down_and_nobody_is_reclaimed_for_it(make: Make, how: str) -> None:
    made, clock = make(), Clock()
    founded(made, ttl=30.0)
    store = made.store()
    here, there = _real_peer(clock, store, "here"), _real_peer(clock, made.far, "there")
    mine, theirs = here.log(STUDY), there.log(STUDY)
    assert here.commit(mine, TrialCreate())
    there.commit(theirs, TrialCreate())

    def live(seconds: float) -> None:
        until_then = clock.now + seconds
        while clock.now < until_then:
            tick(here)
            tick(there)
            clock.now += 1.0

    live(90)
    assert here.lease_valid(mine, "here")
    assert len(mine.state.running) == len(theirs.state.running) == 2
    made.break_off(how)
    store.connections.timeout = 0.02  # type: ignore[union-attr]
    live(29)
    assert not here.lease_valid(mine, "here")
    assert there.lease_valid(theirs, "there")
    live(120)
    assert 0 not in theirs.state.running, "the far side takes a silent peer's trial over"
    made.restore()
    store.connections.timeout = 5.0  # type: ignore[union-attr]
    until(lambda: _beats_again(made), 30)
    live(90)
    state = same_study_on_both_sides(made)
    assert 1 in state.running, "the far peer was never silent, only out of sight"
    assert here.lease_valid(mine, "here")


@pytest.mark.parametrize("dead", ["here", "there"])
def test_a_dead_owners_trial_is_back_within_two_ttl_on_either_side(make: Make, dead: str) -> None:
    made, clock = make(), Clock()
    founded(made, ttl=30.0)
    peers = {"here": _real_peer(clock, made.store(), "here"), "there": _real_peer(clock, made.far, "there")}
    parts = {name: peer.log(STUDY) for name, peer in peers.items()}
    for name, peer in peers.items():
        assert peer.commit(parts[name], TrialCreate())
    until_then = clock.now + 60
    while clock.now < until_then:
        for peer in peers.values():
            tick(peer)
        clock.now += 1.0
    killed = clock.now
    del peers[dead]
    (survivor,) = peers
    while parts[survivor].state.trials[0 if dead == "here" else 1].state is RUNNING:
        tick(peers[survivor])
        clock.now += 1.0
        assert clock.now < killed + 60
    assert clock.now > killed + 15


# --- refusals, deletion, restores --------------------------------------------------------------------------------


class _Refusing(MemoryLog):
    """A far log that this server may read, but not write."""

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        if outgoing is not None:
            raise Denied("user ann is only a viewer of this study")
        return super().exchange(None, since)


def test_what_the_store_refuses_is_told_to_whoever_asked(make: Make) -> None:
    made = make()
    made.far._logs[STUDY] = _Refusing()
    log = made.store().log(STUDY)
    for _ in range(2):
        with pytest.raises(Denied, match="only a viewer"):
            log.exchange(outgoing("a"), 0)
    assert log.exchange(None, 0).entries == []


def test_a_server_that_may_not_log_in_refuses_nobody_and_goes_on_with_a_new_token(
    here: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    near = here.near_peer("near")
    near.say(TrialCreate())
    near.read()
    allowed, exchange, put = [False], MemoryLog.exchange, MemoryArtifacts.put

    def guarded(self: MemoryLog, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        if not allowed[0]:
            raise Denied("the token has expired")
        return exchange(self, outgoing, since, beat)

    def guarded_put(self: MemoryArtifacts, *arguments: Any) -> None:
        if not allowed[0]:
            raise Denied("the token has expired")
        put(self, *arguments)

    monkeypatch.setattr(MemoryLog, "exchange", guarded)
    monkeypatch.setattr(MemoryArtifacts, "put", guarded_put)
    (tmp_path / "file").write_bytes(b"weights")
    send_in_vain(near, TrialFinish(0, 1, COMPLETE, values=(1.0,)))
    here.store(timeout=0.3).artifacts().put(KEY, tmp_path / "file")
    assert caplog.messages == ["the token has expired"]
    assert len(near.replica.log.exchange(None, 0).entries) == 2, "reads go on"
    allowed[0] = True
    here.settled()
    assert finishes(same_study_on_both_sides(here)) == ["COMPLETE"]
    assert here.far.artifacts()._files == {KEY: b"weights"}


@pytest.mark.parametrize("error", [BrokenChain("commit 2 is gone from the log"), StoreCorrupt("commit 2 is damaged")])
def test_what_is_wrong_with_the_far_log_is_told_to_whoever_would_write_to_it(
    here: World, monkeypatch: pytest.MonkeyPatch, error: HopaasError
) -> None:
    near, far = here.near_peer("near"), here.far.log(STUDY)
    near.say(TrialCreate())
    take = far.exchange

    def damaged(outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        if outgoing is not None:
            raise error
        return take(outgoing, since, beat)

    with monkeypatch.context() as patch:
        patch.setattr(far, "exchange", damaged)
        near.replica.put("near", TrialFinish(0, 1, COMPLETE, values=(1.0,)))
        with pytest.raises(type(error), match=str(error)):
            near.replica.exchange()
    here.far_peer("far").say(TrialCreate())
    assert finishes(same_study_on_both_sides(here)) == ["RUNNING", "RUNNING"]


def test_an_older_backup_of_the_store_stops_the_peers_on_this_side(here: World) -> None:
    near, other = here.near_peer("near"), here.near_peer("other")
    near.say(TrialCreate())
    assert len(other.read().trials) == 1
    log = here.far.log(STUDY)
    restored = everything(log)[:1]
    log._entries.clear()
    log.restore(None, restored)
    log._sum = following(0, restored[0].payload)
    near.replica.put("near", TrialFinish(0, 1, COMPLETE, values=(1.0,)))
    with pytest.raises(BrokenChain):
        near.replica.exchange()
    assert everything(log) == restored
    here.far_peer("far").say(TrialCreate(), TrialCreate())
    here.far_peer("further").say(TrialCreate())
    assert same_study_on_both_sides(here).lsn == 3, "the copy follows the store"
    other.replica.put("other", TrialCreate())
    with pytest.raises(BrokenChain):
        other.replica.exchange()


def test_a_study_that_is_deleted_far_away_ends_here_too(here: World) -> None:
    log = here.store().log(STUDY)
    since = log.exchange(None, 0).entries[-1].lsn
    here.far.log(STUDY).destroy()
    for handle in (log, here.store().log(STUDY)):
        with pytest.raises(StudyDeleted):
            handle.exchange(outgoing("late"), since)
        with pytest.raises(StudyDeleted):
            handle.exchange(None, since)


# --- snapshots ---------------------------------------------------------------------------------------------------


def test_snapshots_cross_both_ways(here: World) -> None:
    near = here.near_peer("near")
    for _ in range(3):
        near.say(TrialCreate())
    near.replica.write_snapshot()
    found = here.far.log(STUDY).newest_snapshot()
    assert found is not None
    assert found[0] == 4
    assert here.store().log(STUDY).newest_snapshot() == found


def test_a_log_whose_beginning_was_removed_is_copied_from_its_snapshot_on(make: Make) -> None:
    made = make()
    far = made.far.log(STUDY)
    append_many(far, "a", 320)
    far.put_snapshot_head(310, b"the state of then")
    exchange = far.exchange

    def collected(outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        if since < 300:
            raise BehindRetention
        return exchange(outgoing, since, beat)

    far.exchange = collected  # type: ignore[method-assign]
    log = made.store().log(STUDY)
    for _ in range(2):
        with pytest.raises(BehindRetention):
            log.exchange(None, 0)
        assert log.snapshot_head(None) == (310, b"the state of then")
        assert [entry.lsn for entry in log.exchange(None, 310).entries] == list(range(311, 321))
        made.stop()
        made.restore()
    assert [entry.lsn for entry in log.exchange(outgoing("b"), 320).entries] == [321]


# --- files -------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"weights " * 100_000)
    return path


@pytest.mark.parametrize("how", ["server", "link"])
def test_a_file_is_safe_at_once_and_waits_for_the_link_and_for_the_next_server(
    here: World, source: Path, how: str
) -> None:
    here.break_off(how)
    here.store(timeout=0.3).artifacts().put(KEY, source)
    assert here.far.artifacts()._files == {}
    here.restore()
    here.settled()
    assert here.far.artifacts()._files == {KEY: source.read_bytes()}
    assert not list((here.box / "files").iterdir()), "nothing is left"
    here.store().artifacts().delete(KEY)
    assert here.far.artifacts()._files == {}


def test_a_file_is_not_acknowledged_before_the_request_that_fetches_it_lies_there(
    here: World, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_new, failed, put = Directory.put_new, [], []

    def fails_at_first(self: Directory, key: str, data: bytes, **more: Any) -> bool:
        if key.startswith("requests/") and not failed:
            failed.append(key)
            raise StoreUnreachable("Input/output error")
        put.append(key)
        return put_new(self, key, data, **more)

    monkeypatch.setattr(Directory, "put_new", fails_at_first)
    here.store().artifacts().put(KEY, source)
    here.settled()
    assert failed
    assert here.far.artifacts()._files == {KEY: source.read_bytes()}
    assert not list((here.box / "files").iterdir()), "nor is a copy left of the attempt that failed"
    assert len(put) == len(set(put)), "no request is put there again, which a server may just have carried out"


def test_a_far_file_is_brought_and_one_that_is_not_there_is_said(here: World, source: Path, tmp_path: Path) -> None:
    here.far.artifacts().put(KEY, source)
    artifacts = here.store().artifacts()
    artifacts.get(KEY, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    with pytest.raises(KeyError):
        artifacts.get("study-1/8/model", tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert artifacts.keys("study-1") == [KEY]
    assert not list((here.box / "files").iterdir())


def test_a_file_that_the_store_refuses_is_said_and_holds_up_no_other(
    here: World, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put = MemoryArtifacts.put

    def refusing(self: MemoryArtifacts, key: str, path: Path) -> None:
        if key == KEY:
            raise Denied("files of this study are full")
        put(self, key, path)

    monkeypatch.setattr(MemoryArtifacts, "put", refusing)
    with pytest.raises(Denied, match="full"):
        here.store().artifacts().put(KEY, source)
    here.store().artifacts().put("study-1/8/model", source)
    assert list(here.far.artifacts()._files) == ["study-1/8/model"]
    assert "files of this study are full" in caplog.text


def test_a_node_that_has_no_room_for_a_copy_is_named_and_holds_up_no_trial(
    here: World, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(**_: str) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch")

    with monkeypatch.context() as patch:
        patch.setattr("hopaas_p2p.remote.folder.tempfile.TemporaryDirectory", full)
        here.store(timeout=0.3).artifacts().put(KEY, source)
        assert "/scratch: No space left on device" in caplog.text
        assert here.near_peer("near").read().lsn == 1
    here.settled()
    assert here.far.artifacts()._files == {KEY: source.read_bytes()}


def test_a_checkpoint_of_this_side_is_resumed_from_on_the_other(postgres_url: str, tmp_path: Path) -> None:
    import hopaas_p2p

    box = tmp_path / "box"
    server = FolderProcess(box, postgres_url, tmp_path).start()
    try:
        here = hopaas_p2p.open_study(f"folder://{box}", "s", space=SPACE)
        trial = here.ask()
        trial.checkpoint(b"half of it", step=3)
        here.handle.release(trial.number, reason="the job ends")
        here.close()
        there = hopaas_p2p.open_study(postgres_url, "s", create=False)
        again = there.ask()
        assert again.number == trial.number
        assert again.resume is not None
        step, path = again.resume
        assert (step, path.read_bytes()) == (3, b"half of it")
        there.tell(again, 1.0)
        there.close()
    finally:
        server.kill()


# --- the folder --------------------------------------------------------------------------------------------------


def test_what_nobody_fetches_is_removed_after_a_while(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(here.box)
    box.objects.put_new("answers/old", b"x")
    box.objects.put("files/old", b"x")
    box.objects.put_new("answers/new", b"x")
    for kind in ("answers", "files"):
        os.utime(here.box / kind / "old", (1, 1), follow_symlinks=False)
    box.objects.put("beats/me", b"1")
    box.sweep("beats/me")
    assert [*box.objects.listed("answers/"), *box.objects.listed("files/")] == ["answers/new"]


def test_a_folder_leads_to_one_store_and_is_no_store_itself(tmp_path: Path) -> None:
    append_many(DirectoryStore(tmp_path / "store").catalog(), "c", 1)
    with pytest.raises(ConfigurationError, match="is a store itself"):
        Box.make(tmp_path / "store", "file:///far")
    with pytest.raises(NoStore, match="hopaas-p2p serve folder"):
        open_store(f"folder://{tmp_path}/box")
    Box.make(tmp_path / "box", "file:///far")
    Box.make(tmp_path / "box", "file:///far")
    with pytest.raises(ConfigurationError, match=r"already serves another store, file:///far"):
        Box.make(tmp_path / "box", "file:///another")
    assert open_store(tmp_path / "box").url == f"folder://{tmp_path}/box", "its path will do as well"
    assert not (tmp_path / "box" / "v1").exists()
    with pytest.raises(ConfigurationError, match="three slashes"):
        open_store("folder://shared/box")


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", json.dumps({"store": 1})])
def test_a_description_that_is_none_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / boxes.BOX).write_text(text)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_store(f"folder://{tmp_path}")
