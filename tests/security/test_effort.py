"""What a record costs to apply: as much as its own bytes, however large the trial that it names."""

from __future__ import annotations

import bisect
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from hopaas_p2p.core import blocks, codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.attributes import FIDELITY
from hopaas_p2p.core.blocks import close_settled
from hopaas_p2p.core.fidelity import Fidelity, Population, Rungs, encode_fidelity
from hopaas_p2p.core.inherited import StepValues
from hopaas_p2p.core.leases import OwnerMonitor
from hopaas_p2p.core.records import (
    Budget,
    Categorical,
    Checkpoint,
    Distribution,
    Float,
    PeerJoin,
    Policy,
    Price,
    StudySet,
    TrialCheckpoint,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    TrialState,
    TrialStop,
    TrialTakeOver,
    Until,
)
from hopaas_p2p.core.state import BLOCK, State
from hopaas_p2p.moving.rescue import united
from hopaas_p2p.stores.base import Entry
from hopaas_p2p.study.method import chosen_by
from tests.support.dashboard_studies import COMPLETE, Scribe


class Step(int):
    """A step that counts how often it is looked at, also by what is written in C."""

    looks = 0

    def _look(name: str) -> Any:  # noqa: N805  # no method
        method = getattr(int, name)

        def look(self: int, *other: object) -> Any:
            Step.looks += 1
            return method(self, *other)

        return look

    __hash__, __eq__, __lt__, __le__, __gt__, __ge__ = map(  # type: ignore[assignment]
        _look, ("__hash__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__")
    )


def effort(work: Callable[[], object]) -> int:
    """Instructions of Python, looks at steps, and memory that is taken meanwhile, in units of some 100 ns."""
    instructions = 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal instructions
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        instructions += event == "opcode"
        return count

    before, Step.looks = sys.gettrace(), 0
    tracemalloc.start()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(before)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return instructions + Step.looks + peak // 64


def study(fidelity: Fidelity | None = None, **policy: Any) -> Scribe:
    """One whose ledger has limits, which look at everything."""
    until = Until(trials_without_gain=1 << 30, hours_without_gain=1e9)
    limits = Budget(epochs=1 << 50, euro=1e15, prices={"*": Price(gpu_hour=0.1)}, until=until)
    scribe = Scribe(space={}, policy=Policy(limits=limits, attempts=1000, **policy))
    if fidelity is not None:
        scribe.say("definer", StudySet(system={FIDELITY: encode_fidelity(fidelity)}))
    return scribe


def large(scribe: Scribe, size: int) -> None:
    """Trial 0 runs, and has said very much, with a checkpoint near its end."""
    values = {Step(step): float(step) for step in range(size)}
    said = {f"a{i}": "1" for i in range(size)}
    scribe.say("w", TrialCreate())
    scribe.say("w", TrialSet(0, 1, reports=values, user=said, system=said, metrics={"m": dict(values)}))
    scribe.say("w", TrialCheckpoint(0, 1, Checkpoint(size - 5, "k", 1, "0")))


Round = Callable[[int], tuple[object, ...]]
"""The records of one attempt, by the number of the attempt from 1."""


def going_back(size: int) -> tuple[Scribe, Round]:
    scribe = study()
    large(scribe, size)
    return scribe, lambda at: (TrialSet(0, 1, resumed_from=size - 100 - at, reports={size - 99 - at: 0.0}),)


def going_back_in_many_small_steps(size: int) -> tuple[Scribe, Round]:
    scribe = study(Rungs(min=10, max=10 * size))
    large(scribe, size)
    for at in range(20):
        scribe.say("w", TrialSet(0, 1, resumed_from=size - 100, reports={size * 2 + at: 0.0}))
    return scribe, lambda at: (TrialSet(0, 1, resumed_from=size - 200 - at),)


def going_back_with_many_metrics(size: int) -> tuple[Scribe, Round]:
    scribe = study()
    values = {Step(step): 1.0 for step in range(size // 80)}
    scribe.say("w", TrialCreate(), TrialSet(0, 1, metrics={f"m{at}": dict(values) for at in range(64)}))
    return scribe, lambda at: (TrialSet(0, 1, resumed_from=size - at),)


def giving_back_many_metrics(size: int) -> tuple[Scribe, Round]:
    scribe, _ = going_back_with_many_metrics(size)
    scribe.say("w", TrialCheckpoint(0, 1, Checkpoint(size, "k", 1, "0")))
    return scribe, lambda at: (TrialRelease(0, at), TrialClaim(0))


def reporting(size: int) -> tuple[Scribe, Round]:
    scribe = study(Rungs(min=size // 2, max=size * 4))
    large(scribe, size)
    return scribe, lambda at: (TrialSet(0, 1, reports={size + 2 * at: 0.0}, metrics={"m": {size + at: 1.0}}),)


def attributes(size: int) -> tuple[Scribe, Round]:
    scribe = study()
    large(scribe, size)
    return scribe, lambda at: (TrialSet(0, 1, user={f"b{at}": "1"}, system={f"b{at}": "1"}),)


def attributes_of_the_study(size: int) -> tuple[Scribe, Round]:
    scribe, said = study(), {f"a{at}": "1" for at in range(size)}
    scribe.say("w", StudySet(user=said, system=said))
    return scribe, lambda at: (StudySet(user={f"b{at}": "1"}, system={f"b{at}": "1"}),)


def giving_back_and_taking_again(size: int) -> tuple[Scribe, Round]:
    scribe = study()
    large(scribe, size)
    return scribe, lambda at: (TrialRelease(0, at), TrialClaim(0))


def retries(size: int) -> tuple[Scribe, Round]:
    scribe = study(Rungs(min=size * 2, max=size * 10))
    large(scribe, size)
    return scribe, lambda at: (TrialReclaim(at - 1, 1), TrialClaim(at))


def continuations(size: int) -> tuple[Scribe, Round]:
    scribe = study(Rungs(min=size, max=size << 10, eta=2), budget=1)
    large(scribe, size)
    return scribe, lambda at: (
        TrialSet(at - 1, 1, reports={Step(size << at): 1.0}, user={"b": "1"}),
        TrialFinish(at - 1, 1, TrialState.PRUNED, paused=True),
        TrialCreate(prefer_waiting=True),
    )


def continuations_of_a_member(size: int) -> tuple[Scribe, Round]:
    scribe = study(Population(size=2, every=size, max=size * 10), budget=1)
    large(scribe, size)
    return scribe, lambda at: (
        TrialSet(at - 1, 1, reports={Step(size * at): 1.0}, resumed_from=size - 10 - at),
        TrialFinish(at - 1, 1, TrialState.PRUNED, paused=True),
        TrialCreate(prefer_waiting=True),
    )


def attributes_of_a_member_that_does_not_pause(size: int) -> tuple[Scribe, Round]:
    scribe = study(Population(size=2, every=20, max=size))
    large(scribe, size)
    return scribe, lambda at: (TrialSet(0, 1, user={f"b{at}": "1"}, metrics={"m": {size: 0.0}}),)


def reports_beyond_all_pauses(size: int) -> tuple[Scribe, Round]:
    scribe = study(Population(size=2, every=20, max=size))
    scribe.say("w", TrialCreate())
    return scribe, lambda at: (TrialSet(0, 1, reports={1 << 40: float(at)}),)


def late_results(size: int) -> tuple[Scribe, Round]:
    scribe = study()
    large(scribe, size)
    for epoch in range(1, 10):
        scribe.say("w", TrialRelease(0, epoch), TrialClaim(0))
    scribe.say("w", TrialReclaim(0, 10))
    return scribe, lambda at: (TrialSet(0, at, user={"b": "1"}), TrialFinish(0, at, COMPLETE, (1.0,)))


def results_behind_a_long_history(size: int) -> tuple[Scribe, Round]:
    scribe = study()
    scribe.say("w", TrialCreate())
    for epoch in range(1, size // 20):
        scribe.say("w", TrialRelease(0, epoch), TrialClaim(0))
    return scribe, lambda at: (
        TrialFinish(0, at, COMPLETE, (1.0,)),
        TrialRelease(0, size // 20 + at - 1),
        TrialClaim(0),
    )


def late_results_in_one_commit(size: int) -> tuple[Scribe, Round]:
    scribe = study()
    for number in range(size // 100):
        scribe.say("w", TrialCreate())
        scribe.say("w", TrialReclaim(number * 2, 1))
    late = [
        (TrialSet(at * 2, 1, user={"b": "1"}), TrialFinish(at * 2, 1, COMPLETE, (1.0,))) for at in range(size // 100)
    ]
    return scribe, lambda _: tuple(record for both in late for record in both)


def replicates(size: int) -> tuple[Scribe, Round]:
    scribe, said = study(), {f"a{at}": "1" for at in range(size)}
    scribe.say("w", TrialCreate(user=said, system=said, replicates=20))
    return scribe, lambda _: (TrialCreate(prefer_waiting=True),)


def parameters_with_a_distribution(size: int) -> tuple[Scribe, Round]:
    space: dict[str, Distribution] = {f"p{at}": Float(0.0, 1.0) for at in range(size)}
    scribe = study()
    space["c"] = Categorical(tuple(range(size)))
    scribe.say("w", TrialCreate(params=dict.fromkeys(space, 0.5), dists=space))
    return scribe, lambda at: (
        TrialSet(0, 1, params={f"q{at}": 2.0, "p1": 2.0}, dists={f"q{at}": Float(0.0, 1.0)}),
        TrialSet(0, 1, params={"c": 0.0}, dists={"c": Categorical((1,))}),
    )


def other_choices_than_long_ones(size: int) -> tuple[Scribe, Round]:
    scribe = study()
    scribe.say("w", TrialCreate(params={"c": 0.0}, dists={"c": Categorical(("x" * 100 * size,))}))
    return scribe, lambda _: (TrialSet(0, 1, params={"c": 0.0}, dists={"c": Categorical(("a",))}),)


def giving_back_for_the_thousandth_time(size: int) -> tuple[Scribe, Round]:
    scribe = study()
    scribe.say("w", TrialCreate())
    for first in range(1, size, 1000):
        scribe.say("w", *[one for at in range(1000) for one in (TrialRelease(0, first + at), TrialClaim(0))])
    return scribe, lambda at: (TrialRelease(0, size + at), TrialClaim(0))


def better_results(size: int) -> tuple[Scribe, Round]:
    scribe = study()
    for at in range(size // 20):
        scribe.say("w", TrialCreate(COMPLETE, values=(-float(at),)))
    return scribe, lambda at: (TrialCreate(COMPLETE, values=(-float(size + at),)),)


def costs_beside_those_of_many_sites(size: int) -> tuple[Scribe, Round]:
    scribe = study()
    for at in range(size // 25):
        scribe.join(f"p{at}", f"s{at}")
        scribe.say(f"p{at}", TrialCreate(), TrialFinish(at, 1, TrialState.FAIL))
    scribe.say("w", TrialCreate())
    return scribe, lambda at: (TrialSet(size // 25, 1, reports={at: 1.0}), TrialStop(size, 1))


def the_same_rungs_again(size: int) -> tuple[Scribe, Round]:
    scribe = study(Rungs())
    for _ in range(size // 20):
        scribe.say("w", TrialCreate(COMPLETE, values=(1.0,), reports={0: 1.0}))
    return scribe, lambda at: (StudySet(system={FIDELITY: encode_fidelity(Rungs()) + " " * at}),)


def asks_beside_interrupted_continuations(size: int) -> tuple[Scribe, Round]:
    scribe = study(Rungs(min=1, max=4, eta=2))
    for at in range(size // 20):
        scribe.say(
            "w", TrialCreate(), TrialSet(at, 1, reports={0: 1.0}), TrialFinish(at, 1, TrialState.PRUNED, paused=True)
        )
    first = size // 20
    taken = [scribe.say("w", TrialCreate(prefer_waiting=True))[0].number for _ in range(size // 50)]
    for number in taken:
        scribe.say("w", TrialRelease(number, 1))
    assert first in taken
    return scribe, lambda at: (TrialCreate(prefer_waiting=True),)


@pytest.mark.parametrize(
    "case",
    [
        going_back,
        going_back_in_many_small_steps,
        going_back_with_many_metrics,
        giving_back_many_metrics,
        reporting,
        attributes,
        attributes_of_the_study,
        giving_back_and_taking_again,
        retries,
        continuations,
        continuations_of_a_member,
        attributes_of_a_member_that_does_not_pause,
        reports_beyond_all_pauses,
        late_results,
        results_behind_a_long_history,
        late_results_in_one_commit,
        replicates,
        parameters_with_a_distribution,
        other_choices_than_long_ones,
        giving_back_for_the_thousandth_time,
        better_results,
        costs_beside_those_of_many_sites,
        the_same_rungs_again,
        asks_beside_interrupted_continuations,
    ],
)
def test_a_record_costs_its_own_bytes_and_not_those_of_what_it_names(
    case: Callable[[int], tuple[Scribe, Round]],
) -> None:
    costs = []
    for size in (2_000, 20_000):
        scribe, records = case(size)
        for at in (1, 2) if case is not late_results_in_one_commit else ():
            scribe.say("w", *records(at))
        said = records(3)
        costs.append(effort(lambda: scribe.say("w", *said)) / len(said))  # noqa: B023  # called at once
    assert costs[1] <= 1.5 * costs[0] + 200, costs


def test_a_record_about_a_trial_that_is_over_takes_no_block_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    scribe = study()
    for number in range(2 * BLOCK):
        scribe.say("w", TrialCreate(reports={0: 1.0}), TrialFinish(number, 1, COMPLETE, (1.0,)))
    for number in range(2 * BLOCK, 3 * BLOCK, 2):
        scribe.say("w", TrialCreate(), TrialReclaim(number, 1), TrialFinish(number + 1, 0, TrialState.FAIL))
    open_ = snapshot.load(snapshot.dump(scribe.state))
    for index in list(open_.trials.closed):
        open_.trials.opened(index * BLOCK)
    assert not open_.trials.closed
    close_settled(scribe.state)
    assert len(scribe.state.trials.closed) == 3

    def refuse(*_: object) -> Any:
        raise AssertionError("taken apart")

    monkeypatch.setattr(blocks, "unpack", refuse)
    records = [
        kind(number, epoch, *more)
        for number in (5, BLOCK + 5, 2 * BLOCK + 6, 2 * BLOCK + 7)
        for epoch in (0, 1, 2)
        for kind, more in (
            *((TrialSet, ()), (TrialFinish, (TrialState.PRUNED,)), (TrialFinish, (COMPLETE, (1.0, 2.0)))),
            *((TrialRelease, ()), (TrialReclaim, ()), (TrialTakeOver, (COMPLETE,)), (TrialStop, ())),
            (TrialCheckpoint, (Checkpoint(1, "k", 1, "0"),)),
        )
    ]
    claims = [TrialClaim(number) for number in (5, BLOCK + 5)]
    for peer in ("w", "x"):
        verdicts = scribe.say(peer, *records, *claims)
        assert verdicts == apply(open_, open_.lsn + 1, scribe.commits[-1])
        assert {one.refusal for one in verdicts} == {"finished", "fenced", "malformed", "not running"}


def test_reports_that_come_backwards_are_not_moved_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a list moves to make room for a number is quick, and adds up: 4 MB of reports took half a minute."""
    moved, insort = 0, bisect.insort

    def count(steps: list[int], step: int) -> None:
        nonlocal moved
        moved += len(steps) - bisect.bisect(steps, step)
        insort(steps, step)

    monkeypatch.setattr(bisect, "insort", count)
    scribe = study()
    scribe.say("w", TrialCreate(reports=dict.fromkeys(range(1000, 2000), 0.0)))
    scribe.say("w", TrialSet(0, 1, reports={-step: float(step) for step in range(30_000)}))
    assert list(snapshot.load(snapshot.dump(scribe.state)).trials[0].reports)[-1] == -29_999
    assert moved < 100_000_000
    scribe.say("w", TrialSet(0, 1, resumed_from=-20_000, reports={-30_001: 1.0}))
    assert sorted(scribe.state.trials[0].reports) == [-30_001, *range(-29_999, -19_999)]


def test_a_trial_is_kept_a_few_times_as_a_late_result() -> None:
    """Each of them has all that the trial had, and takes a line of a commit."""
    scribe = study()
    scribe.say("w", TrialCreate(user={"a": "1"}))
    for epoch in range(1, 20):
        scribe.say("w", TrialRelease(0, epoch), TrialClaim(0), TrialFinish(0, epoch, COMPLETE, (1.0,)))
    assert len(scribe.state.trials) == 5
    scribe.say("w", TrialReclaim(0, 20), TrialFinish(0, 19, COMPLETE, (1.0,)), TrialFinish(0, 20, COMPLETE, (2.0,)))
    assert scribe.state.trials[6].values == (2.0,), "what was lost counts, however often it was given back before"
    assert len(scribe.state.trials) == 7, "with the retry"


def test_replicates_have_only_so_much_in_common() -> None:
    scribe, text = study(), '"' + "x" * 100_000 + '"'
    for count, refusal in ((100, None), (1000, "malformed"), (1, None)):
        assert scribe.say("w", TrialCreate(user={"a": text}, replicates=count))[0].refusal == refusal
        assert scribe.say("w", TrialCreate(system={"a": text}, replicates=count))[0].refusal == refusal


def test_a_late_result_has_nothing_that_its_trial_gets_afterwards() -> None:
    """A peer that begins with a snapshot would know another result than one that has read the log."""
    space: dict[str, Distribution] = {f"p{at}": Float(0.0, 1.0) for at in range(300)}
    said, values = {f"a{at}": "1" for at in range(300)}, dict.fromkeys(range(300), 1.0)
    for waits in (False, True):
        scribe = study()
        scribe.say("a", TrialCreate(params=dict.fromkeys(space, 0.5), dists=space, user=said, system=said))
        scribe.say("a", TrialSet(0, 1, reports=values, metrics={"m": dict(values)}, user={"b": "1"}))
        scribe.say("a", TrialCheckpoint(0, 1, Checkpoint(299, "k", 1, "0")), TrialRelease(0, 1))
        claims = () if waits else (TrialClaim(0),)
        scribe.say("b", *claims, TrialFinish(0, 1, COMPLETE, (1.0,)))
        scribe.say("a", TrialFinish(0, 1, COMPLETE, (1.0,)))
        joined = snapshot.load(snapshot.dump(scribe.state))
        more = TrialSet(0, 2, {"p1": 0.25}, {}, {500: 1.0}, {"c": "1"}, {"c": "1"}, metrics={"m": {500: 1.0}})
        scribe.say("b", more)
        apply(joined, joined.lsn + 1, scribe.commits[-1])
        assert snapshot.digest(joined) == snapshot.digest(scribe.state)
        late = scribe.state.trials[1]
        assert (late.late_of, late.params["p1"], "c" in late.user, 500 in late.reports) == (0, 0.5, False, False)


def test_replicates_take_no_room_before_they_are_asked_for() -> None:
    scribe = study()
    scribe.say("w", *[TrialCreate(prefer_waiting=True, replicates=1000)] * 100)
    assert len(scribe.state.trials) == 100


def test_a_replica_that_links_agrees_with_one_from_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "Step", int)  # one that can be encoded
    for case in (going_back, retries, continuations, continuations_of_a_member, late_results, replicates, attributes):
        scribe, records = case(2_000)
        for at in range(1, 5):
            replica = snapshot.load(snapshot.dump(scribe.state))
            scribe.say("w", *records(at))
            apply(replica, replica.lsn + 1, scribe.commits[-1])
            assert snapshot.digest(replica) == snapshot.digest(scribe.state), case.__name__


def test_a_look_at_owners_counts_no_histories_unless_reports_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry's history is behind those of its earlier attempts, and to count it is to merge them all."""
    scribe, records = retries(2_000)
    scribe.say("w", *records(1))
    counted: list[StepValues] = []
    monkeypatch.setattr(StepValues, "flat", lambda self: counted.append(self) or {})

    monitor = OwnerMonitor()
    for now in (0.0, 60.0, 600.0):
        monitor.heard(scribe.state, monitor.watched(scribe.state, ()))
        due = monitor.look(scribe.state, {}, monitor.watched(scribe.state, ()), spare=(), now=now)
        monitor.still_due(scribe.state, due, {})

    assert scribe.state.running
    assert counted == []


def test_who_chose_a_trial_is_looked_for_once() -> None:
    """A member of a population has as many trials before it as it made pauses, each of which goes on from the last."""
    scribe = Scribe()
    policy = Population(size=2, every=1, max=600, first_step=1)
    scribe.say("founder", StudySet(system={FIDELITY: encode_fidelity(policy)}), PeerJoin({"sampler": "x"}))
    for step in range(1, 500):
        (begun,) = scribe.say("bob", TrialCreate(prefer_waiting=True))
        assert begun.number is not None
        paused = TrialFinish(begun.number, 1, TrialState.PRUNED, paused=True)
        scribe.say("bob", TrialSet(begun.number, 1, reports={step: 0.5}), paused)
    assert scribe.state.trials[498].continues is not None
    looks = 0

    def look(_frame: FrameType, event: str, _given: object) -> None:
        nonlocal looks
        looks += event == "call"

    sys.setprofile(look)
    try:
        found = chosen_by(scribe.state.trials[498], scribe.state)
    finally:
        sys.setprofile(None)
    assert found == "the default sampler"
    assert looks < 10_000


def test_a_rescue_costs_each_gap_of_a_log_the_same_however_many_there_are() -> None:
    costs = []
    for gaps in (100, 400):
        scribe = Scribe(space={})
        for at in range(gaps):
            scribe.say(f"p{at}", StudySet())
        entries = [Entry(2 * at + 1, codec.encode(commit)) for at, commit in enumerate(scribe.commits)]
        costs.append(effort(lambda: united(State(), 0, entries)) / gaps)  # noqa: B023  # called at once
    assert costs[1] <= 1.2 * costs[0], costs
