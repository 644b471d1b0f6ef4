"""A bridge between two stores: one study on both sides, whatever dies, and however long the link is down."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import NoReturn

import pytest

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.chain import following
from hopaas_p2p.core.records import Commit, Stamp, TrialCreate, TrialFinish, TrialReclaim, TrialSet
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.errors import (
    BehindRetention,
    BrokenChain,
    ConfigurationError,
    Denied,
    HopaasError,
    StoreCorrupt,
    StoreUnreachable,
    StudyDeleted,
)
from hopaas_p2p.open import open_store
from hopaas_p2p.peer.peer import Peer as RealPeer
from hopaas_p2p.stores.base import Beat, Entry, ExchangeResult, Outgoing
from hopaas_p2p.stores.bridge.bridge import Bridge
from hopaas_p2p.stores.bridge.endpoints import open_endpoints
from hopaas_p2p.stores.bridge.messages import INBOX, REPLIES, Append, CarryBeats
from hopaas_p2p.stores.bridge.store import BridgedStore
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.memory import MemoryLog
from hopaas_p2p.testing.commits import append_many, everything, outgoing, sealed
from hopaas_p2p.testing.faults import SURVIVABLE, Crash, Fault, at_random
from tests.support.bridge_world import STUDY, Peer, World, founded, replayed, same_study_on_both_sides
from tests.support.scribe import COMPLETE, FAIL, RUNNING

CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)


@pytest.fixture
def world() -> World:
    """Two sides, a bridge, and a study."""
    made = World()
    founded(made)
    return made


@pytest.fixture
def near(world: World) -> Peer:
    return world.near_peer("near")


def tell(peer: Peer, verdict: Verdict, value: float = 1.0, epoch: int = 1) -> Verdict:
    assert verdict.number is not None
    return peer.say(TrialFinish(verdict.number, epoch, COMPLETE, values=(value,)))


def finishes(state: State) -> list[str]:
    return [trial.state.name for trial in state.trials]


# --- one study ---------------------------------------------------------------------------------------------------


@pytest.mark.path
def test_peers_on_both_sides_run_one_study(world: World) -> None:
    near, far, other = world.near_peer("near"), world.far_peer("far"), world.near_peer("other")
    numbers = []
    for _ in range(5):
        for peer in (near, far, other):
            asked = peer.say(TrialCreate())
            tell(peer, asked)
            numbers.append(asked.number)
    assert numbers == list(range(15))
    world.settle(5)
    state = same_study_on_both_sides(world)
    assert finishes(state) == ["COMPLETE"] * 15
    assert snapshot.digest(near.read()) == snapshot.digest(far.read())


def test_authors_and_roles_are_those_of_the_far_store() -> None:
    world = World()
    stamped = [Entry(lsn, outgoing(f"c{lsn}").payload, Stamp("ann", "worker", 17 + lsn)) for lsn in (1, 2, 3)]

    class Stamping(MemoryLog):
        def exchange(self, outgoing: object, since: int, beat: object = None) -> ExchangeResult:
            return ExchangeResult(stamped[since:])

    world.far._logs[STUDY] = Stamping()
    assert world.mirror() == stamped


def test_a_commit_that_stood_in_the_far_log_before_is_not_appended_again(near: Peer, world: World) -> None:
    near.say(TrialCreate())
    sent = everything(world.far.log(STUDY))[-1].payload
    fresh = world.store().log(STUDY)
    assert fresh.exchange(Outgoing("near:1", sent), 0).entries[-1].payload == sent
    assert len(everything(world.far.log(STUDY))) == 2


def test_a_commit_that_its_sender_has_passed_already_is_answered_and_not_appended_again(world: World) -> None:
    near = world.near_peer("near")
    near.say(TrialCreate())
    sent = everything(world.far.log(STUDY))[-1].payload
    other = world.near_peer("other")
    other.read()
    other.replica.send_for_another([Outgoing("near:1", sent)])
    assert len(everything(world.far.log(STUDY))) == 2


def test_several_pieces_hold_a_long_log_and_it_is_read_from_anywhere() -> None:
    world = World()
    append_many(world.far.log(STUDY), "a", 700)
    entries = world.mirror()
    assert [entry.payload for entry in entries] == [outgoing(f"a-{i}").payload for i in range(700)]
    log = world.store().log(STUDY)
    for since in (699, 0, 256, 255, 513, 700, 1):
        assert log.exchange(None, since).entries == entries[since:]


# --- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", CRASHES)
@pytest.mark.parametrize("side", ["near", "far"])
def test_a_bridge_may_die_at_any_exchange(side: str, fault: Fault) -> None:
    for moment in itertools.count():
        world = World(**{f"{side}_faults": [*[None] * moment, fault]})
        founded(world)
        near, far = world.near_peer("near"), world.far_peer("far")
        for peer in (near, far, near):
            tell(peer, peer.say(TrialCreate()))
        world.settle(5)
        state = same_study_on_both_sides(world)
        assert finishes(state) == ["COMPLETE"] * 3
        assert state.lsn == 7
        if not world.crashes:
            assert moment > 10
            return


@pytest.mark.parametrize("bridges", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_a_storm_loses_and_doubles_nothing(seed: int, bridges: int) -> None:
    world = World(
        near_faults=at_random(seed, 0.1, (Fault.REFUSE, Fault.LOSE_REPLY, Fault.DUPLICATE, *CRASHES)),
        far_faults=at_random(seed + 100, 0.2, (*SURVIVABLE, *CRASHES)),
        bridges=bridges,
        seed=seed,
    )
    founded(world, attempts=1)
    peers = [world.near_peer("near"), world.near_peer("other"), world.far_peer("far")]
    for turn in range(12):
        peer = peers[world.random.randrange(3)]
        assert tell(peer, peer.say(TrialCreate()), float(turn)).accepted
    world.settle(120)
    state = same_study_on_both_sides(world)
    assert finishes(state) == ["COMPLETE"] * 12
    assert sorted(trial.values[0] for trial in state.trials if trial.values) == list(map(float, range(12)))


def test_two_bridges_without_faults_append_nothing_twice() -> None:
    for seed in range(5):
        world = World(bridges=2, seed=seed)
        founded(world)
        peers = [world.near_peer(f"near-{i}") for i in range(3)]
        for _ in range(5):
            for peer in peers:
                tell(peer, peer.say(TrialCreate()))
        assert same_study_on_both_sides(world).lsn == 31


@pytest.mark.parametrize("seed", range(6))
def test_commits_that_cross_side_by_side_count_once_each_and_each_writers_in_order(seed: int) -> None:
    faults = (*SURVIVABLE, *CRASHES) if seed else ()
    world = World(far_faults=at_random(seed, 0.2 if seed else 0.0, faults or SURVIVABLE), pool=4, seed=seed)
    founded(world, attempts=1)
    peers = [world.near_peer(f"near-{number}") for number in range(6)]
    asked = [peer.say(TrialCreate()).number or 0 for peer in peers]
    for _ in range(3):
        world.break_off("link")
        for peer, number in zip(peers, asked, strict=True):
            peer.replica.put(peer.name, TrialSet(number, 1, reports={1: 1.0}))
            with pytest.raises(StoreUnreachable):
                peer.replica.exchange()
        world.restore()
        world.settle(60)
        for peer in peers:
            peer.read()
    for peer, number in zip(peers, asked, strict=True):
        assert tell(peer, Verdict(True, number)).accepted
    world.settle()  # who was told last is told of it while others still hear
    state = same_study_on_both_sides(world)
    assert finishes(state) == ["COMPLETE"] * 6
    assert [state.writers[peer.name].seq for peer in peers] == [5] * 6
    for bridge in world.bridges:
        bridge._pool.close()


def test_several_commits_cross_in_one_go_where_there_is_a_pool() -> None:
    world = World(pool=4)
    founded(world)
    stores = [world.store(timeout=0.0) for _ in range(4)]
    for number, store in enumerate(stores):
        with pytest.raises(StoreUnreachable):
            store.log(STUDY).exchange(Outgoing(f"w{number}:1", outgoing(f"c{number}").payload), 0)
    world.step()
    assert len(everything(world.far.log(STUDY))) == 5
    assert sorted(one.nonce for one in world.far_side.sent) == [f"w{number}:1" for number in range(4)]
    world.bridges[0]._pool.close()


def test_garbage_in_the_inbox_and_in_the_mirror_is_passed_over(near: Peer, world: World) -> None:
    for name in (INBOX, REPLIES, STUDY):
        for body in (b"", b"nonsense", b"\x93\xa6append\xa1x", b"\x92\xa5watch\xa9../../etc", bytes(range(256))):
            world.near.log(name).exchange(Outgoing("g", sealed(body)), 10**6)
    for name in (INBOX, REPLIES, "../../etc/passwd", "x" * 1000):
        world.store().post(Append(name, "e:1", outgoing("e").payload, 0))
    tell(near, near.say(TrialCreate()))
    assert finishes(same_study_on_both_sides(world)) == ["COMPLETE"]


# --- the link is down --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["bridge", "link"])
def test_what_was_told_while_the_link_was_down_for_hours_goes_when_it_is_back_though_the_peer_is_gone(how: str) -> None:
    world = World()
    founded(world)
    near = world.near_peer("near")
    asked = near.say(TrialCreate())
    world.break_off(how)
    near.replica.put("near", TrialFinish(asked.number or 0, 1, COMPLETE, values=(3.0,)))
    with pytest.raises(StoreUnreachable, match="Nothing is lost"):
        near.replica.exchange()
    del near
    world.now += 7 * 3600
    assert replayed(everything(world.far.log(STUDY))).running
    world.restore()
    world.settle(5)
    assert finishes(same_study_on_both_sides(world)) == ["COMPLETE"]


@pytest.mark.parametrize("how", ["bridge", "link"])
def test_a_trial_that_was_asked_for_by_who_has_gone_is_not_begun_when_the_link_is_back(world: World, how: str) -> None:
    gone, other = world.near_peer("gone"), world.near_peer("other")
    assert gone.read().lsn == other.read().lsn > 0
    world.break_off(how)
    for peer in (gone, other):
        peer.replica.put(peer.name, TrialCreate())
        with pytest.raises(StoreUnreachable):
            peer.replica.exchange()
    gone.replica.withdraw()
    world.settle(5)
    world.restore()
    world.settle(15)
    state = same_study_on_both_sides(world)
    assert [trial.owner for trial in state.trials] == ["other"]


def test_only_the_start_of_a_trial_is_called_back_and_only_before_it_was_carried(near: Peer, world: World) -> None:
    number = near.say(TrialCreate()).number or 0
    near.replica.withdraw()
    world.settle(5)
    world.break_off("bridge")
    near.replica.put("near", TrialFinish(number, 1, COMPLETE, values=(3.0,)), TrialCreate())
    with pytest.raises(StoreUnreachable):
        near.replica.exchange()
    near.replica.withdraw()
    world.restore()
    world.settle(5)
    assert [trial.state.name for trial in same_study_on_both_sides(world).trials] == ["COMPLETE", "RUNNING"]


@pytest.mark.parametrize("how", ["bridge", "link"])
def test_a_result_that_comes_after_a_reclaim_is_kept_as_a_late_one(how: str) -> None:
    world = World()
    founded(world, budget=10)
    near, far = world.near_peer("near"), world.far_peer("far")
    asked = near.say(TrialCreate())
    world.break_off(how)
    near.replica.put("near", TrialFinish(asked.number or 0, 1, COMPLETE, values=(3.0,)))
    with pytest.raises(StoreUnreachable):
        near.replica.exchange()
    world.now += 3600
    assert far.say(TrialReclaim(asked.number or 0, 1)).accepted
    world.restore()
    near.replica.exchange()
    world.settle(5)
    state = same_study_on_both_sides(world)
    assert [trial.late_of for trial in state.trials if trial.state is COMPLETE] == [0]
    assert state.trials[0].state is FAIL


@pytest.mark.parametrize("how", ["bridge", "link"])
def test_reads_go_on_while_the_link_is_down(near: Peer, world: World, how: str) -> None:
    near.say(TrialCreate())
    world.break_off(how)
    assert len(near.read().trials) == 1
    assert len(world.near_peer("new").read().trials) == 1


@pytest.mark.parametrize("how", ["bridge", "link"])
def test_a_log_that_no_bridge_has_brought_yet_is_not_taken_for_an_empty_one(world: World, how: str) -> None:
    world.break_off(how)
    with pytest.raises(StoreUnreachable, match="Is it running"):
        world.store().log(STUDY).exchange(None, 0)
    world.restore()
    assert len(world.store().log(STUDY).exchange(None, 0).entries) == 1


@pytest.mark.parametrize("pace", [0.05, 1.0])
@pytest.mark.parametrize("followed", [True, False])
def test_a_link_that_is_down_is_said_once_and_so_is_its_return(
    caplog: pytest.LogCaptureFixture, followed: bool, pace: float
) -> None:
    """Also where beats are looked for more often than the far side is asked: that is no sign of life of the link."""
    caplog.set_level(logging.INFO, "hopaas_p2p")
    world = World(pace=pace)
    founded(world)
    if followed:
        world.near_peer("near").read()
    world.break_off("link")
    world.settle(600)
    assert len(caplog.messages) == 1
    assert world.bridges[0].trouble is not None
    world.restore()
    world.settle(60)
    assert caplog.messages[1:] == ["the other side answers again"]
    assert world.bridges[0].trouble is None


def test_beats_that_the_far_side_does_not_take_are_said_once_while_all_else_crosses(
    near: Peer, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hopaas_p2p")

    def refuse(_: Beat) -> NoReturn:
        raise Denied("only a viewer")

    world.store().catalog().exchange(None, 0)
    with monkeypatch.context() as patch:
        patch.setattr(world.far, "beat", refuse)
        world.near.beat(Beat("near", "near:1"))
        world.store().post(CarryBeats("near"))
        world.settle(60)
        near.say(TrialCreate())
        for number in range(3):
            world.far_peer(f"far-{number}").say(TrialCreate())
            world.settle(20)
    assert finishes(same_study_on_both_sides(world)) == ["RUNNING"] * 4
    assert caplog.messages == ["only a viewer"]
    world.settle(20)
    assert caplog.messages[1:] == ["the other side answers again"]


def test_trouble_of_the_near_side_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = World().bridges[0]
    steps = itertools.count()

    def fail() -> NoReturn:
        raise StoreUnreachable("the disk is full")

    monkeypatch.setattr(bridge, "step", fail)
    bridge.run(lambda _: next(steps) == 5)
    assert caplog.messages == ["the near store: the disk is full"]


def test_who_may_only_look_into_the_directory_reads_the_mirror(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(world.mirror()) == 1
    looker = world.store()

    def refuse(_request: object) -> int:
        raise StoreUnreachable("Permission denied")

    monkeypatch.setattr(looker, "post", refuse)
    assert len(looker.log(STUDY).exchange(None, 0).entries) == 1
    with pytest.raises(StoreUnreachable):
        looker.log("another").exchange(None, 0)


def _inbox(world: World) -> list[Entry]:
    return everything(world.near.log(INBOX))


def test_the_inbox_grows_with_what_peers_say_and_hardly_otherwise(world: World) -> None:
    near, told = world.near_peer("near"), 20
    for _ in range(told):
        tell(near, near.say(TrialCreate()))
    carried = world.far.log(STUDY).exchange(None, 1).entries
    assert sum(len(one.payload) for one in _inbox(world)) < sum(len(one.payload) + 80 for one in carried) + 200
    before = len(_inbox(world))
    here = world.store()
    log = here.log(STUDY)
    for number in range(90):  # an hour of a peer that beats, reads, and looks at another
        here.beat(Beat("near", f"near:{number}"))
        here.beats(["other"])
        log.exchange(None, len(carried) + 1)
        world.settle(40)
    said = _inbox(world)[before:]
    assert len(said) <= 3 * (3600 / 300 + 2)
    assert sum(len(one.payload) for one in said) < 3000


# --- leases ------------------------------------------------------------------------------------------------------


def test_beats_cross_both_ways() -> None:
    world = World()
    here = world.store()
    here.beat(Beat("near", "near:1"))
    assert world.far.beats(["near"]) == {"near": "near:1"}
    world.far.beat(Beat("far", "far:1"))
    assert here.beats(["near", "far", "eve"]) == {"near": "near:1", "far": "far:1"}
    world.far.beat(Beat("far", "far:2"))
    assert here.beats(["far"]) == {"far": "far:2"}


@pytest.mark.parametrize("how", ["bridge", "link"])
def test_without_bridge_or_link_a_beat_does_not_count_and_nobody_is_looked_at(how: str) -> None:
    world = World()
    here = world.store()
    here.beat(Beat("near", "near:1"))
    here.beats(["near"])
    world.break_off(how)
    with pytest.raises(StoreUnreachable):
        here.beat(Beat("near", "near:2"))
    with pytest.raises(StoreUnreachable):
        here.beats(["near"])
    assert world.far.beats(["near"]) == {"near": "near:1"}
    world.restore()
    assert here.beats(["near"]) == {"near": "near:2"}, "what was said meanwhile goes as soon as it can"


def _real_peer(world: World, store: object, name: str) -> RealPeer:
    return RealPeer(
        store,  # type: ignore[arg-type]
        clock=lambda: world.now,
        threaded=False,
        describe=dict,
        patience=0.0,
        uuid=name,
    )


@pytest.mark.parametrize("how", ["bridge", "link"])
def test_owners_doubt_their_leases_while_the_link_is_down_and_nobody_is_reclaimed_for_it(how: str) -> None:
    world = World()
    founded(world, ttl=30.0)
    here, there = _real_peer(world, world.store(), "here"), _real_peer(world, world.far, "there")
    mine, theirs = here.log(STUDY), there.log(STUDY)
    here.commit(mine, TrialCreate())
    there.commit(theirs, TrialCreate())

    def live(seconds: float) -> None:
        until = world.now + seconds
        while world.now < until:
            here.tick()
            there.tick()
            world.sleep(1.0)

    live(90)
    assert here.lease_valid(mine, "here")
    assert len(mine.state.running) == len(theirs.state.running) == 2
    world.break_off(how)
    live(29)
    assert not here.lease_valid(mine, "here")
    assert there.lease_valid(theirs, "there")
    live(120)
    assert 0 not in theirs.state.running, "the far side takes a silent peer's trial over"
    world.restore()
    live(90)
    state = same_study_on_both_sides(world)
    assert 1 in state.running, "the far peer was never silent, only out of sight"
    assert here.lease_valid(mine, "here")


@pytest.mark.parametrize("dead", ["here", "there"])
def test_a_dead_owners_trial_is_back_within_two_ttl_on_either_side(dead: str) -> None:
    world = World()
    founded(world, ttl=30.0)
    real_peers = {"here": _real_peer(world, world.store(), "here"), "there": _real_peer(world, world.far, "there")}
    parts = {name: real_peer.log(STUDY) for name, real_peer in real_peers.items()}
    for name, real_peer in real_peers.items():
        real_peer.commit(parts[name], TrialCreate())
    until = world.now + 60
    while world.now < until:
        for real_peer in real_peers.values():
            real_peer.tick()
        world.sleep(1.0)
    killed = world.now
    del real_peers[dead]
    (survivor,) = real_peers
    while parts[survivor].state.trials[0 if dead == "here" else 1].state is RUNNING:
        real_peers[survivor].tick()
        world.sleep(1.0)
        assert world.now < killed + 60
    assert world.now > killed + 15


# --- refusals, deletion, restarts --------------------------------------------------------------------------------


class _Refusing(MemoryLog):
    """A far log that this bridge may read, but not write."""

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        if outgoing is not None:
            raise Denied("user ann is only a viewer of this study")
        return super().exchange(None, since)


def test_what_the_far_store_refuses_is_told_to_who_asked() -> None:
    world = World()
    world.far._logs[STUDY] = _Refusing()
    log = world.store().log(STUDY)
    for _ in range(2):
        with pytest.raises(Denied, match="only a viewer"):
            log.exchange(outgoing("a"), 0)
    assert log.exchange(None, 0).entries == []


def test_a_bridge_that_may_not_log_in_refuses_nobody_and_goes_on_with_a_new_token(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = world.near_peer("near")
    near.say(TrialCreate())
    allowed, exchange = [False], MemoryLog.exchange
    fars = (world.far.catalog(), world.far.log(STUDY))

    def guarded(self: MemoryLog, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        if self in fars and not allowed[0]:
            raise Denied("the token has expired")
        return exchange(self, outgoing, since, beat)

    monkeypatch.setattr(MemoryLog, "exchange", guarded)
    monkeypatch.setattr(MemoryLog, "changed", lambda self, since: None)
    near.replica.put("near", TrialFinish(0, 1, COMPLETE, values=(1.0,)))
    with pytest.raises(StoreUnreachable):
        near.replica.exchange()
    assert world.bridges[0].trouble == "the token has expired"
    allowed[0] = True
    world.settle(30)
    assert finishes(same_study_on_both_sides(world)) == ["COMPLETE"]
    assert world.bridges[0].trouble is None


@pytest.mark.parametrize("error", [BrokenChain("commit 2 is gone from the log"), StoreCorrupt("commit 2 is damaged")])
def test_what_is_wrong_with_the_far_log_is_told_to_who_would_write_to_it(
    near: Peer, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: HopaasError
) -> None:
    near.say(TrialCreate())
    far = world.far.log(STUDY)
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
    assert caplog.messages == [str(error)]
    world.far_peer("far").say(TrialCreate())
    world.settle(5)
    assert finishes(same_study_on_both_sides(world)) == ["RUNNING", "RUNNING"]


def test_an_older_backup_of_the_far_store_stops_the_peers_on_this_side(near: Peer, world: World) -> None:
    near.say(TrialCreate())
    log = world.far.log(STUDY)
    restored = everything(log)[:1]
    log._entries.clear()
    log.restore(None, restored)
    log._sum = following(0, restored[0].payload)
    near.replica.put("near", TrialFinish(0, 1, COMPLETE, values=(1.0,)))
    with pytest.raises(BrokenChain):
        near.replica.exchange()
    assert everything(log) == restored


def test_who_has_seen_more_than_there_is_is_told_so_and_the_mirror_stays(near: Peer, world: World) -> None:
    near.say(TrialCreate())
    stranger = Append(STUDY, "zombie:9", outgoing("z").payload, 1000)
    store = world.store()
    with pytest.raises(StudyDeleted):
        store.wait(store.post(stranger), lambda: False)
    tell(near, Verdict(True, 0))
    assert finishes(same_study_on_both_sides(world)) == ["COMPLETE"]


def test_the_list_of_studies_cannot_be_destroyed_over_a_bridge() -> None:
    world = World()
    append_many(world.far.catalog(), "c", 2)
    catalog = world.store().catalog()
    assert len(everything(catalog)) == 2
    with pytest.raises(Denied, match="list of studies"):
        catalog.destroy()
    append_many(world.far.catalog(), "d", 1, 2)
    world.settle(5)
    assert len(everything(catalog)) == 3


def test_a_study_that_is_deleted_far_away_ends_here_too(world: World) -> None:
    log = world.store().log(STUDY)
    since = log.exchange(None, 0).entries[-1].lsn
    world.far.log(STUDY).destroy()
    world.settle(5)
    with pytest.raises(StudyDeleted):
        log.exchange(outgoing("late"), since)
    with pytest.raises(StudyDeleted):
        world.store().log(STUDY).exchange(outgoing("later"), since)


def test_a_new_bridge_knows_what_its_predecessor_was_asked_for(world: World) -> None:
    log, here = world.store().log(STUDY), world.store()
    log.exchange(None, 0)
    here.beat(Beat("near", "near:1"))
    here.beats(["far"])
    world.settle(5)
    world.bridges = [world.new_bridge()]
    world.far_peer("far").say(TrialCreate())
    world.far.beat(Beat("far", "far:1"))
    world.settle(2)
    assert len(log.exchange(None, 1).entries) == 1
    assert here.beats(["far"]) == {"far": "far:1"}
    here.beat(Beat("near", "near:2"))
    assert world.far.beats(["near"]) == {"near": "near:2"}


def test_requests_that_were_read_before_the_near_store_failed_are_carried_out(
    near: Peer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    near.read()
    inbox = world.near.log(INBOX)
    exchange, faults = inbox.exchange, iter([None, StoreUnreachable("stale file handle")])

    def in_two(outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        if outgoing is not None:
            return exchange(outgoing, since, beat)
        error = next(faults, None)
        if error is not None:
            raise error
        entries = exchange(None, since).entries
        return ExchangeResult(entries[:1], more=bool(entries))

    world.down = True
    near.replica.put("near", TrialCreate())
    with pytest.raises(StoreUnreachable):
        near.replica.exchange()
    monkeypatch.setattr(inbox, "exchange", in_two)
    world.down = False
    world.settle(5)
    assert finishes(same_study_on_both_sides(world)) == ["RUNNING"]


def test_requests_that_were_dealt_with_are_not_read_again_by_the_next_bridge(near: Peer, world: World) -> None:
    for _ in range(20):
        tell(near, near.say(TrialCreate()))
    world.settle(5)
    newest = world.near.log(INBOX).newest_snapshot()
    assert newest is not None
    assert newest[0] == len(everything(world.near.log(INBOX)))


# --- snapshots ---------------------------------------------------------------------------------------------------


def test_snapshots_cross_both_ways(near: Peer, world: World) -> None:
    for _ in range(3):
        near.say(TrialCreate())
    near.replica.write_snapshot()
    world.settle(5)
    found = world.far.log(STUDY).newest_snapshot()
    assert found is not None
    assert found[0] == 4
    append_many(world.far.log(STUDY), "far", 300, 4)
    world.far.log(STUDY).put_snapshot(256, b"written far away")
    world.settle(5)
    log = world.store().log(STUDY)
    assert log.newest_snapshot() == (256, b"written far away")
    assert [entry.lsn for entry in log.exchange(None, 256).entries] == list(range(257, 305))


def test_a_snapshot_that_nobody_has_written_is_not_asked_for_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    append_many(world.far.log(STUDY), "far", 300)
    asked = []
    monkeypatch.setattr(world.far.log(STUDY), "newest_snapshot", lambda **_: asked.append(1))
    world.mirror()
    world.settle(60)
    assert len(asked) == 1
    append_many(world.far.log(STUDY), "more", 20, 300)
    world.settle(60)
    assert len(asked) == 2


def _clean_up(log: MemoryLog) -> None:
    """Let a log have 320 commits, of which `gc` has removed the first 300."""
    there = len(everything(log))
    append_many(log, "a", 320 - there, there)
    log.put_snapshot(310, b"the state of then")
    exchange = log.exchange

    def collected(outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        if since < 300:
            raise BehindRetention
        return exchange(outgoing, since, beat)

    log.exchange = collected  # type: ignore[method-assign]


def test_a_far_log_whose_beginning_was_removed_is_mirrored_from_its_snapshot_on() -> None:
    world = World()
    _clean_up(world.far.log(STUDY))
    log = world.store().log(STUDY)
    with pytest.raises(BehindRetention):
        log.exchange(None, 0)
    assert log.newest_snapshot() == (310, b"the state of then")
    assert [entry.lsn for entry in log.exchange(None, 310).entries] == list(range(311, 321))
    receipt = log.exchange(outgoing("b"), 320)
    assert [entry.lsn for entry in receipt.entries] == [321]
    world.bridges = [world.new_bridge()]
    assert [entry.lsn for entry in log.exchange(outgoing("c"), 321).entries] == [322]


@pytest.mark.parametrize("dies", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
@pytest.mark.parametrize("call", ["put_snapshot", "exchange"])
def test_a_bridge_may_die_while_it_continues_after_a_snapshot(call: str, dies: Fault) -> None:
    world = World()
    _clean_up(world.far.log(STUDY))
    mirror = world.near.log(STUDY)
    act, deaths = getattr(mirror, call), iter([dies])

    def deadly(*args: object) -> object:
        death = next(deaths, None) if call == "put_snapshot" or args[0] is not None else None
        if death is Fault.CRASH_BEFORE:
            raise Crash
        result = act(*args)
        if death is Fault.CRASH_AFTER:
            raise Crash
        return result

    setattr(mirror, call, deadly)
    log = world.store().log(STUDY)
    with pytest.raises(BehindRetention):
        log.exchange(None, 0)
    world.settle(5)
    assert world.crashes == 1
    assert log.newest_snapshot() == (310, b"the state of then")
    assert [entry.lsn for entry in log.exchange(outgoing("b"), 310).entries] == list(range(311, 322))


def test_of_two_bridges_that_were_away_while_a_log_was_cleaned_up_either_can_continue() -> None:
    world = World(bridges=2)
    append_many(world.far.log(STUDY), "a", 10)
    world.mirror()
    world.settle(20)
    assert [bridge._relays[STUDY]._mirror.lsn for bridge in world.bridges] == [10, 10]
    _clean_up(world.far.log(STUDY))
    world.settle(20)
    for bridge in world.bridges:
        assert (bridge.trouble, bridge._relays[STUDY]._mirror.lsn) == (None, 320)


# --- the two ends ------------------------------------------------------------------------------------------------


def test_a_directory_becomes_one_end_of_a_bridge_for_good(tmp_path: Path) -> None:
    near, far = str(tmp_path / "near"), str(tmp_path / "far")
    open_endpoints(near, far, open_store)
    opened = open_store(near)
    assert isinstance(opened, BridgedStore)
    assert opened.leads_to == (tmp_path / "far").as_uri()
    assert isinstance(open_endpoints(near, far, open_store).near, DirectoryStore)
    with pytest.raises(ConfigurationError, match="restore into the store at the other end"):
        opened.log("u").restore(None, [])
    with pytest.raises(ConfigurationError, match="itself one end of a bridge"):
        open_endpoints(str(tmp_path / "third"), near, open_store)
    with pytest.raises(ConfigurationError, match="the same store twice"):
        open_endpoints(far, far, open_store)


def test_studies_of_its_own_are_not_hidden_by_a_bridge(tmp_path: Path) -> None:
    append_many(DirectoryStore(tmp_path / "near").catalog(), "c", 1)
    with pytest.raises(ConfigurationError, match="studies of its own"):
        open_endpoints(str(tmp_path / "near"), str(tmp_path / "far"), open_store)
    assert isinstance(open_store(str(tmp_path / "near")), DirectoryStore)


def test_a_store_that_moved_is_known_again_and_another_one_is_refused(tmp_path: Path) -> None:
    append_many(DirectoryStore(tmp_path / "far").catalog(), "c", 2)
    append_many(DirectoryStore(tmp_path / "stranger").catalog(), "d", 2)
    near = str(tmp_path / "near")
    ends = open_endpoints(near, str(tmp_path / "far"), open_store)
    bridge = Bridge(ends.near, ends.far, pace=0.05)
    bridge.step()
    (tmp_path / "far").rename(tmp_path / "moved")
    with pytest.raises(ConfigurationError, match="mirror of another store"):
        open_endpoints(near, str(tmp_path / "stranger"), open_store)
    open_endpoints(near, str(tmp_path / "moved"), open_store)
    found = open_store(near)
    assert isinstance(found, BridgedStore)
    assert found.leads_to == (tmp_path / "moved").as_uri()


def test_commits_are_carried_byte_for_byte_with_their_nonces(near: Peer, world: World) -> None:
    near.say(TrialCreate())
    sent = world.far_side.sent  # type: ignore[attr-defined]
    assert [one.nonce for one in sent] == ["near:1"]
    commit = codec.decode(sent[0].payload)
    assert isinstance(commit, Commit)
    assert (commit.writer, commit.seq) == ("near", 1)
