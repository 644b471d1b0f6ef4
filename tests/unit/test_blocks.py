"""Finished trials in blocks: they take little memory, and come back as they were, whoever reads them."""

from __future__ import annotations

import msgspec
import pytest

from hopaas_p2p.core import blocks, snapshot
from hopaas_p2p.core.blocks import close_settled
from hopaas_p2p.core.records import Float, TrialCreate, TrialFinish, TrialReclaim
from hopaas_p2p.core.state import BLOCK, Trial
from hopaas_p2p.storage.frozen import FrozenTrialCache
from tests.support.scribe import COMPLETE, FAIL, PRUNED, WAITING, Scribe

RULES = blocks.StudyRules(1, {name: Float(0, 1) for name in "pq0123456789"}, 3000, 1 << 40)


def _filled(scribe: Scribe, count: int) -> None:
    for first in range(0, count, 100):
        some = range(first, min(first + 100, count))
        scribe.say("ann", *[TrialCreate(COMPLETE, values=(float(one % 7),), user={"n": str(one)}) for one in some])


@pytest.fixture
def scribe() -> Scribe:
    """3,000 trials, of which 1,500 runs and 1,501 waits."""
    scribe = Scribe()
    _filled(scribe, 1500)
    scribe.start("bob")
    scribe.enqueue_trial()
    _filled(scribe, 1498)
    return scribe


def _same(one: list[Trial], other: list[Trial]) -> bool:
    return [msgspec.structs.astuple(trial) for trial in one] == [msgspec.structs.astuple(trial) for trial in other]


def test_closed_trials_read_as_they_were(scribe: Scribe) -> None:
    trials = scribe.state.trials
    before = list(trials)
    assert not close_settled(scribe.state)
    assert list(trials.closed) == [0]
    assert list(trials.open) == [1, 2]
    assert _same(list(trials), before)
    assert _same(list(reversed(trials)), before[::-1])
    assert _same(trials[1000:1100], before[1000:1100])
    assert _same(trials[-2000:-1990], before[-2000:-1990])
    assert trials[-1] is before[-1]
    assert trials[5].user == {"n": "5"}
    with pytest.raises(IndexError):
        trials[3000]
    with pytest.raises(IndexError):
        trials[-3001]


def test_a_block_is_closed_when_its_last_trial_is_over(scribe: Scribe) -> None:
    close_settled(scribe.state)
    scribe.say("bob", TrialFinish(1500, 1, PRUNED))
    close_settled(scribe.state)
    assert list(scribe.state.trials.closed) == [0]
    scribe.claim("bob", 1501)
    scribe.say("bob", TrialFinish(1501, 1, PRUNED))
    close_settled(scribe.state)
    assert list(scribe.state.trials.closed) == [0, 1]


def test_blocks_are_closed_a_few_at_a_time() -> None:
    scribe = Scribe()
    _filled(scribe, 3 * BLOCK + 1)
    assert close_settled(scribe.state, at_most=2)
    assert not close_settled(scribe.state, at_most=2)
    assert list(scribe.state.trials.open) == [3]


def test_a_late_result_changes_a_trial_of_a_closed_block() -> None:
    scribe = Scribe()
    lost = scribe.start("ann")
    scribe.say("bob", TrialReclaim(lost.number, 1))
    scribe.claim("bob", 1)
    scribe.say("bob", TrialFinish(1, 1, PRUNED))
    _filled(scribe, BLOCK)
    replayed = snapshot.load(snapshot.dump(scribe.state))
    assert list(replayed.trials.closed) == [0]
    assert list(scribe.state.trials.closed) == [0]

    scribe.finish("ann", lost, epoch=1)

    late = scribe.state.trials[-1]
    assert late.late_of == lost.number
    assert scribe.state.trials[0].history[0].kept_as == late.number
    close_settled(scribe.state)
    assert scribe.state.trials[0].history[0].kept_as == late.number


def test_counts_and_digest_do_not_depend_on_what_is_closed(scribe: Scribe) -> None:
    digest, counts = snapshot.digest(scribe.state), scribe.state.counts.copy()
    close_settled(scribe.state)
    joined = snapshot.load(snapshot.dump(scribe.state))
    assert snapshot.digest(scribe.state) == snapshot.digest(joined) == digest
    assert joined.counts == scribe.state.counts == counts


@pytest.mark.parametrize("column", ["epochs", "owner", "param_set", "params", "widths", "values", "ends"])
def test_a_block_with_a_column_of_another_length_is_corrupt(scribe: Scribe, column: str) -> None:
    plain = blocks.columns(list(scribe.state.trials)[:BLOCK])
    setattr(plain, column, getattr(plain, column) * 2 or [1] * 8)
    with pytest.raises((ValueError, IndexError)):
        blocks.check(msgspec.msgpack.encode(plain), RULES, first=0)


@pytest.mark.parametrize("column", ["owner", "param_set", "step_set"])
@pytest.mark.parametrize("index", [0x81, 0x8100, -1], ids=["just above", "far above", "below zero"])
def test_a_block_whose_indexes_lead_nowhere_is_corrupt(scribe: Scribe, column: str, index: int) -> None:
    plain = blocks.columns(list(scribe.state.trials)[:BLOCK])
    setattr(plain, column, [0] * 5 + [index] + [0] * (BLOCK - 6))
    with pytest.raises((ValueError, IndexError)):
        blocks.check(msgspec.msgpack.encode(plain), RULES, first=0)


@pytest.mark.parametrize("kinds", [1, 3, 16, 17, 300])
def test_a_block_of_few_or_many_kinds_of_trials_is_checked_and_read(scribe: Scribe, kinds: int) -> None:
    trials = list(scribe.state.trials)[:BLOCK]
    for trial in trials:
        kind = trial.number % kinds
        trial.owner, trial.params = f"peer{kind}", dict.fromkeys(f"p{kind}q" * (kind % 3), 0.5)
        trial.reports = dict.fromkeys(range(kind), 1.5)
        if kind % 5 == 2:
            trial.values, trial.state = None, PRUNED
    packed = blocks.pack(trials)
    checked = blocks.check(blocks.inflated(packed, at_most=1 << 24), RULES, first=0)
    assert checked[COMPLETE] + checked[PRUNED] == BLOCK
    block = blocks.PackedBlock(memoryview(packed))
    assert _same(block.trials(), trials)
    columns = block.columns()
    assert list(columns.widths) == [-1 if one.values is None else len(one.values) for one in trials]
    assert [columns.param_sets[one] for one in columns.param_set] == [tuple(one.params) for one in trials]
    assert [columns.step_sets[one] for one in columns.step_set] == [tuple(one.reports) for one in trials]


def test_results_are_read_without_making_trials(scribe: Scribe) -> None:
    before = list(scribe.state.trials.results())
    close_settled(scribe.state)
    assert list(scribe.state.trials.results()) == before
    assert before[3] == (3, 3.0)
    assert len(before) == 2998


def _view() -> FrozenTrialCache:
    return FrozenTrialCache(0, set(), allow_pickles=False)


def test_the_best_trial_is_found_without_building_all(scribe: Scribe, monkeypatch: pytest.MonkeyPatch) -> None:
    view, state = _view(), scribe.state
    close_settled(state)
    built: list[int] = []
    build = FrozenTrialCache.build
    monkeypatch.setattr(
        FrozenTrialCache, "build", lambda self, trial, of: built.append(trial.number) or build(self, trial, of)
    )
    view.catch_up(state)
    assert view.best().number == 0  # type: ignore[union-attr]
    scribe.say("ann", TrialCreate(COMPLETE, values=(-5.0,)), TrialCreate(FAIL), TrialCreate(COMPLETE, values=(-5.0,)))
    view.changed.update(state.changed)
    view.catch_up(state)
    assert view.best().number == 3000  # type: ignore[union-attr]
    assert [one.number for one in view.trials((view.trial(1501).state,))] == [1501]
    assert set(built) == {0, 3000, 1501}
    assert [one.number for one in view.trials(None)] == list(range(3003))
    assert view.best().number == 3000  # type: ignore[union-attr]


def test_a_waiting_trial_that_changed_is_built_anew(scribe: Scribe) -> None:
    view, state = _view(), scribe.state
    view.catch_up(state)
    waiting = view.trial(1501).state
    first = view.trials((waiting,))[0]
    assert view.trials((waiting,))[0] is first
    scribe.enqueue_trial()
    view.changed.update({1501})
    view.catch_up(state)
    assert view.trials((waiting,))[0] is not first
    assert state.trials[1501].state is WAITING


def test_nothing_that_was_read_before_a_change_is_read_after_it(scribe: Scribe) -> None:
    trials = scribe.state.trials
    close_settled(scribe.state)
    before = trials.closed[0].trials()
    trials.opened(5).reason = "changed"
    trials._read[0] = before  # a reader that was in the middle of it
    close_settled(scribe.state)
    assert trials[5].reason == "changed"
