"""A Study is an `optuna.Study`: what takes one takes it, and Optuna's words mean what they mean there."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import hopaas_p2p
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.study import Study

SPACE = {"x": hopaas_p2p.Float(0, 1), "k": hopaas_p2p.Int(1, 9)}
MOST_OF_OUR_OWN = 25


@pytest.fixture
def study(tmp_path: Path) -> Any:
    made = hopaas_p2p.open_study(tmp_path / "store", "s", space=SPACE, sampler=optuna.samplers.RandomSampler(seed=1))
    yield made
    made.close()


def objective(trial: Any) -> float:
    return float(trial.suggest_float("x", 0, 1) + trial.suggest_int("k", 1, 9))


def test_it_has_few_members_beside_optunas() -> None:
    ours = {name for name in dir(Study) if not name.startswith("_")} - set(dir(optuna.Study))
    assert len(ours) <= MOST_OF_OUR_OWN, sorted(ours)


def test_whatever_takes_optunas_study_takes_it(study: Study) -> None:
    pytest.importorskip("sklearn", reason="pip install scikit-learn")
    assert isinstance(study, optuna.Study)
    study.optimize(objective, n_trials=12)
    importance = optuna.importance.get_param_importances(study)
    assert set(importance) == {"x", "k"}
    copied = "copied"
    optuna.copy_study(
        from_study_name=study.study_name, from_storage=study.storage, to_storage=study.storage, to_study_name=copied
    )
    again = optuna.load_study(study_name=copied, storage=study.storage)
    assert [trial.params for trial in again.trials] == [trial.params for trial in study.trials]


@pytest.mark.parametrize("library", ["plotly", "matplotlib"])
@pytest.mark.filterwarnings("ignore")
def test_optunas_plots_take_it(study: Study, library: str) -> None:
    pytest.importorskip(library, reason=f"pip install {library}")
    study.optimize(objective, n_trials=5)
    plots = optuna.visualization if library == "plotly" else optuna.visualization.matplotlib
    for name in ("plot_optimization_history", "plot_slice", "plot_parallel_coordinate", "plot_timeline", "plot_edf"):
        assert getattr(plots, name)(study) is not None


def test_a_tell_returns_the_trial_as_it_ended_and_skips_one_that_is_over_if_asked(study: Study) -> None:
    trial = study.ask({"z": optuna.distributions.FloatDistribution(0, 1)})
    assert 0 <= trial.params["z"] <= 1
    told = study.tell(trial, 0.5)
    assert (told.state, told.value, told.params) == (TrialState.COMPLETE, 0.5, trial.params)
    assert study.tell(trial, 0.25, skip_if_finished=True).value == 0.5
    with pytest.raises(ValueError, match="takes no values"):
        study.tell(study.ask(), 0.5, TrialState.PRUNED)
    for over_or_unknown in (trial, len(study.trials)):
        with pytest.raises(ValueError):  # as of Optuna's
            study.tell(over_or_unknown, 0.5)
    with pytest.raises(TypeError):
        study.tell("1", 0.5)  # type: ignore[arg-type]


def test_a_sampler_that_is_assigned_is_this_processs_whatever_the_studys_is(study: Study) -> None:
    study.sampler = own = optuna.samplers.QMCSampler(seed=1)
    study.ask()
    study.search_with(sampler=optuna.samplers.NSGAIISampler())
    study.ask()
    assert study.sampler is own
    assert study.handle.state.peers[study.storage.peer.uuid]["sampler"].startswith("QMCSampler")
    study.sampler = 5  # type: ignore[assignment]
    with pytest.raises(InvalidInput, match="sampler"):
        study.ask()


def test_trials_are_queued_and_added_with_optunas_words(study: Study) -> None:
    assert study.enqueue_trial({"x": 0.5, "k": 3}, {"by": "hand"}) == 0
    assert study.enqueue_trial({"x": 0.5, "k": 3}, skip_if_exists=True) is None
    with pytest.raises(TypeError):
        study.enqueue_trial([0.5])  # type: ignore[arg-type]
    study.optimize(objective, n_trials=1)
    assert (study.best_params, study.best_trial.user_attrs) == ({"x": 0.5, "k": 3}, {"by": "hand"})
    study.add_trials(study.trials)
    assert len(study.trials) == 2


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_objectives_have_names_when_they_are_given(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "s", directions=["minimize", "maximize"])
    study.set_metric_names(["loss", "speed"])
    assert hopaas_p2p.open_study(tmp_path / "store", "s", create=False).metric_names == ["loss", "speed"]
    study.close()


def test_the_objective_and_what_it_holds_are_free_at_the_end_of_the_call(tmp_path: Path) -> None:
    """Its data may fill a card; the collector of cycles may not run for long."""

    class Trains:
        def __call__(self, trial: Any) -> float:
            return objective(trial)

    study = hopaas_p2p.open_study(tmp_path / "store", "s", space=SPACE, budget=2)
    trains = Trains()
    held = weakref.ref(trains)
    gc.disable()
    try:
        study.optimize(trains)
        del trains
        assert held() is None
    finally:
        gc.enable()
    study.close()


def test_several_threads_run_as_many_trials_as_asked_and_their_first_error_is_raised(
    study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    together = threading.Barrier(3)

    def trained(trial: Any) -> float:
        if trial.number < 3:
            together.wait(60)  # else they do not run at once
        return objective(trial)

    study.optimize(trained, n_trials=9, n_jobs=3, gc_after_trial=True)
    assert len(study.get_trials(states=[TrialState.COMPLETE])) == 9

    def fails(_: Any) -> float:
        raise ZeroDivisionError

    with caplog.at_level("INFO", "hopaas_p2p"), pytest.raises(ZeroDivisionError):
        study.optimize(fails, n_trials=9, n_jobs=2)
    assert "study.stop() was called" not in caplog.text
    assert not study.handle.running_here()


def test_stop_in_a_callback_ends_the_call_in_all_of_its_threads_and_nobody_elses(study: Study) -> None:
    study.optimize(objective, n_jobs=2, callbacks=[lambda study, _: study.stop()], timeout=60)
    assert 1 <= len(study.trials) <= 4
    study.optimize(objective, n_trials=1)


def test_a_progress_bar_takes_the_place_of_the_log(
    study: Study, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "hopaas_p2p"):
        study.optimize(objective, n_trials=3, show_progress_bar=True)
    assert "3/3" in capsys.readouterr().err
    assert not caplog.records
    study.set_budget(5)
    study.optimize(objective, show_progress_bar=True)
    assert "2/2" in capsys.readouterr().err, "what was left of the budget"


def test_no_progress_bar_counts_trials_towards_a_budget_of_configurations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rungs = hopaas_p2p.Rungs(min=1, max=3)
    study = hopaas_p2p.open_study(tmp_path / "store", "rungs", space=SPACE, budget=3, fidelity=rungs)

    def reports(trial: hopaas_p2p.Trial) -> float:
        for step in range(1, 4):
            trial.report(trial.params["x"], step)
            if trial.should_prune():
                trial.prune()
        return float(trial.params["x"])

    with caplog.at_level("INFO", "hopaas_p2p"):
        study.optimize(reports, show_progress_bar=True)
    study.close()
    assert len(study.trials) > 3
    assert "/3" not in capsys.readouterr().err
    assert "3 of 3 configurations begun" in caplog.text
