"""A study says how it is searched: sampler, pruner, repeats, replicates; and its peers do so."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import secrets
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.analysis.replicates import mean as mean_of
from hopaas_p2p.core import snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.attributes import REPEATS, REPLICATE, SAMPLER
from hopaas_p2p.core.records import Commit, Stamp, StudyDefine, StudySet, TrialCreate, TrialState
from hopaas_p2p.core.state import State
from hopaas_p2p.core.state import Trial as CoreTrial
from hopaas_p2p.errors import InvalidInput, NoWork
from hopaas_p2p.pruners import MedianPruner, SuccessiveHalvingPruner
from hopaas_p2p.samplers import TPESampler
from hopaas_p2p.study import Study
from hopaas_p2p.study.method import chosen_by
from hopaas_p2p.study.trial import Trial
from tests.support.processes import cli, states, until
from tests.support.scribe import defined
from tests.support.studies import opened_study

SMALL = {"n": hopaas_p2p.Int(1, 4), "c": hopaas_p2p.Categorical(("a", "b", "c"))}


@pytest.fixture
def studies() -> Iterator[Any]:
    """Opens one study again and again, each time as another peer."""
    store, opened = f"memory://{secrets.token_hex(8)}", list[Study]()

    def open_it(**options: Any) -> Study:
        opened.append(opened_study(store, "s", **options))
        return opened[-1]

    yield open_it
    for study in opened:
        study.close()


class Stubborn(optuna.samplers.RandomSampler):
    """Draws the same configuration again and again."""

    needs_number = False

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        return {"n": 2, "c": "b"}[name]


class LateStubborn(Stubborn):
    needs_number = True


def configurations(study: Study) -> list[tuple[Any, ...]]:
    return [tuple(sorted(trial.params.items())) for trial in study.trials]


def value(trial: Trial) -> float:
    return float(trial.params["n"]) + {"a": 0.1, "b": 0.2, "c": 0.3}[trial.params["c"]]


SAMPLERS = [
    pytest.param(optuna.samplers.RandomSampler, id="random"),
    pytest.param(optuna.samplers.TPESampler, id="tpe"),
    pytest.param(lambda: optuna.samplers.NSGAIISampler(population_size=3), id="nsgaii"),
    pytest.param(Stubborn, id="stubborn"),
    pytest.param(LateStubborn, id="after the ask"),
    pytest.param(lambda: optuna.samplers.BruteForceSampler(), id="brute force"),
]


def test_what_another_peer_asked_for_at_the_same_moment_is_replaced(
    studies: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = studies(space=SMALL, sampler=Stubborn()), studies(sampler=Stubborn())
    handle, theirs = mine.handle, list[Trial]()
    asked = handle.begin

    def beaten(*arguments: Any, **options: Any) -> int:
        theirs.append(other.ask())
        return asked(*arguments, **options)

    monkeypatch.setattr(handle, "begin", beaten)
    trial = mine.ask()
    assert theirs[0].params == {"n": 2, "c": "b"}
    assert trial.params != theirs[0].params
    until(lambda: other.trials[trial.number].params == trial.params)
    assert mine.trials[trial.number].params == trial.params


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_configuration_is_tried_twice_while_there_are_others(studies: Any, sampler: Any) -> None:
    first, second = studies(space=SMALL, sampler=sampler()), studies(sampler=sampler())
    running: list[Trial] = []
    for study in [first, second] * 6:
        if len(running) == 2:
            study.tell(running.pop(0), 1.0)
        running.append(trial := study.ask())
        wanted = tuple(sorted(trial.params.items()))
        for peer in (first, second):  # parameters of a sampler that needs the number come a moment later
            until(lambda peer=peer, trial=trial, wanted=wanted: configurations(peer)[trial.number] == wanted)
    assert len(set(configurations(first))) == 12
    assert len(first.trials) == 12


def test_fixed_parameters_stay_fixed_and_the_others_are_not_repeated(studies: Any) -> None:
    study = studies(space=SMALL, sampler=optuna.samplers.PartialFixedSampler({"c": "a"}, Stubborn()))
    for _ in range(4):
        study.tell(study.ask(), 1.0)
    assert sorted(configurations(study)) == [(("c", "a"), ("n", n)) for n in (1, 2, 3, 4)]


ENUMERATING = [
    pytest.param(optuna.samplers.BruteForceSampler, id="brute force"),
    pytest.param(lambda: optuna.samplers.GridSampler({"n": [1, 2, 3, 4], "c": ["a", "b", "c"]}), id="grid"),
]


@pytest.mark.parametrize("repeats", ["avoid", "allow", "reuse"])
@pytest.mark.parametrize("budget", [None, 12, 30])
@pytest.mark.parametrize("sampler", ENUMERATING)
def test_a_sampler_that_goes_through_points_of_its_own_ends_optimize(
    studies: Any, sampler: Any, budget: int | None, repeats: str
) -> None:
    first, second = studies(space=SMALL, sampler=sampler(), budget=budget, repeats=repeats), studies(sampler=sampler())
    first.optimize(value, n_trials=5)
    second.optimize(value)
    first.optimize(value)
    assert sorted(configurations(first)) == sorted({*configurations(first)})
    assert len(first.trials) == 12
    if budget != 12:
        with pytest.raises(NoWork, match="all of its points"):
            second.ask()
    if budget is None:
        first.enqueue_trial({"n": 1, "c": "a"})
        first.optimize(value)
        assert [trial.state for trial in first.trials] == [optuna.trial.TrialState.COMPLETE] * 13


@pytest.mark.parametrize("sampler", ENUMERATING)
def test_points_that_others_run_are_not_started_again(studies: Any, sampler: Any) -> None:
    first, second = studies(space=SMALL, sampler=sampler()), studies(sampler=sampler())
    running = [first.ask() for _ in range(12)]
    until(lambda: len({*configurations(second)} - {()}) == 12)  # parameters come a moment later
    with pytest.raises(NoWork, match="all of its points"):
        second.ask()
    for trial in running:
        first.tell(trial, 1.0)
    assert len(second.trials) == 12


@pytest.mark.parametrize(
    ("sampler", "repeats"),
    [*[pytest.param(*one.values, "avoid", id=one.id) for one in ENUMERATING], (Stubborn, "reuse")],
)
def test_a_point_whose_peer_died_twice_has_its_rest_and_is_run(studies: Any, sampler: Any, repeats: str) -> None:
    study = studies(space=SMALL, sampler=sampler(), repeats=repeats, lease_ttl=1.0, attempts=5)
    lost = []
    for _ in range(2):
        lost.append(studies(sampler=sampler()).ask())
        until(lambda: configurations(study)[lost[-1].number])  # parameters come a moment later
        study.requeue(lost[-1].number)
    study.optimize(value)
    complete = [trial.params for trial in study.trials if trial.state is optuna.trial.TrialState.COMPLETE]
    assert len({(one["n"], one["c"]) for one in complete}) == 12
    assert study.state.waiting == {}


@pytest.mark.parametrize("sampler", ENUMERATING)
def test_points_of_a_sampler_get_their_replicates(studies: Any, sampler: Any) -> None:
    study = studies(space=SMALL, sampler=sampler(), replicates=2)
    study.optimize(value)
    assert sorted(configurations(study)) == sorted(2 * [*{*configurations(study)}])
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 24


def test_a_sampler_that_fails_at_the_end_of_a_queued_trial_stops_no_loop(studies: Any) -> None:
    study = studies(space=SMALL, sampler=optuna.samplers.GridSampler({"n": [1], "c": ["a", "b"]}))
    study.enqueue_trial({"n": 4, "c": "c"})
    study.optimize(value, n_trials=2)
    study.enqueue_trial({"n": 3, "c": "c"})  # one point is left: GridSampler looks for that of this trial
    study.optimize(value)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 4


@pytest.mark.parametrize("space", [None, SMALL])
def test_an_objective_may_end_optimize_as_in_optuna(studies: Any, space: Any) -> None:
    study = studies(space=space)

    def objective(trial: Trial) -> float:
        if trial.number == 2:
            trial.study.stop()
        return float(trial.suggest_int("n", 1, 4))

    study.optimize(objective, n_trials=9)
    assert len(study.trials) == 3
    study.optimize(objective, n_trials=2)
    assert len(study.trials) == 5


@pytest.mark.parametrize("ends", ["an objective", "a helper of the objective"])
def test_an_objective_ends_the_optimize_of_its_own_thread(studies: Any, ends: str) -> None:
    study = studies(space=SMALL)
    asked, began, over = threading.Event(), threading.Event(), threading.Event()

    def stops(trial: Trial) -> float:
        if ends == "an objective":
            trial.study.stop()
        else:
            helper = threading.Thread(target=trial.study.stop)
            helper.start()
            helper.join()
        asked.set()
        assert over.wait(60)
        return 1.0

    def goes_on(_trial: Trial) -> float:
        began.set()
        assert asked.wait(60)
        return 1.0

    others = threading.Thread(target=study.optimize, args=(goes_on, 3))
    others.start()
    assert began.wait(60)
    stopped = threading.Thread(target=study.optimize, args=(stops, 2))
    stopped.start()
    others.join()
    study.optimize(value, n_trials=1)  # begins after the stop, and ends before its call has looked
    over.set()
    stopped.join()
    assert len(study.trials) == (5 if ends == "an objective" else 3)


def test_brute_force_without_a_search_space_ends_too(studies: Any) -> None:
    study = studies(sampler=optuna.samplers.BruteForceSampler())
    study.optimize(lambda trial: trial.suggest_int("n", 1, 4) + trial.suggest_int("m", 1, 2))
    assert len({*configurations(study)}) == len(study.trials) == 8


def test_a_callback_that_is_made_for_optuna_ends_a_campaign(studies: Any) -> None:
    study = studies(space=SMALL)
    study.optimize(value, callbacks=[optuna.study.MaxTrialsCallback(4)])
    assert len(study.trials) == 4
    assert [trial.number for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])] == [0, 1, 2, 3]


def test_when_the_space_is_used_up_that_is_said_once_and_configurations_are_repeated(
    studies: Any, caplog: pytest.LogCaptureFixture
) -> None:
    study = studies(space=SMALL, sampler=optuna.samplers.RandomSampler(seed=1))
    with caplog.at_level(logging.WARNING, "hopaas_p2p"):
        study.optimize(value, n_trials=15)
    assert len(set(configurations(study))) == 12
    assert [message for message in caplog.messages if "12 configurations" in message] == [
        "all 12 configurations of the search space of 's' have been tried; from now on they are repeated"
    ]


def test_repeats_are_allowed_where_somebody_wants_them(studies: Any) -> None:
    study = studies(space=SMALL, sampler=Stubborn(), repeats="allow")
    study.optimize(value, n_trials=5)
    assert set(configurations(study)) == {(("c", "b"), ("n", 2))}


@pytest.mark.parametrize("sampler", [Stubborn, LateStubborn])
def test_known_values_are_told_without_training(studies: Any, sampler: Any) -> None:
    study, trained = studies(space=SMALL, sampler=sampler(), repeats="reuse", budget=6), []
    study.enqueue_trial({"n": 2, "c": "b"})

    def train(trial: Trial) -> float:
        trained.append(trial.number)
        return value(trial)

    study.optimize(train)
    assert trained == [0]
    assert states(study) == ["COMPLETE"] * 6
    assert {trial.value for trial in study.trials} == {2.2}
    assert all("hopaas:reused" in trial.system_attrs for trial in study.trials[1:])


def test_nothing_is_left_to_train_where_known_values_are_reused_and_the_space_is_used_up(studies: Any) -> None:
    study = studies(space=SMALL, sampler=optuna.samplers.RandomSampler(seed=1), repeats="reuse")
    trained: list[int] = []
    study.optimize(lambda trial: trained.append(trial.number) or value(trial))
    assert len(trained) == 12
    with pytest.raises(NoWork, match="every configuration"):
        study.ask()


@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [
        pytest.param(optuna.samplers.QMCSampler, None, id="qmc"),
        pytest.param(LateStubborn, None, id="after the ask"),
        pytest.param(optuna.samplers.RandomSampler, optuna.pruners.HyperbandPruner, id="hyperband"),
    ],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_sampler_that_needs_the_trial_first_ends_where_known_values_are_reused(
    studies: Any, sampler: Any, pruner: Any
) -> None:
    study = studies(space=SMALL, sampler=sampler(), pruner=pruner and pruner(), repeats="reuse", budget=500)
    trained: list[int] = []
    study.optimize(lambda trial: trained.append(trial.number) or value(trial))
    assert len(trained) == len(set(configurations(study))) == 12
    assert len(study.trials) < 500
    with pytest.raises(NoWork, match="every configuration"):
        study.ask()


def test_a_failed_configuration_is_not_tried_again_and_has_no_value_to_reuse(studies: Any) -> None:
    study = studies(space=SMALL, sampler=Stubborn(), repeats="reuse")
    study.tell(study.ask(), state="fail", reason="out of memory")
    trial = study.ask()
    assert trial.params != {"n": 2, "c": "b"}
    study.tell(trial, 1.0)


def test_threads_of_a_process_do_not_draw_the_same(studies: Any) -> None:
    study = studies(space=SMALL, sampler=Stubborn())
    first = study._proposer.propose(math.inf)
    second = study._proposer.propose(math.inf)
    assert first.record.params != second.record.params
    study._proposer.drop(first)
    third = study._proposer.propose(math.inf)
    assert third.record.params == first.record.params


def _left(state: State) -> int:
    """Replicates that have not begun: a sampler that needs its trial first has them queued."""
    return len(state.waiting) + sum(one.count - one.seed for one in state.replicates.values())


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler, LateStubborn])
def test_a_configuration_is_tried_with_several_seeds(studies: Any, sampler: Any) -> None:
    study, other = studies(space=SMALL, sampler=sampler(), replicates=3, linger=0.1), studies(sampler=sampler())
    told: dict[tuple[Any, ...], list[float]] = {}
    for number in range(9):
        trial = (study, other)[number % 2].ask()
        result = value(trial) + trial.seed
        told.setdefault(tuple(trial.params.items()), []).append(trial.seed)
        waiting = (2, 1, 0)[number % 3]
        until(lambda waiting=waiting: _left(study.state) == waiting)
        (study, other)[number % 2].tell(trial, result)
    assert sorted(map(sorted, told.values())) == [[0, 1, 2]] * 3
    best, *_ = groups = study.replicates()
    assert [len(group.numbers) for group in groups] == [3, 3, 3]
    assert best.mean == min(group.mean for group in groups)
    assert best.standard_error == pytest.approx(statistics.stdev([0, 1, 2]) / math.sqrt(3))
    assert str(best).endswith("± 0.58 (n = 3)")


def test_values_that_are_told_again_make_no_mean_more_certain(studies: Any) -> None:
    study = studies(space=SMALL, sampler=Stubborn(), replicates=2, repeats="reuse", budget=10)
    study.optimize(lambda trial: value(trial) + trial.seed)
    assert any("hopaas:reused" in trial.system_attrs for trial in study.trials)
    groups = study.replicates()
    assert {len(group.numbers) for group in groups} == {2}
    assert groups[0].standard_error == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("direction", "bad", "means"),
    [("minimize", math.inf, [2.1, 3.1, math.inf]), ("maximize", -math.inf, [3.1, 2.1, -math.inf])],
)
def test_a_seed_that_diverged_leaves_the_means_of_others_known(
    studies: Any, direction: str, bad: float, means: list[float]
) -> None:
    space = {"n": hopaas_p2p.Int(1, 3), "c": hopaas_p2p.Categorical(("a",))}
    study = studies(space=space, replicates=2, budget=6, directions=direction)
    study.optimize(lambda trial: bad if trial.seed and trial.params["n"] == 1 else value(trial))
    assert [group.mean for group in study.replicates()] == means
    assert [str(group) for group in study.replicates()][-1] == f"{bad} (n = 2)"
    assert math.isnan(study.replicates()[-1].standard_error)


@pytest.mark.parametrize(
    ("values", "mean", "error"),
    [
        ([math.inf, -math.inf], math.nan, math.nan),
        ([1e308, 1e308], 1e308, 0.0),
        ([0.0, 0.0], 0.0, 0.0),
        ([1.0, 3.0], 2.0, 1.0),
        ([7.0], 7.0, math.nan),
    ],
)
def test_a_mean_is_known_of_any_values(values: list[float], mean: float, error: float) -> None:
    assert mean_of(values) == pytest.approx((mean, error), nan_ok=True)


def test_replicates_are_made_when_peers_ask_for_them_and_have_a_limit() -> None:
    state = State()
    apply(state, 1, Commit("w", 1, "w", 0, (StudyDefine("s", ("minimize",), space=SMALL),)))
    params = {"n": 2.0, "c": 1.0}
    for seq, count, refusal in ((2, 0, "malformed"), (3, 1001, "malformed"), (4, 3, None)):
        create = TrialCreate(prefer_waiting=True, params=params, replicates=count)
        (verdict,) = apply(state, seq, Commit("w", seq, "w", 0, (create,)))
        assert verdict.refusal == refusal
    assert (len(state.trials), list(state.replicates)) == (1, [0])
    for seq in (5, 6):
        replica = snapshot.load(snapshot.dump(state))
        again = TrialCreate(prefer_waiting=True, params={"n": 1.0, "c": 1.0}, replicates=3)
        (verdict,) = apply(state, seq, Commit("w", seq, "w", 0, (again,)))
        assert (verdict.number, len(state.trials)) == (seq - 4, seq - 3)  # none of a proposal that is dropped
        apply(replica, seq, Commit("w", seq, "w", 0, (again,)))
        assert snapshot.digest(replica) == snapshot.digest(state)
    assert [trial.params for trial in state.trials] == [params] * 3
    assert [trial.system for trial in state.trials[1:]] == [{REPLICATE: f'{{"of":0,"seed":{seed}}}'} for seed in (1, 2)]
    assert not state.replicates


def test_a_peer_that_joins_searches_as_the_study_says(studies: Any) -> None:
    sampler, pruner = optuna.samplers.NSGAIISampler(population_size=7), SuccessiveHalvingPruner(2)
    studies(space=SMALL, sampler=sampler, pruner=pruner, repeats="allow", replicates=2)
    joined = studies()
    assert isinstance(joined.sampler, optuna.samplers.NSGAIISampler)
    assert joined.sampler.population_size == 7
    assert isinstance(joined.pruner, SuccessiveHalvingPruner)
    assert (joined._searcher.repeats, joined._searcher.replicates) == ("allow", 2)


def test_where_nothing_was_said_the_defaults_hold(studies: Any) -> None:
    study = studies(space=SMALL)
    assert isinstance(study.pruner, MedianPruner)
    assert (study._searcher.repeats, study._searcher.replicates) == ("avoid", 1)
    assert "hopaas:sampler" not in study.state.system


def test_a_peer_that_uses_another_sampler_is_told_once_and_says_so_to_the_others(
    studies: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = studies(space=SMALL, sampler=optuna.samplers.RandomSampler())
    with caplog.at_level(logging.WARNING, "hopaas_p2p"):
        other = studies(sampler=optuna.samplers.NSGAIISampler(), repeats="avoid")
        other.optimize(value, n_trials=2)
    assert [message for message in caplog.messages if "this process uses" in message] == [
        "study 's' has the sampler RandomSampler(); this process uses NSGAIISampler()"
    ]
    assert isinstance(other.sampler, optuna.samplers.NSGAIISampler)
    assert [info.get("sampler") for info in first.state.peers.values()] == ["NSGAIISampler()"]


def test_an_owner_changes_how_all_search(studies: Any) -> None:
    mine, other = studies(space=SMALL), studies(repeats="avoid")
    mine.search_with(sampler=optuna.samplers.RandomSampler(), repeats="allow", pruner=optuna.pruners.NopPruner())
    until(lambda: SAMPLER in other.state.system)
    other.tell(other.ask(), 1.0)
    assert isinstance(other.sampler, optuna.samplers.RandomSampler)
    assert isinstance(other.pruner, optuna.pruners.NopPruner)
    assert other._searcher.repeats == "avoid"  # said so itself
    mine.tell(mine.ask(), 1.0)
    assert mine._searcher.repeats == "allow"


@pytest.mark.parametrize(
    "wrong",
    [
        {"repeats": "never"},
        {"replicates": 0},
        {"replicates": 2.0},
        {"replicates": True},
        {"sampler": optuna.samplers.GridSampler({"n": [1]})},
    ],
)
def test_what_cannot_be_kept_is_not_taken(studies: Any, wrong: dict[str, Any]) -> None:
    study = studies(space=SMALL)
    with pytest.raises(InvalidInput):
        study.search_with(**wrong)
    assert study.state.system == {}


def test_a_sampler_whose_arguments_cannot_be_kept_may_be_used_and_others_are_told(
    studies: Any, caplog: pytest.LogCaptureFixture
) -> None:
    studies(space=SMALL, sampler=optuna.samplers.GridSampler({"n": [1], "c": ["a"]}))
    with caplog.at_level(logging.WARNING, "hopaas_p2p"):
        joined = studies()
        assert caplog.text == ""  # it may only look
        joined.tell(joined.ask(), 1.0)
        joined.tell(joined.ask(), 1.0)
    assert caplog.text.count("cannot be created, so this process uses the default") == 1


def test_what_a_store_says_is_made_of_known_classes_or_not_at_all(
    studies: Any, caplog: pytest.LogCaptureFixture
) -> None:
    study = studies(space=SMALL)
    evil = '{"class":"os.system","arguments":{"command":"touch /tmp/x"}}'
    study.handle.say(StudySet(system={SAMPLER: evil}))
    with caplog.at_level(logging.WARNING, "hopaas_p2p"):
        study.tell(study.ask(), 1.0)
    assert "os.system" in caplog.text
    assert states(study) == ["COMPLETE"]


@pytest.mark.parametrize(
    "text", ['"sometimes"', "7", '{"class":7,"arguments":{}}', '{"class":"x","arguments":[]}', "[]", "nonsense"]
)
def test_what_no_method_looks_like_is_refused_by_the_log(text: str) -> None:
    for key in (SAMPLER, REPEATS):
        state = State()
        apply(state, 1, Commit("w", 1, "w", 0, (defined(),)))
        (verdict,) = apply(state, 2, Commit("w", 2, "w", 0, (StudySet(system={key: text}),)))
        assert verdict.refusal == "malformed"


def test_only_owners_say_how_a_study_is_searched() -> None:
    state = State()
    apply(state, 1, Commit("w", 1, "w", 0, (defined(),)))
    said = StudySet(system={REPEATS: '"allow"'})
    (verdict,) = apply(state, 2, Commit("x", 1, "x", 0, (said,)), Stamp("x", "worker"))
    assert verdict.refusal == "role"
    (verdict,) = apply(state, 3, Commit("x", 2, "x", 0, (StudySet(system={"other": "1"}),)), Stamp("x", "worker"))
    assert verdict.accepted
    (verdict,) = apply(state, 4, Commit("o", 1, "o", 0, (said,)), Stamp("o", "owner"))
    assert verdict.accepted
    assert state.system[REPEATS] == '"allow"'


def test_the_command_line_says_how_a_study_is_searched_and_changes_it(tmp_path: Path) -> None:
    at = {"cwd": tmp_path, "HOPAAS_STORE": "store", "HOPAAS_STUDY": "s"}
    search = ("--sampler", "random", "--repeats", "avoid", "--replicates", "2", "--pruner", "halving")
    cli("study", "create", "--space", "n=int(1,4)", *search, **at)
    for number in range(3):
        cli(
            "trial",
            "tell",
            "--ticket",
            json.loads(cli("trial", "ask", "--json", **at).stdout)["ticket"],
            str(number),
            **at,
        )
    shown = json.loads(cli("study", "show", "--json", **at).stdout)
    assert shown["search"] == {
        "sampler": "RandomSampler()",
        "pruner": "hopaas_p2p.SuccessiveHalvingPruner()",
        "repeats": "avoid",
        "replicates": "2",
        "fidelity": "none",
    }
    first = shown["means"][0]
    assert (first["mean"], first["numbers"], first["standard_error"]) == (0.5, [0, 1], pytest.approx(0.5))
    cli("study", "set", "--sampler", "nsgaii", "--repeats", "allow", **at)
    text = cli("study", "show", **at).stdout
    assert "NSGAIISampler" in text
    assert "0.5 ± 0.5 (n = 2)" in text
    peers = cli("peers", "list", "--all", **at).stdout
    assert "uses the" not in peers
    cli("study", "set", "--sampler", "tpe", **at)  # the default sampler, as for a worker
    searched = json.loads(cli("study", "show", "--json", **at).stdout)["search"]
    assert searched["sampler"] == "hopaas_p2p.TPESampler(model='process', repeats='avoid')"
    store, own = str(tmp_path / "store"), optuna.samplers.RandomSampler()
    study = hopaas_p2p.open_study(store, "s", create=False, sampler=own)
    with contextlib.closing(study), study.trial() as trial:
        assert "uses the sampler RandomSampler()" in cli("peers", "list", **at).stdout
        trial.tell(0.0)


def test_a_trial_says_which_sampler_chose_its_parameters(studies: Any) -> None:
    usual, other = studies(space=SMALL), studies(sampler=optuna.samplers.RandomSampler())
    usual.tell(usual.ask(), 1.0)
    other.tell(other.ask(), 1.0)
    usual.enqueue_trial({"n": 4, "c": "a"})
    other.tell(other.ask(), 1.0)
    state = usual.state
    assert [chosen_by(trial, state) for trial in state.trials] == [
        "the default sampler",
        "RandomSampler()",
        "queued by hand",
    ]


def test_a_retry_has_the_sampler_of_its_first_attempt(studies: Any) -> None:
    usual = studies(space=SMALL, sampler=TPESampler())
    other = studies(sampler=optuna.samplers.RandomSampler())
    trial = other.ask()
    other.handle.release(trial.number)
    usual.tell(usual.ask(), 1.0)
    assert chosen_by(usual.state.trials[trial.number], usual.state) == "RandomSampler()"


def test_who_chose_the_parameters_is_known_of_the_five_thousandth_continuation_too() -> None:
    state = State()
    state.trials.append(CoreTrial(0, TrialState.PRUNED, end=1))
    for number in range(1, 5000):
        state.trials.append(CoreTrial(number, TrialState.PRUNED, continues=number - 1, end=1))
    assert chosen_by(state.trials[4999], state) == "imported"
