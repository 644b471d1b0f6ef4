"""Snapshots that somebody forged: a joiner judges what they hold as it judges records, or replays the log instead.

Who may have written one is another question: see `tests/stores/test_postgres_snapshots.py`.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hopaas_p2p
from hopaas_p2p.core import snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.attributes import COPIED, FIDELITY, METRIC_NAMES
from hopaas_p2p.core.blocks import PackedBlock
from hopaas_p2p.core.records import (
    FROM_START,
    Budget,
    Categorical,
    Checkpoint,
    Commit,
    Float,
    Int,
    PastLease,
    Policy,
    Record,
    StudyDefine,
    TrialCheckpoint,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    Used,
)
from hopaas_p2p.core.snapshot import CorruptSnapshot
from hopaas_p2p.core.state import (
    BLOCK,
    COMPLETE,
    FAIL,
    PRUNED,
    RUNNING,
    WAITING,
    LastCommit,
    Replicates,
    State,
    Trial,
    Verdict,
)
from hopaas_p2p.open import open_store
from tests.support.dashboard_studies import SPACE, Scribe, with_population, with_rungs

NAN, INF = math.nan, math.inf


def honest() -> Scribe:
    """A study whose trials have all that trials can have: 0 is complete, 8 runs, 9 failed, 10 waits to retry it."""
    scribe = Scribe(policy=Policy(limits=Budget(epochs=10_000)))
    scribe.join("ann", "north")
    for at in range(8):
        scribe.trial("ann", at / 8, reports=(1.0, 0.5), lr=10.0 ** -(1 + at / 2), units=8.0 * (1 + at), opt=at % 3)
    running = scribe.start("ann", lr=0.01, units=16.0, opt=1.0)
    scribe.say("ann", TrialCheckpoint(running, 1, Checkpoint(1, "key", 3, "sum")))
    scribe.say("ann", TrialSet(running, 1, metrics={"auc": {0: 0.5}}, user={"note": '"x"'}))
    scribe.say("bob", TrialReclaim(scribe.start("ann", lr=0.02), 1))
    return scribe


def _trial(number: int, **changes: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        trial = state.trials.opened(number)
        before = trial.state
        for name, value in changes.items():
            setattr(trial, name, value)
        state.counts[before] -= 1
        state.counts[trial.state] += 1

    return change


def _state(**changes: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        for name, value in changes.items():
            setattr(state, name, value)

    return change


def _ledger(**changes: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        for name, value in changes.items():
            setattr(state.ledger, name, value)

    return change


def _again(count: int = 5, **changes: Any) -> Callable[[State], None]:
    """Trial 8 gets this many replicates, with these changes to what they have."""
    had: dict[str, Any] = {"params": {"lr": 0.01, "units": 16.0, "opt": 1.0}, "dists": {}, "user": {}, "system": {}}
    return _state(replicates={8: Replicates(**{**had, **changes}, count=count)})


FORGED: Final[dict[str, Callable[[State], None]]] = {
    "replicates with a parameter that the study lacks": _again(params={"new": 1.0}, dists={"new": Float(0, 2)}),
    # trials
    "two values for one objective": _trial(0, values=(1.0, 2.0)),
    "no values": _trial(0, values=()),
    "a parameter that the study does not have": _trial(0, params={"new": 1.5}, dists={"new": Float(0.0, 2.0)}),
    "COMPLETE without a value": _trial(0, values=None),
    "a value that is no number": _trial(0, values=(NAN,)),
    "a value of a trial that runs": _trial(8, values=(1.0,)),
    "an end of a trial that runs": _trial(8, end=5),
    "no end of a trial that is over": _trial(0, end=None),
    "a start in the year 300,000": _trial(0, start=1 << 60),
    "an end in the year 300,000": _trial(0, end=1 << 60),
    "an end before all clocks": _trial(0, end=-(1 << 60)),
    "an epoch below 0": _trial(0, epoch=-1),
    "an epoch of 2^60": _trial(0, epoch=1 << 60),
    "a trial that runs in epoch 0": _trial(8, epoch=0),
    "a trial that runs for nobody": _trial(8, owner=None),
    "an owner with a long name": _trial(0, owner="x" * 65),
    "an owner without a name": _trial(0, owner=""),
    "another state": _trial(8, state=WAITING, owner=None),
    "a parameter that is no number": _trial(0, params={"lr": NAN, "units": 16.0, "opt": 1.0}),
    "a parameter below its range": _trial(0, params={"lr": 1e-9, "units": 16.0, "opt": 1.0}),
    "a parameter above its range": _trial(0, params={"lr": 0.01, "units": 1e6, "opt": 1.0}),
    "a choice that there is not": _trial(0, params={"lr": 0.01, "units": 16.0, "opt": 3.0}),
    "a parameter without a distribution": _trial(0, params={"other": 0.5}),
    "a distribution of another kind": _trial(0, dists={"lr": Int(0, 1)}),
    "a distribution that cannot be": _trial(0, params={"new": 1.0}, dists={"new": Float(0, 1, step=1e-300)}),
    "a value outside its own distribution": _trial(0, params={"new": 5.0}, dists={"new": Float(0, 1)}),
    "attributes that are too deep": _trial(0, user={"deep": "[" * 100}),
    "half a surrogate pair": _trial(0, user={"half": '"\\ud800"'}),
    "an attribute with a zero in its name": _trial(0, user={"\0": "1"}),
    "an origin that is none": _trial(0, system={COPIED: '{"site":[]}'}),
    "constraints that are none": _trial(0, system={"constraints": "7"}),
    "a retry of itself": _trial(0, retry_of=0),
    "a retry of a later trial": _trial(0, retry_of=5),
    "a retry that came before": _trial(5, retried_by=3),
    "a retry that there is not": _trial(0, retried_by=1000),
    "a circle of retries": _trial(0, retry_of=0, retried_by=0),
    "a late result of itself": _trial(3, late_of=3),
    "a continuation of itself": _trial(3, continues=3),
    "a link below 0": _trial(3, retry_of=-1),
    "a lease kept as a trial that there is not": _trial(0, history=(PastLease("x", 1, 0, 1, "", 1000),)),
    "a lease of another time": _trial(0, history=(PastLease("x", 1, 1 << 60, 1, ""),)),
    "a lease before the first epoch": _trial(0, history=(PastLease("x", -1, 0, 1, ""),)),
    "no attempt": _trial(0, attempt=0),
    "many checkpoints": _trial(0, checkpoints=(Checkpoint(1, "k", 1, "s"),) * 3),
    "paused, and complete": _trial(0, paused=True),
    "a request to end what is over": _trial(0, stop="please"),
    "a metric with a long name": _trial(0, metrics={"x" * 101: {0: 1.0}}),
    "a hundred metrics": _trial(0, metrics={f"m{at}": {0: 1.0} for at in range(100)}),
    # the study
    "a status that there is not": _state(status="deleted"),
    "a budget below 0": _state(budget=-5),
    "a budget of 2^60": _state(budget=1 << 60),
    "failures below 0": _state(failures_in_a_row=-1),
    "other names of metrics than objectives": _state(system={METRIC_NAMES: "[]"}),
    "rungs that are none": _state(system={FIDELITY: '{"a":1}'}),
    "study attributes that are too deep": _state(user={"deep": "[" * 100}),
    "no definition": _state(define=None),
    "an impossible definition": _state(define=StudyDefine("study", ("sideways",), space=SPACE)),
    "a distribution of the study of another kind": _state(dists={**SPACE, "opt": Float(0, 1)}),
    "a space that lacks a parameter": _state(dists={"lr": SPACE["lr"]}),
    "an impossible distribution": _state(dists={**SPACE, "new": Categorical(())}),
    "a refusal that there is not": _state(refusals={"because": 1}),
    "refusals below 0": _state(refusals={"fenced": -1}),
    "a trial that runs twice": _state(running={8: None, 0: None}),
    "a trial that waits and does not": _state(waiting={10: None, 0: None}),
    "a queue that lacks one": _state(waiting={}),
    "nothing that runs": _state(running={}),
    "a trial that waits and is not there": _state(waiting={1000: None}),
    "a verdict on a trial that there is not": _state(writers={"ann": LastCommit(1, 1, (Verdict(True, 1000),))}),
    "a verdict for no reason": _state(writers={"ann": LastCommit(1, 1, (Verdict(False, 0, "because"),))}),
    "a commit that is to come": _state(writers={"ann": LastCommit(1, 10**6, ())}),
    "a commit before the first": _state(writers={"ann": LastCommit(-1, 1, ())}),
    "limits without a ledger": _state(ledger=None),
    "a ledger of trials that do not run": _ledger(open={}, lost={0: None}),
    "impossible limits": _ledger(limits=Budget(epochs=-1)),
    "a best value that is no number": _ledger(best=(0, NAN)),
    "a time of no clock": _ledger(clocks=[("ann", 1 << 62)]),
    "many clocks": _ledger(clocks=[("ann", 0)] * 100),
    "since the best, fewer than none": _ledger(since_best=-1),
    "since the best, more than there were": _ledger(since_best=(1 << 53) - 1),
    "an epoch beyond the log": _trial(10, epoch=(1 << 53) - 1),
    "a lease beyond the trial's epoch": _trial(9, history=(PastLease("ann", 1 << 40, 0, 1, ""),)),
    "more attempts than trials": _trial(10, attempt=(1 << 53) - 1),
    "replicates of a trial that there is not": _state(replicates={1000: Replicates({}, {}, {}, {}, 5)}),
    "replicates with a parameter that is no number": _again(params={"lr": NAN}),
    "replicates with a parameter above its range": _again(params={"lr": 1e300}),
    "replicates with a choice that there is not": _again(params={"opt": 3.0}),
    "replicates with a parameter without a distribution": _again(params={"other": 0.5}),
    "replicates with a distribution of another kind": _again(dists={"lr": Int(0, 1)}),
    "replicates with constraints that are none": _again(system={"constraints": "nope"}),
    "replicates with attributes that are too deep": _again(user={"deep": "[" * 100}),
    "more replicates than anybody may ask for": _again(count=10**6),
    "replicates with more bytes than a snapshot may hold": _again(1000, user={"long": f'"{"x" * 20_000}"'}),
    "more refusals than bytes": _state(refusals={"fenced": (1 << 53) - 1}),
}


def forged(change: Callable[[State], None]) -> bytes:
    state = honest().state
    change(state)
    return snapshot.dump(state)


def test_an_honest_snapshot_is_read_as_it_was() -> None:
    state = honest().state
    assert snapshot.digest(snapshot.load(snapshot.dump(state))) == snapshot.digest(state)


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_what_no_log_can_lead_to_is_no_snapshot(change: Callable[[State], None]) -> None:
    with pytest.raises(CorruptSnapshot):
        snapshot.load(forged(change))


def test_a_forged_chain_of_retries_is_followed_as_far_as_a_real_one_can_be() -> None:
    """No trial in it says that it is a retry by its attempt."""
    scribe, chain = Scribe(space={}), 1500
    scribe.say("eve", *[TrialCreate(FAIL) for _ in range(chain)], TrialCreate(RUNNING))
    for number in range(chain + 1):
        trial = scribe.state.trials.opened(number)
        trial.retry_of, trial.retried_by = number - 1 if number else None, number + 1 if number < chain else None
    state = snapshot.load(snapshot.dump(scribe.state))
    apply(state, state.lsn + 1, Commit("eve", 2, "eve", 1, (TrialReclaim(chain, 1),)))
    assert json.loads(state.trials[chain + 1].system["retry_history"]) == [*range(chain - 999, chain + 1)]


def test_replicates_that_a_log_can_lead_to_are_read() -> None:
    scribe = honest()
    once = scribe.say("ann", TrialCreate(params={"lr": 0.5, "new": 2.0}, dists={"new": Int(0, 9)}, replicates=3))[0]
    state = snapshot.load(snapshot.dump(scribe.state))
    assert once.number is not None
    assert state.replicates == scribe.state.replicates != {}
    assert state.replicates[once.number].dists["lr"] == Float(1e-5, 0.5, log=True)


def test_a_piece_that_inflates_too_far_is_not_read_and_none_is_written() -> None:
    state = honest().state
    verdicts = (Verdict(True),) * 50_000
    state.writers["ann"] = LastCommit(1, 1, verdicts)
    assert snapshot.load(snapshot.dump(state)).writers["ann"].verdicts == verdicts
    packed = zlib.compress(msgspec.msgpack.encode({"ann": state.writers["ann"]}), 9)
    header = snapshot._header(state)
    header.inline = {place: memoryview(piece) for place, piece, _ in snapshot._pieces(state)}
    header.inline["w0000000"] = memoryview(packed)
    with pytest.raises(CorruptSnapshot):
        snapshot.load(snapshot.seal(snapshot._MAGIC, snapshot._encode(header)))


@pytest.mark.parametrize("field", ["lsn", "chain", "trials", "version", "inline", "names", "draining", "ledger"])
def test_a_header_whose_fields_are_nonsense_is_no_snapshot(field: str) -> None:
    body = snapshot.unseal(snapshot._MAGIC, snapshot.dump(honest().state))
    for value in (-1, "x", [1], {"a": 1}, 1.5, True):
        header = snapshot._decode_header(body)
        setattr(header, field, value)
        with pytest.raises(CorruptSnapshot):
            snapshot.load(snapshot.seal(snapshot._MAGIC, msgspec.msgpack.encode(header)))


# --- closed blocks, which are judged without making their trials ---


def settled(**changes: Any) -> bytes:
    """The snapshot of a study whose first block is closed, and of which one trial was changed."""
    scribe = Scribe()
    for first in range(0, BLOCK + 10, 200):
        scribe.say(
            "ann", *[TrialCreate(COMPLETE, params={"lr": 0.01}, values=(float(n),)) for n in range(first, first + 200)]
        )
    for name, value in changes.items():
        setattr(scribe.state.trials.opened(500), name, value)
    return snapshot.dump(scribe.state)


@pytest.mark.parametrize(
    "changes",
    [
        {"values": (1.0, 2.0)},
        {"values": (NAN,)},
        {"start": 1 << 60},
        {"end": 1 << 60},
        {"start": None, "end": -(1 << 60)},
        {"epoch": -1},
        {"epoch": 1 << 60},
        {"params": {"lr": NAN}},
        {"params": {"lr": INF}},
        {"params": {"lr": 0.5}},
        {"params": {"x": 0.5}},
        {"retried_by": 10},
        {"state": PRUNED, "paused": True, "values": (NAN,)},
    ],
)
def test_one_impossible_trial_among_a_thousand_is_seen(changes: dict[str, Any]) -> None:
    with pytest.raises(CorruptSnapshot):
        snapshot.load(settled(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"values": (INF,)},
        {"start": -(1 << 50), "end": (1 << 52)},
        {"start": None, "end": 7},
        {"epoch": 300},
        {"params": {}},
        {"params": {"lr": 0.05, "opt": 2.0}},
        {"params": {"lr": 0.5}, "dists": {"lr": Float(1e-5, 0.5, log=True)}},
        {"state": PRUNED, "values": None, "paused": True},
        {"state": FAIL, "values": None, "reports": {FROM_START: NAN, (1 << 63) - 1: -INF}},
        {"owner": "x" * 64, "retry_of": 499, "retried_by": 501},
    ],
)
def test_what_a_log_can_lead_to_is_read(changes: dict[str, Any]) -> None:
    data = settled(**changes)
    state = snapshot.load(data)
    for name, value in changes.items():
        assert repr(getattr(state.trials[500], name)) == repr(value)
    assert snapshot.dump(state) == data


def test_bytes_behind_a_block_are_no_snapshot() -> None:
    """They would be vouched for, as they are no part of the state, and every later snapshot would carry them along."""
    state = snapshot.load(settled())
    block = state.trials.closed[0]
    assert isinstance(block, PackedBlock)
    block.packed = memoryview(bytes(block.packed) + b"more")
    with pytest.raises(CorruptSnapshot):
        snapshot.load(snapshot.dump(state))


# --- whatever is written there ---

_ODD: Final = [
    None, True, -1, 0, 1, 2, 1 << 40, (1 << 53) - 2, (1 << 53) - 1, 1 << 60, (1 << 63) - 1, -(1 << 63), NAN, INF,
    "", "x", [], {},
]  # fmt: skip
BEGUN: Final = pytest.mark.parametrize("begun", [lambda: honest(), with_rungs, with_population])


class _Opened:
    """A snapshot as plain values, each of which may be replaced."""

    def __init__(self, data: bytes) -> None:
        self.raw = msgspec.msgpack.decode(snapshot.unseal(snapshot._MAGIC, data))
        self.pieces = self.raw[snapshot._Header.__struct_fields__.index("inline")]
        self.opened = {place: msgspec.msgpack.decode(zlib.decompress(piece)) for place, piece in self.pieces.items()}
        self.places = [*_places(self.raw), *_places(self.opened)]
        """Of the header, of a block and of what few trials have."""

    def put(self, at: int, value: Any) -> None:
        container, key = self.places[at]
        container[key] = value

    def sealed(self) -> bytes:
        for place in self.pieces.keys() & self.opened.keys() if isinstance(self.pieces, dict) else ():
            if isinstance(self.pieces[place], bytes):
                self.pieces[place] = zlib.compress(msgspec.msgpack.encode(self.opened[place]))
        return snapshot.seal(snapshot._MAGIC, msgspec.msgpack.encode(self.raw))


def _refused_or_read_ever_after(data: bytes) -> bool:
    """Whether the snapshot is taken; then whatever its trials do, others can read the snapshots that follow it."""
    try:
        state = snapshot.load(data)
    except CorruptSnapshot:
        return False
    for trial in state.trials:
        assert isinstance(trial, Trial)
    copy.deepcopy(state.configurations)
    if state.lsn < 1 << 52:  # a store has it where it says, and no log is as long
        _go_on(state)
    snapshot.load(snapshot.dump(state))
    return True


def _go_on(state: State) -> None:
    """Each trial that is not over is reported on, given back, started again, lost and told late; then new ones end."""
    seqs = itertools.count(1 << 40)

    def say(writer: str | None, *records: Record) -> None:
        seq = next(seqs)
        apply(state, state.lsn + 1, Commit(writer or "x", seq, writer or "x", 1 << 51, records))

    def each(numbers: Iterable[int], *of: Callable[[Trial], tuple[str | None, Record]]) -> None:
        for number in list(numbers):
            for one in of:
                say(*one(state.trials[number]))

    each(state.running, lambda one: (one.owner, TrialSet(one.number, one.epoch, reports={7: 1.0}, used=Used(5, 1))))
    each(state.running, lambda one: (one.owner, TrialRelease(one.number, one.epoch)))
    each(state.waiting, lambda one: ("new", TrialClaim(one.number)))
    each(
        state.running,
        lambda one: ("other", TrialReclaim(one.number, one.epoch, lived=10**6)),
        lambda one: ("new", TrialFinish(one.number, one.epoch - 1, COMPLETE, (0.5,))),
    )
    say("new", *[TrialCreate(prefer_waiting=True)] * 4)
    each(state.running, lambda one: (one.owner, TrialFinish(one.number, one.epoch, COMPLETE, (0.2,))))
    for trial in list(state.trials):
        for owner, epoch in [(one.owner, one.epoch) for one in trial.history] + [(trial.owner, trial.epoch)]:
            say(owner, TrialFinish(trial.number, epoch, COMPLETE, (0.1,)))


@BEGUN
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_bytes_in_place_of_others_raise_anything_else(begun: Callable[[], Scribe], data: st.DataObject) -> None:
    """Any value of the header, of a block or of what few trials have, replaced by an odd one."""
    one = _Opened(snapshot.dump(begun().state))
    for at in data.draw(st.lists(st.integers(0, len(one.places) - 1), min_size=1, max_size=3)):
        one.put(at, data.draw(st.sampled_from(_ODD)))
    _refused_or_read_ever_after(one.sealed())


@BEGUN
def test_after_a_forged_snapshot_that_is_taken_all_later_ones_can_be_read(begun: Callable[[], Scribe]) -> None:
    """Each value in turn is replaced, several times over."""
    honest = snapshot.dump(begun().state)
    assert _refused_or_read_ever_after(honest)
    taken = 0
    for seed in range(4):
        draws = random.Random(seed)
        for at in range(len(_Opened(honest).places)):
            one = _Opened(honest)
            one.put(at, draws.choice(_ODD))
            taken += _refused_or_read_ever_after(one.sealed())
    assert taken > 50


def _places(raw: Any) -> Iterator[tuple[Any, Any]]:
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(raw, list):
        items = iter(list(enumerate(raw)))
    elif isinstance(raw, dict):
        items = iter(list(raw.items()))
    for key, value in items:
        yield raw, key
        yield from _places(value)


def test_a_joiner_that_finds_a_forged_snapshot_reads_the_log_instead(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    study = hopaas_p2p.open_study(url, "s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    state, uuid = study.state, study.handle.uuid
    digest = snapshot.digest(state)
    changed = snapshot.load(snapshot.dump(state))
    changed.trials[1].values = (NAN,)
    open_store(url).log(uuid).put_snapshot(changed.lsn, snapshot.dump(changed))
    study.close()

    joined = hopaas_p2p.open_study(url, "s", create=False)
    assert snapshot.digest(joined.state) == digest
    joined.close()
