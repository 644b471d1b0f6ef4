"""Large studies are read in columns: nothing is made of each trial, and samplers see what Optuna's lists would say."""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from optuna.samplers import BaseSampler, RandomSampler

import hopaas_p2p
from hopaas_p2p.core.blocks import PackedBlock, close_settled
from hopaas_p2p.core.records import Categorical, Float, Int, TrialCreate, TrialState
from hopaas_p2p.samplers import TPESampler, default_sampler
from hopaas_p2p.search.known import KnownTrials
from hopaas_p2p.search.repeats import Tried
from hopaas_p2p.storage.reader import StudyReader
from hopaas_p2p.study import Study

SPACE = {
    "x": Float(-1.0, 1.0),
    "rate": Float(1e-4, 1.0, log=True),
    "share": Float(0.0, 0.9, step=0.1),
    "n": Int(1, 9),
    "kind": Categorical(("a", None, 3, 3.0)),
}
DISTRIBUTIONS = {**SPACE, "extra": Float(0.0, 2.0)}


def record(number: int, numbers: random.Random) -> TrialCreate:
    """A finished trial: most are alike, and some have less, more, or something of their own."""
    params = {
        "x": numbers.uniform(-1, 1),
        "rate": 10 ** numbers.uniform(-4, 0),
        "share": numbers.randrange(10) * 0.1,
        "n": float(numbers.randint(1, 9)),
        "kind": float(numbers.randrange(4)),
    }
    own: dict[str, Any] = {"dists": {}, "system": {}, "reports": {}}
    if number % 7 == 3:
        del params["n"]
    if number % 11 == 5:
        params["extra"] = 0.5
        own["dists"] = {"extra": DISTRIBUTIONS["extra"]} if number < 20 else {}
    if number % 601 == 600:
        params["extra"], own["dists"] = 1.0, {"extra": Float(0.0, 3.0)}
    if number % 13 == 1:
        own["system"] = {"constraints": f"[{number % 3 - 1}, 0.5]"}
    if number % 17 == 2:
        return TrialCreate(state=TrialState.FAIL, params=params, start=1, end=2, **own)
    if number % 5 == 4:
        own["reports"] = {step: math.nan if number % 3 else 0.1 * step for step in range(number % 4, 0, -1)}
        return TrialCreate(state=TrialState.PRUNED, params=params, start=1, end=2, **own)
    return TrialCreate(state=TrialState.COMPLETE, params=params, values=(numbers.random(),), start=1, end=2, **own)


def imported(number: int, numbers: random.Random) -> TrialCreate:
    """A trial of which many are from another space: off the grid, or out of the range."""
    made = record(0, numbers)
    if number % 3 == 1:
        made.params["share"] += 0.03
    if number % 5 == 1:
        made.params["n"] = 40.0
    return made


def plain(_: int, numbers: random.Random) -> TrialCreate:
    """A trial with parameters and a value only, as nearly all are."""
    return record(0, numbers)


def filled(study: Study, count: int, make: Any = record) -> Study:
    """The study with so many finished trials, packed where a block is full."""
    numbers, handle = random.Random(1), study.handle
    for first in range(0, count, 500):
        records = [make(first + place, numbers) for place in range(min(500, count - first))]
        verdicts = study.storage.peer.commit(handle.log, *records)
        assert all(one.accepted for one in verdicts)
    packed(study)
    return study


def packed(study: Study) -> None:
    handle = study.handle
    with handle.lock:
        close_settled(handle.state)


@pytest.fixture
def store() -> str:
    return f"memory://{secrets.token_hex(8)}"


@pytest.fixture
def study(store: str) -> Iterator[Study]:
    opened = filled(hopaas_p2p.open_study(store, "s", space=SPACE), 2500)
    assert len(opened.state.trials.closed) == 2
    yield opened
    opened.close()


def read_by_trial(study: Study) -> KnownTrials:
    columns = KnownTrials(lambda trial: trial.params)
    columns.refresh(study.trials)
    return columns


def same(ours: KnownTrials, theirs: KnownTrials) -> None:
    assert (len(ours), ours.learned) == (len(theirs), theirs.learned)
    for name in ("state", "role", "start", "end", "steps", "last_step", "last", "values", "violation"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
    assert ours.params.keys() == theirs.params.keys()
    for name in theirs.params:
        np.testing.assert_array_equal(ours.merged(name, slice(None)), theirs.merged(name, slice(None)), name)
    assert ours.distributions == theirs.distributions
    assert ours.mixed == theirs.mixed
    assert ours.intersection == theirs.intersection
    assert ours.groups == theirs.groups
    assert sorted(set(ours.changes)) == sorted(set(theirs.changes))


def test_columns_read_from_blocks_are_those_of_the_trials(study: Study) -> None:
    columns = KnownTrials(lambda trial: trial.params)
    columns.take(study.storage.reader(study.study_id).read())
    same(columns, read_by_trial(study))


def test_what_changes_later_is_read_once(store: str, study: Study) -> None:
    reader, columns = study.storage.reader(study.study_id), KnownTrials(lambda trial: trial.params)
    columns.take(reader.read())
    other = hopaas_p2p.open_study(store, "s", sampler=RandomSampler())
    mine, theirs = study.ask(), other.ask()
    other.storage.flush()
    study.storage.peer.catch_up(study.handle.log)
    columns.take(reader.read())
    same(columns, read_by_trial(study))
    assert columns.state[mine.number] == columns.state[theirs.number] == TrialState.RUNNING
    study.tell(mine, 1.0)
    other.tell(theirs, 2.0)
    study.storage.peer.catch_up(study.handle.log)
    columns.take(reader.read())
    assert not reader.read().trials
    columns.take(reader.read())
    same(columns, read_by_trial(study))
    other.close()


@pytest.mark.parametrize(
    "sampler",
    [None, TPESampler(group=True), TPESampler(multivariate=False), TPESampler(repeats="avoid"), RandomSampler()],
    ids=["default", "groups", "one by one", "no repeats", "random"],
)
def test_an_ask_makes_no_object_of_each_trial(
    store: str, sampler: BaseSampler | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = filled(hopaas_p2p.open_study(store, "s", space=SPACE, sampler=sampler), 2048, plain)

    def refuse(_: PackedBlock) -> Any:
        raise AssertionError

    monkeypatch.setattr(PackedBlock, "trials", refuse)
    for _ in range(3):
        trial = study.ask()
        assert trial.params.keys() == SPACE.keys()
        study.tell(trial, 0.5)
    study.close()


def test_a_reader_that_failed_halfway_reads_everything_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = default_sampler(seed=1)
    monkeypatch.setattr(KnownTrials, "_learn", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampler._read(study, cached=False)
    monkeypatch.undo()
    same(sampler._read(study, cached=False), read_by_trial(study))


@pytest.mark.parametrize(("make", "count"), [(record, 2000), (imported, 1300)])
def test_a_packed_block_counts_as_tried_as_its_trials_do(store: str, make: Any, count: int) -> None:
    study = filled(hopaas_p2p.open_study(store, "s", space=SPACE), 2500, make)
    whole, one_by_one = Tried(study.space), Tried(study.space)
    whole.note_all(study.state.trials)
    one_by_one.note(study.state.trials)
    assert whole._numbers == one_by_one._numbers
    assert whole._outside == one_by_one._outside
    assert count < len(whole._numbers) < 1.3 * count
    study.close()


def test_several_readers_have_each_their_place(study: Study) -> None:
    first, second = (StudyReader(study.handle) for _ in range(2))
    assert first.read().reset
    with study.trial() as trial:
        trial.tell(1.0)
    assert [one.number for one in first.read().trials] == [2500]
    assert second.read().reset
