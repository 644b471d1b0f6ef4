"""Parameters travel with the ask: what other peers see of a trial that starts, and when."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, TrialCreate
from hopaas_p2p.errors import NoWork
from hopaas_p2p.peer.session import LogClient, LogSession
from hopaas_p2p.samplers import CmaEsSampler, TPESampler
from hopaas_p2p.search.repeats import Tried
from hopaas_p2p.study import Study
from hopaas_p2p.study import study as study_module
from hopaas_p2p.study.proposer import Proposer, draws_early
from hopaas_p2p.testing.commits import together
from tests.support.processes import SPACE, states, until
from tests.support.studies import opened_study

NOP = optuna.pruners.NopPruner()
GRID: dict[str, Any] = {"lr": [1e-3, 1e-2], "depth": [1, 2]}


@pytest.fixture
def studies() -> Iterator[Any]:
    """Opens one study again and again, each time as another peer, which sends reports only when it must."""
    store, opened = f"memory://{secrets.token_hex(8)}", list[Study]()

    def open_it(**options: Any) -> Study:
        opened.append(opened_study(store, "s", **{"linger": 3600.0, **options}))
        return opened[-1]

    yield open_it
    for study in opened:
        study.close()


def commits(study: Study) -> list[Commit]:
    entries = study.handle.log.log.exchange(None, 0).entries
    decoded = [codec.decode(entry.payload) for entry in entries]
    return [commit for commit in decoded if isinstance(commit, Commit)]


def seen_by(study: Study, number: int) -> set[str]:
    return set(study.state.trials[number].params)


def test_another_peer_sees_number_and_parameters_in_one_commit(studies: Any) -> None:
    mine, other = studies(space=SPACE), studies()
    trial = mine.ask()
    (started,) = [one for commit in commits(other) for one in commit.records if isinstance(one, TrialCreate)]
    assert set(started.params) == set(SPACE)
    (frozen,) = other.trials
    assert frozen.number == trial.number
    assert (
        frozen.params
        == trial.params
        == {name: trial.suggest_float(name, 1e-4, 0.1, log=True) for name in ["lr"]}
        | {"depth": trial.suggest_int("depth", 1, 8)}
    )
    mine.tell(trial, 1.0)
    assert mine.trials[0].params == trial.params
    assert len(commits(other)) == 3  # the definition; the ask, with the introduction; the tell


def test_a_trial_has_the_parameters_of_the_log_where_they_are_not_those_that_were_drawn(studies: Any) -> None:
    class Stuck(optuna.samplers.RandomSampler):
        needs_number = False

        def sample_independent(self, _study: Any, _trial: Any, name: str, _distribution: Any) -> Any:
            return {"x": np.float64(0.5), "depth": np.int64(2), "kind": None}[name]

    kinds = hopaas_p2p.Categorical([None, "a", True])
    space = {"x": hopaas_p2p.Float(0.0, 1.0), "depth": hopaas_p2p.Int(1, 8), "kind": kinds}
    mine, other = studies(space=space, sampler=Stuck()), studies()
    trials = [mine.ask() for _ in range(4)]
    for trial, here, there in zip(trials, mine.trials, other.trials, strict=True):
        assert trial.params == here.params == there.params
        assert {type(one) for one in here.params.values()} <= {float, int, str, bool, type(None)}
    assert len({tuple(trial.params.items()) for trial in trials}) == 4


def test_an_ask_that_is_interrupted_while_it_looks_for_repeats_knows_all_trials_the_next_time(
    studies: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"depth": hopaas_p2p.Int(1, 4)}
    first = studies(space=space, sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(3):
        first.tell(first.ask(), 0.0)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    study = studies(space=space, sampler=optuna.samplers.RandomSampler(seed=1))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tried, "note_all", interrupt)
        study.ask()
    study.ask()
    assert len({trial.params["depth"] for trial in study.trials}) == 4


def test_what_is_running_here_can_be_read_while_the_log_is_joined_anew(
    studies: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = studies(space=SPACE)
    trials = [study.ask() for _ in range(2)]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LogSession, "complete_join", lambda _: None)
        patch.setattr(LogClient, "pull", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        study.handle.log.session.joined = False
        study.ask()
    assert study.handle.running_here() == [trial.number for trial in trials]
    assert study.ask().number == 2


def test_what_a_sampler_writes_of_a_trial_travels_with_the_ask(studies: Any) -> None:
    mine = studies(space=SPACE, sampler=optuna.samplers.NSGAIISampler(population_size=2))
    mine.ask()
    (frozen,) = studies().trials
    assert frozen.system_attrs == {"NSGAIISampler:generation": 0}


def test_what_a_sampler_announces_is_left_out_where_the_parameters_are(studies: Any) -> None:
    sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, n_startup_trials=1, seed=1)
    mine = studies(space=SPACE, sampler=sampler)
    mine.optimize(lambda trial: float(trial.params["lr"]), n_trials=2)
    mine.ask()
    assert [frozen.system_attrs for frozen in studies().trials] == [{}, {}, {}]


def test_a_proposal_is_dropped_where_a_trial_waits_and_the_sampler_hears_of_it(studies: Any) -> None:
    dropped: list[dict[str, Any]] = []

    class Listening(optuna.samplers.RandomSampler):
        needs_number = False

        def proposal_dropped(self, trial: optuna.trial.FrozenTrial) -> None:
            dropped.append(dict(trial.params))

    mine, other = studies(space=SPACE, sampler=Listening()), studies()
    queued = {"lr": 0.01, "depth": 3}
    handle = mine.handle
    handle.look_before_sampling = lambda: other.enqueue_trial(queued)  # too late to see it
    trial = mine.ask()
    assert trial.params == queued
    assert len(dropped) == 1
    assert set(dropped[0]) == set(SPACE)
    assert dropped[0] != queued
    assert len(other.trials) == 1


def test_nothing_is_drawn_where_a_trial_is_known_to_wait(studies: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = studies(space=SPACE, sampler=optuna.samplers.RandomSampler())
    study.enqueue_trial({"lr": 0.01, "depth": 3})
    monkeypatch.setattr(Proposer, "_draw", None)  # would raise if it were called
    assert study.ask().params == {"lr": 0.01, "depth": 3}


def test_a_closed_study_is_not_sampled_for(studies: Any) -> None:
    study = studies(space=SPACE, budget=1)
    study.optimize(lambda _: 0.0)
    asked: list[object] = []
    study.sampler.infer_relative_search_space = lambda *_: asked.append(1) or {}
    with pytest.raises(NoWork):
        study.ask()
    assert asked == []


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(lambda: optuna.samplers.GridSampler(GRID), id="grid"),
        pytest.param(optuna.samplers.BruteForceSampler, id="brute-force"),
        pytest.param(lambda: CmaEsSampler(n_startup_trials=1), id="cma-es"),
    ],
)
def test_a_sampler_that_needs_the_trial_first_sends_the_parameters_at_once(studies: Any, sampler: Any) -> None:
    """Where somebody else works on the study: without that, nobody could use them."""
    space: dict[str, Any] = {"lr": hopaas_p2p.Float(1e-3, 1e-2, step=9e-3), "depth": hopaas_p2p.Int(1, 2)}
    mine, other = studies(space=space, sampler=sampler()), studies(space=space)
    assert not draws_early(mine.sampler, NOP)
    other.ask()
    trial = mine.ask()
    until(lambda: seen_by(other, trial.number) == set(SPACE))


@pytest.mark.parametrize(
    "search", [{"sampler": optuna.samplers.BruteForceSampler()}, {"repeats": "reuse"}], ids=["brute-force", "reuse"]
)
def test_a_study_is_over_when_every_point_was_tried_and_nothing_waits_or_runs(studies: Any, search: Any) -> None:
    study, other = studies(space={"depth": hopaas_p2p.Int(1, 2)}, budget=9, **search), studies()
    assert not other.is_over()
    study.optimize(lambda _: 0.0, n_trials=1)
    last = study.ask()
    assert not other.is_over()
    study.tell(last, 1.0)
    assert other.is_over()
    study.enqueue_trial({"depth": 1})
    assert not other.is_over()


def test_whether_a_study_is_over_follows_its_sampler(studies: Any) -> None:
    study, other = studies(space={"depth": hopaas_p2p.Int(1, 2)}, budget=9), studies()
    study.optimize(lambda _: 0.0, n_trials=2)
    assert not other.is_over()
    study.search_with(sampler=optuna.samplers.BruteForceSampler())
    assert other.is_over()
    study.search_with(sampler=optuna.samplers.RandomSampler())
    assert not other.is_over()


def test_parameters_of_a_define_by_run_trial_leave_soon_if_somebody_else_works(studies: Any) -> None:
    mine, other = studies(), studies()
    first = mine.ask()
    first.suggest_float("lr", 0, 1)
    assert seen_by(other, 0) == set()
    assert mine.handle.log.session.urgent_at == float("inf")  # nobody could use them
    mine.tell(first, 0.0)
    others = other.ask()
    trial = mine.ask()
    trial.suggest_float("lr", 0, 1)
    trial.suggest_int("depth", 1, 2)
    until(lambda: seen_by(other, trial.number) == {"lr", "depth"})
    assert states(other) == ["COMPLETE", "RUNNING", "RUNNING"]
    other.tell(others, 0.0)


def test_a_report_takes_the_parameters_along(studies: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hopaas_p2p.storage.handle._SOON", 3600.0)
    mine, other = studies(), studies()
    kept = other.ask()
    trial = mine.ask()
    trial.suggest_float("lr", 0, 1)
    assert seen_by(other, trial.number) == set()
    trial.report(0.5, 1)
    until(lambda: seen_by(other, trial.number) == {"lr"})
    other.tell(kept, 0.0)


@pytest.mark.parametrize("name", [name for name in optuna.samplers.__all__ if name.endswith("Sampler")])
def test_of_optunas_samplers_it_is_known_which_can_be_asked_early(name: str) -> None:
    early = {"RandomSampler", "TPESampler", "GPSampler", "NSGAIISampler", "NSGAIIISampler", "PartialFixedSampler"}
    late = {"GridSampler", "BruteForceSampler", "QMCSampler", "CmaEsSampler"}
    kind = getattr(optuna.samplers, name)
    if name.startswith("Base"):
        return
    assert name in early | late, "a sampler that is new in Optuna: find out whether it needs its trial's number"
    sampler = object.__new__(kind)
    if name == "PartialFixedSampler":
        sampler._base_sampler = optuna.samplers.RandomSampler()
    assert draws_early(sampler, NOP) is (name in early)
    assert not draws_early(sampler, optuna.pruners.HyperbandPruner())


def test_of_our_samplers_it_is_known_too() -> None:
    assert draws_early(TPESampler(), NOP)
    assert not draws_early(CmaEsSampler(), NOP)

    class Somebodys(optuna.samplers.TPESampler):
        pass

    assert not draws_early(Somebodys(), NOP)  # nobody knows what it needs


def test_threads_that_ask_at_first_know_of_each_others_proposals(studies: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study, both, real = studies(space=SPACE), threading.Barrier(2), study_module.Proposer

    def made_by_two(*words: Any) -> Any:
        both.wait(30)
        return real(*words)

    monkeypatch.setattr(study_module, "Proposer", made_by_two)
    first, second = together(lambda: study._proposer, lambda: study._proposer)
    assert first is second
