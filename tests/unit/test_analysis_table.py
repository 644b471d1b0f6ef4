"""One table of a study's trials, whoever reads it and wherever they come from."""

from __future__ import annotations

import random
import secrets

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial

import hopaas_p2p
from hopaas_p2p.analysis.facts import best, row_of
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.attributes import COPIED
from hopaas_p2p.core.blocks import close_settled
from hopaas_p2p.core.records import Categorical, Float, Int, TrialCreate, TrialState
from hopaas_p2p.core.spending import trial_seconds

COLUMNS = ("state", "start", "end", "earlier", "steps", "last_step", "last", "attempt", "owner", "site", "values")
SPACE = {"x": Float(0.0, 1.0), "n": Int(0, 1 << 60), "kind": Categorical((1, True, "1", None))}


def same(ours: TrialTable, theirs: TrialTable, columns: tuple[str, ...] = COLUMNS) -> None:
    for name in columns:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
    assert ours.params.keys() == theirs.params.keys()
    for name, column in theirs.params.items():
        np.testing.assert_array_equal(ours.params[name], column, name)


@pytest.fixture
def study() -> hopaas_p2p.Study:
    """2,500 finished trials: some lack parameters or values, failed, ran elsewhere, or have another parameter."""
    numbers = random.Random(1)
    opened = hopaas_p2p.open_study(f"memory://{secrets.token_hex(8)}", "s", space=SPACE)
    records = []
    for number in range(2_500):
        params = {"x": numbers.random(), "n": float(1 << numbers.randrange(60)), "kind": float(number % 4)}
        if number % 7 == 3:
            del params["n"]
        state = TrialState.FAIL if number % 17 == 2 else TrialState.COMPLETE
        values = None if state is TrialState.FAIL else (numbers.random(),)
        reports = {step: numbers.random() for step in range(number % 5)}
        dists = {"x": Float(0.0, 9.0)} if number % 601 == 600 else {}
        start, end = (None if number % 29 == 4 else 1_000_000 * number), 1_000_000 * number + 500_000
        system = {COPIED: '{"site": "far", "earlier": 100.0}'} if number % 401 == 400 else {}
        about = {"system": system, "state": state, "values": values, "start": start, "end": end}
        records.append(TrialCreate(params=params, dists=dists, reports=reports, **about))
    opened.storage.peer.commit(opened.handle.log, *records[:1250])
    opened.storage.peer.commit(opened.handle.log, *records[1250:])
    return opened


def test_packed_blocks_say_what_their_trials_say(study: hopaas_p2p.Study) -> None:
    state = study.state
    with study.handle.log.lock:  # the storage's thread packs blocks, too
        trial_by_trial = TrialTable.of(state)
        close_settled(state)
    assert len(state.trials.closed) == 2
    same(TrialTable.of(study.state), trial_by_trial)
    study.close()


def test_the_time_of_a_copied_trial_includes_the_leases_before_its_last_everywhere(study: hopaas_p2p.Study) -> None:
    table = TrialTable.of(study.state)
    for number in (400, 401):
        trial = study.state.trials[number]
        found = {float(table.seconds()[number]), trial_seconds(trial), row_of(study.state, number)["seconds"]}
        assert found == {100.5 if number == 400 else 0.5}
    study.close()


def test_an_optuna_study_has_the_same_table(study: hopaas_p2p.Study) -> None:
    table = TrialTable()
    table.refresh(study.trials)
    logged = TrialTable.of(study.state)
    same(table, logged, ("state", "steps", "last_step", "last", "values"))
    np.testing.assert_allclose(table.end, logged.end)
    assert table.best() == logged.best() == study.best_trial.number
    study.close()


def test_choices_that_are_equal_and_large_whole_numbers_keep_what_they_are(study: hopaas_p2p.Study) -> None:
    table = TrialTable.of(study.state)
    assert table.params["kind"][:4].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert table.merged("kind", slice(4)).tolist() == [0.0, 0.0, 2.0, 3.0]  # as Optuna has it: True is 1
    assert table.parameters["kind"].choices == ("1", "True", "1", "None")
    assert [int(one) for one in table.params["n"][:3]] == [study.trials[at].params["n"] for at in range(3)]
    study.close()


def test_a_trial_that_ran_is_read_again_and_one_that_is_over_once() -> None:
    study, table = optuna.create_study(), TrialTable()
    running, over = study.ask(), study.ask()
    study.tell(over, 2.0)
    table.refresh(study.trials)
    read: list[int] = []
    before = TrialTable.read

    def noted(self: TrialTable, row: int, trial: FrozenTrial) -> bool:
        read.append(row)
        return before(self, row, trial)

    running.suggest_float("x", 0, 1)
    study.tell(running, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrialTable, "read", noted)
        table.refresh(study.trials)
    assert read == [0]
    assert table.values[:, 0].tolist() == [1.0, 2.0]
    assert table.params["x"][0] == study.trials[0].params["x"]


@pytest.mark.parametrize("values", [(2.0, float("-inf"), 1.0), (float("inf"), float("inf")), (3.0, 1.0, 1.0)])
def test_everything_names_the_same_best_trial(values: tuple[float, ...]) -> None:
    study = hopaas_p2p.open_study(f"memory://{secrets.token_hex(8)}", "s", space={"x": Float(0.0, 1.0)})
    for value in values:
        with study.trial() as trial:
            trial.tell(value)
    top = best(study.state)
    assert top is not None
    assert TrialTable.of(study.state).best() == top.number == study.best_trial.number
    study.close()
