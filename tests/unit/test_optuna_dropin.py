"""Optuna as people use it, on our storage: samplers, pruners, objectives, callbacks, tools."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

import hopaas_p2p
from hopaas_p2p.core.records import TrialReclaim
from hopaas_p2p.errors import ConfigurationError, InvalidInput, NotYourTrial, NoWork
from hopaas_p2p.runtime import provenance
from hopaas_p2p.storage import Storage
from hopaas_p2p.storage import options as options_module
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.testing.faults import FaultyStore

optuna.logging.set_verbosity(optuna.logging.WARNING)
_names = itertools.count()
has_scipy = importlib.util.find_spec("scipy") is not None
has_torch = importlib.util.find_spec("torch") is not None
has_cmaes = importlib.util.find_spec("cmaes") is not None


@pytest.fixture
def study(storage: Storage) -> optuna.Study:
    return optuna.create_study(storage=storage)


@pytest.fixture(params=["memory", "directory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    url = f"memory://dropin-{next(_names)}" if request.param == "memory" else str(tmp_path / "store")
    storage = hopaas_p2p.open_storage(url)
    yield storage
    storage.close()


def objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -2.0, 2.0)
    n = trial.suggest_int("n", 1, 5)
    kind = trial.suggest_categorical("kind", ["a", "b", None])
    lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    return x**2 + n + (kind == "b") + lr


SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "random": lambda: optuna.samplers.RandomSampler(seed=1),
    "TPE": lambda: optuna.samplers.TPESampler(seed=1, n_startup_trials=5),
    "TPE, multivariate": lambda: optuna.samplers.TPESampler(seed=1, n_startup_trials=5, multivariate=True),
    "TPE, in groups": lambda: optuna.samplers.TPESampler(seed=1, n_startup_trials=5, multivariate=True, group=True),
    "TPE, constant liar": lambda: optuna.samplers.TPESampler(seed=1, n_startup_trials=5, constant_liar=True),
    "NSGA-II": lambda: optuna.samplers.NSGAIISampler(seed=1, population_size=5),
    "NSGA-III": lambda: optuna.samplers.NSGAIIISampler(seed=1, population_size=5),
    "partially fixed": lambda: optuna.samplers.PartialFixedSampler(
        {"n": 3}, optuna.samplers.TPESampler(seed=1, n_startup_trials=5)
    ),
    **({"QMC": lambda: optuna.samplers.QMCSampler(seed=1)} if has_scipy else {}),
    **({"GP": lambda: optuna.samplers.GPSampler(seed=1, n_startup_trials=5)} if has_torch else {}),
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_a_sampler_draws_what_it_draws_on_optunas_own_storage(
    storage: Storage, make: Callable[[], BaseSampler]
) -> None:
    n_trials = 8 if isinstance(make(), optuna.samplers.GPSampler) else 20  # the GP takes half a second a trial
    found, expected = [], []
    for where, drawn in ((storage, found), (optuna.storages.InMemoryStorage(), expected)):
        study = optuna.create_study(storage=where, sampler=make())
        study.optimize(objective, n_trials=n_trials)
        drawn += [(trial.params, trial.value, trial.state, trial.distributions) for trial in study.trials]
    assert found == expected


def test_a_grid_is_walked_once(storage: Storage) -> None:
    grid = {"x": [-1.0, 0.0, 1.0], "kind": ["a", "b"]}
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.GridSampler(grid, seed=1))

    def walked(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", -1, 1) + (trial.suggest_categorical("kind", ["a", "b"]) == "a")

    study.optimize(walked)
    assert len(study.trials) == 6
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 6


def test_brute_force_tries_everything_and_stops(storage: Storage) -> None:
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.BruteForceSampler(seed=1))
    study.optimize(lambda trial: trial.suggest_int("n", 0, 4) * trial.suggest_categorical("sign", [-1, 1]))
    assert sorted(trial.value for trial in study.trials) == [-4, -3, -2, -1, 0, 0, 1, 2, 3, 4]


def test_cma_es_is_refused_with_the_reason_and_the_cure(storage: Storage) -> None:
    if not has_cmaes:
        pytest.skip("cmaes is not installed")
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.CmaEsSampler(seed=1, n_startup_trials=1))
    with pytest.raises(ConfigurationError, match="allow_pickles=True"):
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1), n_trials=20)


def test_cma_es_works_where_pickles_are_allowed(tmp_path: Path) -> None:
    if not has_cmaes:
        pytest.skip("cmaes is not installed")
    storage = hopaas_p2p.open_storage(str(tmp_path), allow_pickles=True)
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.CmaEsSampler(seed=1, n_startup_trials=1))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1), n_trials=20)
    assert len(study.trials) == 20
    assert any(key.startswith("cma:") for trial in study.trials for key in trial.system_attrs)
    storage.close()


# --- pruners -----------------------------------------------------------------------------------------------------

PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=2),
    "percentile": lambda: optuna.pruners.PercentilePruner(25.0, n_startup_trials=2),
    "successive halving": lambda: optuna.pruners.SuccessiveHalvingPruner(),
    "Hyperband": lambda: optuna.pruners.HyperbandPruner(max_resource=8),
    "threshold": lambda: optuna.pruners.ThresholdPruner(upper=1.5),
    "patient": lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(n_startup_trials=2), patience=1),
    **({"Wilcoxon": lambda: optuna.pruners.WilcoxonPruner()} if has_scipy else {}),
}


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_a_pruner_decides_as_it_does_on_optunas_own_storage(
    storage: Storage, make: Callable[[], optuna.pruners.BasePruner]
) -> None:
    def trained(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        for step in range(8):
            trial.report(x * (1 + (step % 3)), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    found, expected = [], []
    for where, ends in ((storage, found), (optuna.storages.InMemoryStorage(), expected)):
        sampler = optuna.samplers.RandomSampler(seed=3)
        study = optuna.create_study(study_name="p", storage=where, sampler=sampler, pruner=make())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Hyperband and Wilcoxon warn of few steps, here and there
            study.optimize(trained, n_trials=25)
        ends += [(trial.state, trial.value, trial.intermediate_values) for trial in study.trials]
    assert found == expected


# --- several objectives, constraints -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`constraints_func`")  # deprecated, but what most people have in their code
@pytest.mark.parametrize("make", ["TPE", "NSGA-II", "NSGA-III", "random"])
def test_several_objectives_with_constraints(storage: Storage, make: str) -> None:
    def constraints(trial: optuna.trial.FrozenTrial) -> tuple[float]:
        return (trial.user_attrs["c"],)

    samplers: dict[str, Callable[[], BaseSampler]] = {
        "TPE": lambda: optuna.samplers.TPESampler(seed=1, n_startup_trials=5, constraints_func=constraints),
        "NSGA-II": lambda: optuna.samplers.NSGAIISampler(seed=1, population_size=5, constraints_func=constraints),
        "NSGA-III": lambda: optuna.samplers.NSGAIIISampler(seed=1, population_size=5, constraints_func=constraints),
        "random": lambda: optuna.samplers.RandomSampler(seed=1),
    }

    def two(trial: optuna.Trial) -> tuple[float, float]:
        x, y = trial.suggest_float("x", 0, 5), trial.suggest_float("y", 0, 3)
        trial.set_user_attr("c", x + y - 4)
        return 4 * x**2 + 4 * y**2, (x - 5) ** 2 + (y - 5) ** 2

    fronts = []
    for where in (storage, optuna.storages.InMemoryStorage()):
        study = optuna.create_study(storage=where, directions=["minimize", "maximize"], sampler=samplers[make]())
        study.optimize(two, n_trials=25)
        fronts.append([(trial.number, trial.values, trial.params) for trial in study.best_trials])
    assert fronts[0] == fronts[1]
    with pytest.raises(RuntimeError, match="multi-objective"):
        _ = study.best_trial


# --- queues, callbacks, jobs -------------------------------------------------------------------------------------


def test_what_is_enqueued_runs_first_and_as_given(storage: Storage) -> None:
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=1))
    study.enqueue_trial({"x": 0.25, "kind": None}, user_attrs={"why": "a guess"})
    study.enqueue_trial({"x": 0.25, "kind": None}, skip_if_exists=True)
    study.optimize(objective, n_trials=2)
    first, second = study.trials
    assert (first.params["x"], first.params["kind"], first.user_attrs) == (0.25, None, {"why": "a guess"})
    assert second.params["x"] != 0.25


def test_two_peers_share_a_queue_without_running_anything_twice(tmp_path: Path) -> None:
    storages = [hopaas_p2p.open_storage(str(tmp_path)) for _ in range(2)]
    optuna.create_study(study_name="s", storage=storages[0])
    studies = [optuna.load_study(study_name="s", storage=storage) for storage in storages]
    for number in range(10):
        studies[number % 2].enqueue_trial({"x": number / 10})
    asked = [studies[number % 2].ask() for number in range(10)]
    assert sorted(trial.number for trial in asked) == list(range(10))
    assert sorted(trial.suggest_float("x", 0, 1) for trial in asked) == [number / 10 for number in range(10)]
    for storage in storages:
        storage.close()


def test_callbacks_see_finished_trials_and_may_stop_the_study(study: optuna.Study) -> None:
    seen: list[int] = []

    def callback(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        seen.append(trial.number)
        assert trial.state is TrialState.COMPLETE
        assert study.trials[trial.number] == trial
        if len(seen) == 3:
            study.stop()

    study.optimize(objective, n_trials=10, callbacks=[callback])
    assert seen == [0, 1, 2]


def test_a_number_of_trials_for_all_peers_together(study: optuna.Study) -> None:
    enough = optuna.study.MaxTrialsCallback(7, states=(TrialState.COMPLETE,))
    study.optimize(objective, callbacks=[enough])
    study.optimize(objective, callbacks=[enough])
    assert len(study.trials) <= 8
    assert sum(trial.state is TrialState.COMPLETE for trial in study.trials) in (7, 8)


def test_failures_and_nan_are_failed_trials(study: optuna.Study) -> None:
    def fails(trial: optuna.Trial) -> float:
        if trial.number == 0:
            raise ValueError("no luck")
        return float("nan")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(fails, n_trials=2, catch=(ValueError,))
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 2


def test_several_jobs_of_one_study(study: optuna.Study) -> None:
    study.optimize(objective, n_trials=20, n_jobs=2)
    assert [trial.number for trial in study.trials] == list(range(20))
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)


def test_values_that_are_infinite_and_reports_that_are_nan_survive(study: optuna.Study) -> None:
    trial = study.ask()
    trial.report(float("nan"), 0)
    trial.report(float("-inf"), 1)
    study.tell(trial, float("inf"))
    (found,) = study.trials
    assert found.value == float("inf")
    assert repr(found.intermediate_values) == "{0: nan, 1: -inf}"


def test_of_two_kinds_of_a_parameter_at_once_the_later_one_costs_its_trial_that_parameter_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storages = [hopaas_p2p.open_storage(str(tmp_path), linger=3600.0) for _ in range(2)]
    for storage in storages:
        storage.peer.jobs.allowed = False  # nothing leaves before it is told
    optuna.create_study(study_name="s", storage=storages[0])
    first, second = (optuna.load_study(study_name="s", storage=storage) for storage in storages)
    mine, theirs = first.ask(), second.ask()
    x = mine.suggest_float("x", 0, 1)
    theirs.suggest_int("x", 0, 5)  # neither peer knows of the other's yet
    y = theirs.suggest_float("y", 0, 1)
    theirs.report(0.5, 1)
    theirs.set_user_attr("why", "a guess")
    first.tell(mine, x)

    second.tell(theirs, 2.0)

    told = second.trials[theirs.number]
    assert (told.value, told.params, told.intermediate_values) == (2.0, {"y": y}, {1: 0.5})
    assert told.user_attrs == {"why": "a guess"}
    assert f"trial {theirs.number} is stored without 'x'" in caplog.text
    for storage in storages:
        storage.close()


# --- moving studies ----------------------------------------------------------------------------------------------


def rich_study(where: Any) -> optuna.Study:
    study = optuna.create_study(study_name="rich", storage=where, sampler=optuna.samplers.TPESampler(seed=2))
    study.set_user_attr("team", ["a", {"b": 1.5}])
    study.set_metric_names(["loss"])
    study.enqueue_trial({"x": 0.5})
    study.optimize(objective, n_trials=3)
    for state, value in ((TrialState.PRUNED, None), (TrialState.FAIL, None), (TrialState.WAITING, None)):
        study.add_trial(optuna.create_trial(state=state, value=value, user_attrs={"state": state.name}))
    study.add_trial(
        optuna.create_trial(
            value=1.25,
            params={"x": 1.0, "n": 2, "other": None},
            distributions={
                "x": optuna.distributions.FloatDistribution(-3, 3, step=0.5),
                "n": optuna.distributions.IntDistribution(1, 64),
                "other": optuna.distributions.CategoricalDistribution((None, True, 1.5, "s")),
            },
            intermediate_values={0: 2.0, 10: 1.5},
            user_attrs={"ü": {"deep": [1, None]}},
        )
    )
    return study


def everything_of(study: optuna.Study) -> list[Any]:
    trials = study.trials
    return [
        study.directions,
        study.user_attrs,
        study.metric_names,
        *[(t.number, t.state, t.values, t.params, t.distributions, t.intermediate_values) for t in trials],
        *[(t.user_attrs, t.system_attrs, t.datetime_start, t.datetime_complete) for t in trials],
    ]


def test_a_study_is_copied_in_and_out_without_a_loss(storage: Storage) -> None:
    original = rich_study(optuna.storages.InMemoryStorage())
    optuna.copy_study(from_study_name="rich", from_storage=original._storage, to_storage=storage, to_study_name="here")
    here = optuna.load_study(study_name="here", storage=storage)
    assert everything_of(here) == everything_of(original)
    back = optuna.storages.InMemoryStorage()
    optuna.copy_study(from_study_name="here", from_storage=storage, to_storage=back, to_study_name="back")
    assert everything_of(optuna.load_study(study_name="back", storage=back)) == everything_of(original)


def test_what_one_peer_wrote_another_reads_the_same(tmp_path: Path) -> None:
    one, two = (hopaas_p2p.open_storage(str(tmp_path)) for _ in range(2))
    written = rich_study(one)
    assert everything_of(optuna.load_study(study_name="rich", storage=two)) == everything_of(written)
    one.close()
    two.close()


def test_importance_and_tables_can_be_made_of_it(storage: Storage) -> None:
    pytest.importorskip("pandas")
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(objective, n_trials=20)
    assert set(optuna.importance.get_param_importances(study)) == {"x", "n", "kind", "lr"}
    assert len(study.trials_dataframe()) == 20


# --- the dashboard -----------------------------------------------------------------------------------------------


def request(app: Any, path: str, method: str = "GET", body: bytes = b"") -> tuple[str, bytes]:
    """Ask a WSGI application for a page."""
    said: list[str] = []
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
        "wsgi.version": (1, 0),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    chunks = app(environ, lambda status, _headers, _info=None: said.append(status))
    try:
        return said[0], b"".join(chunks)
    finally:
        getattr(chunks, "close", lambda: None)()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its index.html open
def test_optunas_dashboard_shows_our_studies(storage: Storage) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    rich_study(storage)
    app = dashboard.wsgi(storage)

    status, listing = request(app, "/api/studies")
    assert status.startswith("200")
    (summary,) = json.loads(listing)["study_summaries"]
    assert summary["study_name"] == "rich"

    status, page = request(app, f"/api/studies/{summary['study_id']}")
    assert status.startswith("200")
    detail = json.loads(page)
    assert [trial["number"] for trial in detail["trials"]] == list(range(7))
    assert detail["trials"][6]["values"] == [1.25]

    status, _ = request(app, f"/dashboard/studies/{summary['study_id']}")
    assert status.startswith("200")


def test_optunas_dashboard_writes_notes_and_queues_trials(storage: Storage) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    study = rich_study(storage)
    app = dashboard.wsgi(storage)
    study_id, trial_id = study._study_id, study.trials[0]._trial_id

    note = json.dumps({"body": "# interesting", "version": 1}).encode()
    status, _ = request(app, f"/api/studies/{study_id}/note", "PUT", note)
    assert status.startswith("204")
    status, _ = request(app, f"/api/studies/{study_id}/{trial_id}/note", "PUT", note)
    assert status.startswith("204")
    status, page = request(app, f"/api/studies/{study_id}")
    detail = json.loads(page)
    assert detail["note"]["body"] == "# interesting"
    assert detail["trials"][0]["note"]["body"] == "# interesting"


# --- the cost ----------------------------------------------------------------------------------------------------


class CountingStore(FaultyStore):
    """Counts the exchanges of studies that carry a commit or fetch something."""

    def __init__(self, path: Path) -> None:
        super().__init__(DirectoryStore(path), [])
        self.exchanges = 0

    def next_fault(self) -> None:
        self.exchanges += 1


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Storage, CountingStore]]:
    store = CountingStore(tmp_path)
    monkeypatch.setattr(options_module, "open_store", lambda *_, **__: store)
    storage = hopaas_p2p.open_storage(str(tmp_path), linger=3600.0, lease_ttl=3600.0)
    yield storage, store
    storage.close()


def test_a_trial_of_plain_optuna_costs_two_exchanges(counted: tuple[Storage, CountingStore]) -> None:
    storage, store = counted
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=2))

    def trained(trial: optuna.Trial) -> float:
        value = objective(trial)
        for step in range(10):
            trial.report(value + step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("a", 1)
        return value

    study.optimize(trained, n_trials=1)
    before = store.exchanges
    study.optimize(trained, n_trials=10)
    assert store.exchanges - before == 20


def test_reading_costs_no_exchange(counted: tuple[Storage, CountingStore]) -> None:
    storage, store = counted
    study = optuna.create_study(storage=storage)
    study.optimize(objective, n_trials=5)
    before = store.exchanges
    for _ in range(20):
        _ = study.trials, study.best_trial, study.user_attrs, storage.get_n_trials(study._study_id, TrialState.RUNNING)
    assert store.exchanges == before


def test_asking_what_waits_looks_at_nothing_else(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `study.ask` of plain Optuna does it; with 10,000 finished trials it must not walk through them."""

    class NotToBeWalked(list[FrozenTrial]):
        def __iter__(self) -> Iterator[FrozenTrial]:
            raise AssertionError("walked through all trials")

        def copy(self) -> list[FrozenTrial]:
            raise AssertionError("copied all trials")

    study = optuna.create_study(storage=storage)
    study.optimize(objective, n_trials=5)
    study.enqueue_trial({"x": 0.25})
    assert len(study.trials) == 6
    view = storage.handle(study._study_id).view
    monkeypatch.setattr(view, "_all", NotToBeWalked(view._all))

    (waiting,) = storage.get_all_trials(study._study_id, deepcopy=False, states=(TrialState.WAITING,))

    assert waiting.number == 5


def test_trials_are_shared_with_readers_that_do_not_ask_for_copies(study: optuna.Study, storage: Storage) -> None:
    study.optimize(objective, n_trials=3)
    one, two = (storage.get_all_trials(study._study_id, deepcopy=False) for _ in range(2))
    assert all(a is b for a, b in zip(one, two, strict=True))
    copies = storage.get_all_trials(study._study_id)
    assert copies == one
    assert not any(a is b for a, b in zip(one, copies, strict=True))


# --- what is not allowed -----------------------------------------------------------------------------------------


def test_a_study_that_is_not_there(storage: Storage) -> None:
    with pytest.raises(KeyError):
        optuna.load_study(study_name="nowhere", storage=storage)


@pytest.mark.parametrize("name", ["a\nb", "a/b", "..", "x" * 300])
def test_a_study_of_an_impossible_name(storage: Storage, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        optuna.create_study(study_name=name, storage=storage)
    assert storage.get_all_studies() == []


def test_a_full_study_says_so(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(str(tmp_path), "s", budget=1)
    plain = optuna.load_study(study_name="s", storage=study.storage)
    plain.optimize(objective, n_trials=1)
    with pytest.raises(NoWork, match="budget"):
        plain.ask()
    with pytest.raises(NoWork, match="budget"):
        plain.add_trial(optuna.create_trial(value=1.0))
    study.storage.close()


BIG = {
    "an attribute of 5 MB": lambda trial: trial.set_user_attr("big", "x" * 5_000_000),
    "a list of 5 MB": lambda trial: trial.set_user_attr("big", ["x" * 1000] * 5000),
    "an attribute that is no JSON": lambda trial: trial.set_user_attr("big", object()),
    "an attribute whose name is half a surrogate pair": lambda trial: trial.set_user_attr("\ud800", 1),
    "a step of 70 bits": lambda trial: trial.report(1.0, 1 << 70),
    "a parameter of 70 bits": lambda trial: trial.suggest_int("n", 0, 1 << 70),
    "a choice that is an object": lambda trial: trial.suggest_categorical("c", [object(), 1]),
    "a choice of 70 bits": lambda trial: trial.suggest_categorical("c", [1 << 70, 1]),
}


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
@pytest.mark.parametrize("wrong", BIG.values(), ids=BIG)
def test_what_cannot_be_stored_is_refused_at_the_call_and_harms_nothing_else(
    storage: Storage, wrong: Callable[[optuna.Trial], Any]
) -> None:
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=1))
    other, trial = study.ask(), study.ask()
    other.report(0.5, 1)
    x = trial.suggest_float("x", 0.0, 1.0)
    with pytest.raises((ValueError, TypeError, ConfigurationError)):
        wrong(trial)
    trial.report(0.25, 3)
    study.tell(trial, 1.0)
    study.tell(other, 2.0)
    first, second = study.trials
    assert (first.value, first.intermediate_values) == (2.0, {1: 0.5})
    assert (second.value, second.params, second.intermediate_values) == (1.0, {"x": x}, {3: 0.25})


def test_many_attributes_that_are_too_much_for_one_commit_go_in_several(study: optuna.Study) -> None:
    trial = study.ask()
    texts = {f"log-{i}": chr(65 + i) * 700_000 for i in range(12)}
    for key, text in texts.items():
        trial.set_user_attr(key, text)
    study.tell(trial, 1.0)
    assert study.trials[0].user_attrs == texts
    assert study.trials[0].state is TrialState.COMPLETE


def test_text_of_any_kind_survives_in_attributes(study: optuna.Study) -> None:
    values = {"emoji": "🎉", "nul": "\0", "deep": [[{"a": None}]], "ä b\n": "x", "": 1}
    trial = study.ask()
    for key, value in values.items():
        trial.set_user_attr(key, value)
        study.set_user_attr(key, value)
    study.tell(trial, 1.0)
    assert study.trials[0].user_attrs == study.user_attrs == values


def test_half_a_surrogate_pair_becomes_a_question_mark_because_no_file_or_page_can_hold_it(study: optuna.Study) -> None:
    trial = study.ask()
    trial.set_user_attr("path", "caf\udce9.txt")
    study.tell(trial, 1.0)
    assert study.trials[0].user_attrs == {"path": "caf?.txt"}


def test_a_trial_with_a_parameter_of_another_kind_is_refused_as_by_optunas_databases(study: optuna.Study) -> None:
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    other = {"x": optuna.distributions.IntDistribution(0, 5)}
    with pytest.raises(InvalidInput, match=r"'x' is float\(0,1\) in this study, and cannot be int\(0,5\)"):
        study.add_trial(optuna.create_trial(value=1.0, params={"x": 1}, distributions=other))


# --- trials of others --------------------------------------------------------------------------------------------


def two_peers(path: Path) -> tuple[optuna.Study, optuna.Study]:
    storages = [hopaas_p2p.open_storage(str(path)) for _ in range(2)]
    optuna.create_study(study_name="s", storage=storages[0])
    one, two = (optuna.load_study(study_name="s", storage=storage) for storage in storages)
    return one, two


def test_a_trial_that_another_peer_runs_cannot_be_changed(tmp_path: Path) -> None:
    one, two = two_peers(tmp_path)
    trial = one.ask()
    theirs = two._storage
    for change in (
        lambda: theirs.set_trial_user_attr(trial._trial_id, "a", 1),
        lambda: theirs.set_trial_intermediate_value(trial._trial_id, 0, 1.0),
        lambda: theirs.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0]),
        lambda: two.tell(trial.number, 1.0),
    ):
        with pytest.raises(NotYourTrial):
            change()
    one.tell(trial, 2.0)
    assert [(t.value, t.user_attrs) for t in two.trials] == [(2.0, {})]
    for study in (one, two):
        study._storage.close()  # type: ignore[attr-defined]


def test_a_finished_trial_cannot_be_told_again(study: optuna.Study) -> None:
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises((ValueError, optuna.exceptions.UpdateFinishedTrialError)):
        study.tell(trial, 2.0)
    assert study.tell(trial, 2.0, skip_if_finished=True).value == 1.0
    assert study.trials[0].value == 1.0


def test_a_trial_that_was_taken_over_is_warned_about_and_its_result_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = two_peers(tmp_path)
    trial = one.ask()
    x = trial.suggest_float("x", 0.0, 1.0)
    observer = two._storage
    assert isinstance(observer, Storage)
    observer.peer.commit(observer.handle(two._study_id).log, TrialReclaim(0, 1))

    trial.report(0.5, 3)
    with caplog.at_level("WARNING", "hopaas_p2p"):
        one.tell(trial, 4.0)

    assert "taken over" in caplog.text
    for study in (one, two):
        lost, retry, late = study.trials
        assert [t.state for t in (lost, retry, late)] == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
        assert (late.value, late.params) == (4.0, {"x": x})
        study._storage.close()  # type: ignore[attr-defined]


def test_after_a_lost_trial_optimize_goes_on(tmp_path: Path) -> None:
    one, two = two_peers(tmp_path)
    observer = two._storage
    assert isinstance(observer, Storage)

    def interrupted(trial: optuna.Trial) -> float:
        if trial.number == 0:
            observer.peer.commit(observer.handle(two._study_id).log, TrialReclaim(0, 1))
        trial.report(1.0, 0)
        trial.should_prune()
        return trial.suggest_float("x", 0.0, 1.0)

    one.optimize(interrupted, n_trials=3)
    assert sum(trial.state is TrialState.COMPLETE for trial in one.trials) == 3
    for study in (one, two):
        study._storage.close()  # type: ignore[attr-defined]


def test_texts_of_another_kind_are_stored_as_texts(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    class Version(str):  # as torch.__version__ is
        __slots__ = ()

    monkeypatch.setattr(optuna, "__version__", Version("5.0"))
    provenance._machine.cache_clear()
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    trial.suggest_float(Version("x"), 0.0, 1.0)
    trial.set_user_attr(Version("key"), Version("value"))
    study.tell(trial, 1.0)
    provenance._machine.cache_clear()
    assert list(study.trials[0].params) == ["x"]
    assert study.trials[0].user_attrs == {"key": "value"}
