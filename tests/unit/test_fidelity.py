"""A study with rungs, from `open_study` to the end: what people call, on a real directory."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.terminator import BestValueStagnationEvaluator, StaticErrorEvaluator, Terminator, TerminatorCallback

import hopaas_p2p
from hopaas_p2p.analysis.configurations import next_in_words, rows
from hopaas_p2p.analysis.savings import savings
from hopaas_p2p.analysis.table import COMPLETE, PRUNED, TrialTable
from hopaas_p2p.cli import main
from hopaas_p2p.core.admission import finished
from hopaas_p2p.core.attributes import CONTINUES
from hopaas_p2p.errors import DefinitionMismatch, Denied, InvalidInput, NoWork
from hopaas_p2p.files import checkpoints
from hopaas_p2p.files.artifacts import artifacts_of
from hopaas_p2p.files.checkpoints import collect, unneeded
from hopaas_p2p.samplers import default_sampler
from hopaas_p2p.search.known import KnownTrials
from hopaas_p2p.spec.fidelity import in_words, parse
from hopaas_p2p.study import Study
from hopaas_p2p.study.method import SearchMethod
from hopaas_p2p.training import Training
from tests.support.exchanges import exchanges_of
from tests.support.studies import opened_study

SPACE = {"x": hopaas_p2p.Float(0.0, 1.0)}
NINE = hopaas_p2p.Rungs(min=1, max=9, eta=3)


def _opened(store: Path, **options: object) -> Study:
    return opened_study(store, "s", **options)  # type: ignore[arg-type]


class Curve:
    """A training whose state is one number: how many epochs it has done."""

    def __init__(self, x: float) -> None:
        self.x, self.done = x, 0

    def save(self, path: Path) -> None:
        path.write_text(str(self.done))

    def load(self, path: Path) -> None:
        self.done = int(path.read_text())

    def epoch(self) -> float:
        self.done += 1
        return (self.x - 0.3) ** 2 + 1.0 / self.done


class Trained:
    """Counts the epochs of all trainings."""

    def __init__(self, *, save: bool = True) -> None:
        self.epochs = 0
        self._saves = save

    def __call__(self, trial: hopaas_p2p.Trial) -> float:
        curve = Curve(trial.params["x"])
        training = Training(trial, save=curve.save, load=curve.load) if self._saves else Training(trial)
        for step in training.steps(9):
            value = curve.epoch()
            assert curve.done == step + 1  # resumed where the last one stopped
            self.epochs += 1
            training.report(value)
        return value


def test_a_study_with_rungs_pauses_goes_on_and_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = _opened(tmp_path, space=SPACE, budget=9, fidelity=NINE)
    trained = Trained()
    with caplog.at_level(logging.INFO, "hopaas_p2p"):
        study.optimize(trained)
    state = study.state
    paused = {message for message in caplog.messages if re.match(r"trial \d+: PAUSED", message)}
    assert len(paused) == sum(trial.paused for trial in state.trials) > 0
    assert finished(state)
    assert state.used() == 9
    complete = [trial for trial in state.trials if trial.state.name == "COMPLETE"]
    assert complete
    assert all(sorted(trial.reports) == list(range(9)) for trial in complete)  # of the whole chain
    configurations = state.configurations
    reached: dict[int, int] = {}
    for trial in state.trials:
        root = configurations.root(trial.number)
        reached[root] = max(reached.get(root, 0), len(trial.reports))
    assert trained.epochs == sum(reached.values()) < 9 * 9  # no epoch is done twice
    saved = savings(state, TrialTable.of(state))
    assert (saved.made, saved.steps) == (trained.epochs, 9 * 9 - trained.epochs)
    assert saved.pruned == 9 - len(complete)
    assert 0.0 < saved.hours < 1.0
    assert isinstance(study.pruner, optuna.pruners.NopPruner)
    study.close()


def test_a_pause_is_taken_up_by_another_process_of_the_study(tmp_path: Path) -> None:
    first, second = _opened(tmp_path, space=SPACE, budget=3, fidelity=NINE), None
    first.optimize(Trained(), n_trials=3)
    second = _opened(tmp_path)
    trial = second.ask()
    assert trial.resume is not None
    assert trial.resume[0] == 0
    assert second.state.trials[trial.number].continues is not None
    assert trial.intermediate_values.keys() == {0}
    with pytest.raises(NoWork, match=f"the next step depends on trial {trial.number} of "):
        first.ask()
    second.tell(trial, state="fail")
    first.close()
    second.close()


def test_a_trial_that_continues_another_is_shown_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(_opened(tmp_path, space=SPACE, fidelity=NINE)) as study:
        study.optimize(Trained(save=False), n_trials=12)
        again = next(trial for trial in study.state.trials if trial.continues is not None)
    assert main.run(["trial", "show", str(again.number), "--study", "s", "--store", study.storage.url]) == 0
    shown = capsys.readouterr().out
    assert f"continues #{again.continues}" in shown
    assert "hopaas:continues" not in shown


def test_a_promotion_costs_no_further_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a trial and the start of the next are one exchange, whether that is new or goes on."""
    study = _opened(tmp_path, space=SPACE, fidelity=NINE, lease_ttl=3600.0, linger=3600.0)
    study.optimize(Trained(save=False), n_trials=1)
    calls = exchanges_of(study, monkeypatch)
    study.optimize(Trained(save=False), n_trials=12)
    assert any(trial.continues is not None for trial in study.state.trials)
    assert len(calls) == 13  # one more for the last end
    study.close()


def test_checkpoints_that_can_no_longer_win_are_collected(tmp_path: Path) -> None:
    study = _opened(tmp_path, space=SPACE, budget=3, fidelity=NINE)
    study.optimize(Trained())
    state = study.state
    kept = {path.name for path in tmp_path.rglob("*") if path.is_file() and "checkpoint" in str(path.parent)}
    gone = unneeded(state)
    assert gone
    assert not any(key.rpartition("/")[2] in kept for key in gone)
    complete = next(trial for trial in state.trials if trial.state.name == "COMPLETE")
    assert all(one.key not in gone for one in complete.checkpoints)
    study.close()


def test_a_checkpoint_that_this_user_may_not_remove_keeps_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _opened(tmp_path, space=SPACE, budget=3, fidelity=NINE)
    monkeypatch.setattr(checkpoints, "collect", lambda _: 0)
    study.optimize(Trained())
    monkeypatch.undo()
    first, *others = unneeded(study.state)
    assert others
    artifacts = artifacts_of(study.handle.peer.store)
    delete = artifacts.delete
    removed: list[str] = []

    def refuse(key: str) -> None:
        if key == first:
            raise Denied
        delete(key)
        removed.append(key)

    monkeypatch.setattr(type(artifacts), "delete", lambda _, key: refuse(key))
    collect(study.handle)
    assert removed == others
    study.close()


def test_another_fidelity_is_refused_and_an_owner_may_change_it(tmp_path: Path) -> None:
    study = _opened(tmp_path, space=SPACE, fidelity=NINE)
    with pytest.raises(DefinitionMismatch, match=r"rungs\(min=1, max=9, eta=3\)"):
        _opened(tmp_path, fidelity=hopaas_p2p.Rungs(max=27))
    study.search_with(fidelity=hopaas_p2p.Rungs(max=27))
    assert SearchMethod.stored(study.state.system).fidelity == hopaas_p2p.Rungs(max=27)
    study.search_with(fidelity="none")
    assert SearchMethod.stored(study.state.system).fidelity is None
    study.close()


def test_rungs_need_one_direction_and_possible_numbers(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="one direction"):
        _opened(tmp_path, directions=["minimize", "minimize"], fidelity=NINE)
    with pytest.raises(InvalidInput, match="eta must be at least 2"):
        _opened(tmp_path, fidelity=hopaas_p2p.Rungs(eta=1))
    with pytest.raises(InvalidInput, match="whole number"):
        _opened(tmp_path, fidelity=hopaas_p2p.Rungs(max=9.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("rungs(min=1, max=27, eta=3)", hopaas_p2p.Rungs()),
        ("rungs(min=2,max=54)", hopaas_p2p.Rungs(min=2, max=54)),
        ("rungs(max=81,brackets=3,first_step=1)", hopaas_p2p.Rungs(max=81, brackets=3, first_step=1)),
        ("none", None),
    ],
)
def test_rungs_are_written_as_they_are_called(said: str, meant: hopaas_p2p.Rungs | None) -> None:
    assert parse(said) == meant
    assert parse(in_words(meant)) == meant


@pytest.mark.parametrize("said", ["rungs(max=many)", "hyperband(1)", "rungs(1,2", "rungs(heights=3)", ""])
def test_what_cannot_be_read_is_said_with_how_to_write_it(said: str) -> None:
    with pytest.raises(InvalidInput):
        parse(said)


@pytest.mark.parametrize(
    ("said", "why"),
    [("rungs(min=1,max=9,min=3)", "gives min twice"), ("population(size=16,size=8)", "gives size twice")],
)
def test_no_value_of_a_fidelity_is_dropped_unsaid(said: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        parse(said)


def test_our_samplers_see_a_configuration_once() -> None:
    def trial(number: int, state: str, value: float | None, continues: int | None = None) -> optuna.trial.FrozenTrial:
        made = optuna.trial.create_trial(
            state=optuna.trial.TrialState[state],
            value=value,
            params={"x": 0.5},
            distributions={"x": optuna.distributions.FloatDistribution(0.0, 1.0)},
            intermediate_values={number: 1.0},
            system_attrs={} if continues is None else {CONTINUES: continues},
        )
        made.number = number
        return made

    columns = KnownTrials(lambda one: one.params)
    paused = trial(0, "PRUNED", 1.0)
    columns.refresh([paused, trial(1, "RUNNING", None, continues=0)])
    assert columns.learned == 1
    assert list(columns.role[:2]) == [PRUNED, -1]  # it runs on, and what it did so far is known
    columns.refresh([paused, trial(1, "COMPLETE", 0.5, continues=0)])
    assert columns.learned == 1
    assert list(columns.role[:2]) == [-1, COMPLETE]


@pytest.mark.parametrize(
    ("fidelity", "unit"),
    [
        (None, "trials"),
        (hopaas_p2p.Rungs(max=9), "configurations"),
        (hopaas_p2p.Population(size=4, every=1, max=9), "members"),
    ],
)
def test_words_about_the_budget_say_what_it_counts(fidelity: Any, unit: str) -> None:
    study = hopaas_p2p.open_study(f"memory://unit-{unit}", "s", space=SPACE, budget=4, fidelity=fidelity)
    assert study.state.configurations.unit == unit
    study.close()


@pytest.mark.filterwarnings("ignore:.*optuna.terminator.*:FutureWarning")
@pytest.mark.parametrize("fidelity", [hopaas_p2p.Rungs(min=1, max=4), hopaas_p2p.Population(size=8, every=2, max=4)])
def test_optunas_terminator_ends_the_call_of_a_study_whose_trials_pause(tmp_path: Path, fidelity: object) -> None:
    study = _opened(tmp_path, space=SPACE, budget=60, fidelity=fidelity)
    terminator = Terminator(BestValueStagnationEvaluator(0), StaticErrorEvaluator(0), min_n_trials=2)

    def objective(trial: hopaas_p2p.Trial) -> float:
        curve = Curve(trial.params["x"])
        training = Training(trial, save=curve.save, load=curve.load)
        for _ in training.steps(4):
            training.report(1.0)
        return 1.0

    study.optimize(objective, callbacks=[TerminatorCallback(terminator)])
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 2
    assert not study.state.running
    study.close()


@pytest.mark.parametrize(
    "said",
    [
        {"sampler": optuna.samplers.GridSampler({"n": [1, 2, 3, 4]})},
        {"repeats": "reuse", "sampler": default_sampler(seed=1)},
        {"repeats": "reuse", "sampler": default_sampler(seed=3)},
    ],
    ids=["grid", "reuse", "reuse, and the best comes last"],
)
def test_when_no_configuration_is_new_the_budget_is_named_with_which_the_best_go_on(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    space = {"n": hopaas_p2p.Int(1, 4)}
    study = opened_study(tmp_path, "s", space=space, fidelity=hopaas_p2p.Rungs(min=1, max=9), **said)

    def objective(trial: Any) -> float:
        for epoch in range(9):
            trial.report(trial.params["n"], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(trial.params["n"])

    study.optimize(objective)
    with pytest.raises(NoWork, match="to continue the best of those that wait at rungs, set the budget to 4"):
        study.ask()
    study.set_budget(4)
    study.optimize(objective)
    assert study.best_value == 1.0
    study.close()


def _epochs(report: Callable[[hopaas_p2p.Trial, int], float]) -> Callable[[hopaas_p2p.Trial], float]:
    def objective(trial: hopaas_p2p.Trial) -> float:
        for epoch in range(9):
            trial.report(report(trial, epoch), epoch)
            if trial.should_prune():
                trial.prune()
        return 0.0

    return objective


def _spend(study: Study, epochs: int) -> None:
    study.set_budget(hopaas_p2p.Budget(epochs=epochs))
    study.optimize(_epochs(lambda trial, _: trial.params["x"]), n_trials=1)


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (lambda study: study.pause(), "nothing continues now: the study is paused"),
        (lambda study: study.stop_all(), "nothing continues now: the study is stopped"),
        (lambda study: _spend(study, 4), "nothing continues now: 4 epochs are spent"),
    ],
    ids=["paused", "stopped", "limit"],
)
@pytest.mark.parametrize("fidelity", [NINE, hopaas_p2p.Population(size=3, every=2, max=9)], ids=["rungs", "population"])
def test_where_no_trial_starts_none_is_said_to_continue_next(
    tmp_path: Path, end: Callable[[Study], None], why: str, fidelity: Any
) -> None:
    study = _opened(tmp_path, space=SPACE, fidelity=fidelity)
    study.optimize(_epochs(lambda trial, _: trial.params["x"]), n_trials=3)
    assert next_in_words(study.state).endswith("continues next")
    end(study)
    assert next_in_words(study.state) == why
    study.close()


def test_paused_trials_that_diverged_are_named_where_nothing_is_promoted(tmp_path: Path) -> None:
    study = _opened(tmp_path, space=SPACE, budget=3, fidelity=NINE)
    study.optimize(_epochs(lambda *_: math.nan))
    assert next_in_words(study.state) == (
        "nothing is promoted now: no trial is waiting at a rung; 3 that reported NaN or infinity are not continued"
    )
    study.close()


def test_a_configuration_that_failed_after_its_promotion_is_no_longer_shown_as_paused(tmp_path: Path) -> None:
    study = _opened(tmp_path, space=SPACE, budget=3, fidelity=NINE)

    def objective(trial: hopaas_p2p.Trial) -> float:
        if trial.number == 3:
            raise ValueError("out of memory")
        return _epochs(lambda trial, _: trial.params["x"])(trial)

    study.optimize(objective, n_trials=4, catch=ValueError)
    failed, *others = sorted(rows(study.state), key=lambda row: row.state)
    assert (failed.state, failed.newest.number) == ("fail", 3)
    assert "out of memory" in str(failed.newest.reason)
    assert [row.state for row in others] == ["paused", "paused"]
    study.close()
