"""A trial that violates its constraints is nowhere the best, wherever the best is shown."""

from __future__ import annotations

import datetime
import logging
import math
import secrets

import numpy as np
import optuna
import pytest

import hopaas_p2p
from dashboard_app.views.table import table as table_of
from dashboard_app.views.trial import rank, side_by_side
from hopaas_p2p.analysis import charts, facts, tiles
from hopaas_p2p.analysis.svg import legend
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.cli import main
from hopaas_p2p.core.blocks import close_settled
from hopaas_p2p.core.records import Budget, Float, Int, TrialReclaim, TrialSet, Until
from hopaas_p2p.ports.local import LocalPeer
from hopaas_p2p.report.page import render
from tests.unit.test_ledger import ASK, Campaign, end

SPACE = {"x": Float(0.0, 10.0)}
FEW, BLOCKS = 6, 2100


def constrained(trials: int, directions: str | list[str] = "minimize", store: str = "") -> hopaas_p2p.Study:
    """Trial n has the value n; those below 3 violate a constraint, in one of Optuna's two forms."""
    study = hopaas_p2p.open_study(store or f"memory://{secrets.token_hex(8)}", "s", space=SPACE, directions=directions)
    for number in range(trials):
        trial = study.ask()
        if number < 2:
            study.storage.set_trial_system_attr(trial._trial_id, "constraints", [1.0])
        else:
            trial.set_constraint("below", 3.0 - number)
        study.tell(trial, float(number) if directions == "minimize" else [float(number), float(number)])
    return study


@pytest.mark.parametrize("packed", [False, True])
def test_the_best_trial_satisfies_its_constraints(packed: bool) -> None:
    study = constrained(BLOCKS if packed else FEW)
    state = study.state
    if packed:
        with study.handle.log.lock:
            close_settled(state)
        assert state.trials.closed
    table = TrialTable.of(state)
    top = facts.best(state)
    assert top is not None
    assert (top.number, table.best(), study.best_trial.number) == (3, 3, 3)
    assert table.ranked().tolist()[:2] == [3, 4]
    assert table.ranked().tolist()[-3:] == [0, 1, 2]
    assert tiles.best(table)[1] == "3"
    chart = charts.history(table)
    assert chart is not None
    assert "the best is trial 3" in chart.alt
    rings = next(layer.data for layer in chart.series if layer.name == "violates the constraints")
    assert rings["trial"].tolist() == [0, 1, 2]
    assert "violates the constraints" in legend(chart)
    study.close()


def test_the_front_satisfies_its_constraints() -> None:
    study = constrained(FEW, ["minimize", "minimize"])
    assert [one.number for one in facts.pareto_front(study.state)] == [one.number for one in study.best_trials] == [3]
    chart = charts.pareto(TrialTable.of(study.state))
    assert chart is not None
    rings = next(layer.data for layer in chart.series if layer.name == "violates the constraints")
    assert rings["trial"].tolist() == [0, 1, 2]
    study.close()


def test_without_a_feasible_trial_there_is_no_best_one() -> None:
    study = constrained(3)
    table = TrialTable.of(study.state)
    assert facts.best(study.state) is None
    assert [rank(table, number) for number in range(3)] == [None] * 3
    slice_, parallel = charts.slice_(table, "x"), charts.parallel(table, "x")
    assert slice_ is not None
    assert parallel is not None
    assert [layer.name for layer in slice_.series] == ["complete"]
    assert "none of them satisfies the constraints" in slice_.alt
    assert "none of them satisfies the constraints" in parallel.alt
    page = render(study.state, name="s", store="m", now=datetime.datetime.now(tz=datetime.UTC))
    assert "large mark" not in page
    assert "Best trials" not in page
    assert tiles.best(table) == ("best", "none", "no feasible trial yet")
    chart = charts.history(table)
    assert chart is not None
    assert "no trial satisfies the constraints" in chart.alt
    with pytest.raises(ValueError, match="No feasible trials are completed yet"):
        _ = study.best_trial
    study.close()


def test_without_a_feasible_trial_no_learning_curve_is_the_best_one() -> None:
    study = hopaas_p2p.open_study(f"memory://{secrets.token_hex(8)}", "s", space=SPACE)
    for value in (1.0, -1.0):
        trial = study.ask()
        trial.report(value, 0)
        trial.report(value, 1)
        trial.set_constraint("below", value)
        study.tell(trial, -value)
        chart = charts.curves(study.state, TrialTable.of(study.state))
        assert chart is not None
        assert [layer.name for layer in chart.series] == (["complete"] if value > 0 else ["complete", "best"])
    study.close()


def test_a_study_with_several_objectives_and_no_front_is_drawn() -> None:
    study = constrained(3, ["minimize", "minimize"])
    chart = charts.pareto(TrialTable.of(study.state))
    assert chart is not None
    assert [layer.name for layer in chart.series] == ["complete", "violates the constraints"]
    assert chart.alt == "Pareto front of 2 objectives: 0 of 3 complete trials."
    study.close()


def test_the_rank_of_a_trial_is_among_the_feasible_ones() -> None:
    study = constrained(FEW)
    table = TrialTable.of(study.state)
    assert [rank(table, number) for number in range(FEW)] == [None] * 3 + [(1, 3), (2, 3), (3, 3)]
    cells = {name: cells for _, name, cells in side_by_side(study.state, table, [2, 3])}
    assert cells["reason"] == ["violates its constraints", ""]
    study.close()


def test_the_dashboard_says_which_trials_violate_their_constraints() -> None:
    pytest.importorskip("pandas")
    study = constrained(FEW)
    table = TrialTable.of(study.state)
    listed = table_of(study.state, table, np.ones(FEW, np.bool_), tags={}, lines={})
    assert [bool(one) for one in listed["reason"]] == [False] * 3 + [True] * 3  # the newest first
    study.close()


def test_an_infinite_value_is_better_than_a_violated_constraint() -> None:
    study = hopaas_p2p.open_study(f"memory://{secrets.token_hex(8)}", "s", space=SPACE)
    for constraint, value in ((1.0, 0.0), (-1.0, math.inf)):
        trial = study.ask()
        trial.set_constraint("below", constraint)
        study.tell(trial, value)
    assert TrialTable.of(study.state).ranked().tolist() == [1, 0]
    study.close()


def test_a_list_by_value_of_several_objectives_has_the_infeasible_trials_last(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"{tmp_path}/store"
    constrained(FEW, ["minimize", "minimize"], store=store).close()
    main.run(["trial", "list", "s", "--sort", "value", "--store", store])
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["3", "4", "5", "0", "1", "2"]


def test_a_program_and_the_command_line_learn_why_there_is_no_best_trial(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"{tmp_path}/store"
    study = constrained(3, store=store)
    listed = LocalPeer(study.storage, actions=False).trials("s", order="best")["trials"]
    assert {one["reason"] for one in listed} == {"violates its constraints"}
    study.close()
    main.run(["study", "show", "s", "--store", store])
    assert "- (no complete trial satisfies the constraints)" in capsys.readouterr().out


def test_the_command_line_and_the_progress_show_a_feasible_best(
    tmp_path: object, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    store = f"{tmp_path}/store"
    constrained(FEW, store=store).close()
    main.run(["study", "show", "s", "--store", store])
    assert "#3: 3  " in capsys.readouterr().out
    main.run(["trial", "list", "s", "--sort", "value", "--store", store])
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["3", "4", "5", "0", "1", "2"]
    assert ["violates its constraints" in row for row in rows] == [False] * 3 + [True] * 3

    def objective(trial: optuna.Trial) -> float:
        trial.set_constraint("below", 1.0)
        return -1.0

    study = hopaas_p2p.open_study(store, "s")
    with caplog.at_level(logging.INFO, "hopaas_p2p"):
        study.optimize(objective, n_trials=1)
    assert "trial 6: -1, best 3 (#3)" in caplog.text
    study.close()


def test_a_target_is_not_reached_by_a_trial_that_violates_a_named_constraint() -> None:
    study = Campaign(Budget(until=Until(target=0.1)))
    study.at(0, "ann", ASK)
    study.at(1, "ann", TrialSet(0, 1, system={"constraints:c": "0.5"}), end(0, value=0.0))
    assert study.reached() is None


@pytest.mark.filterwarnings("ignore:Overwrite an old format constraint")
def test_of_a_constraint_in_both_forms_the_named_one_counts_as_in_optuna() -> None:
    study = hopaas_p2p.open_study(f"memory://{secrets.token_hex(8)}", "s", space=SPACE)
    for listed, named in (([1.0], -1.0), ([-1.0], 1.0)):
        trial = study.ask()
        study.storage.set_trial_system_attr(trial._trial_id, "constraints", listed)
        trial.set_constraint("0", named)
        study.tell(trial, 1.0)
    assert [trial.feasible for trial in study.state.trials] == [True, False]
    study.close()


class First(hopaas_p2p.samplers.TPESampler):
    """Proposes the same again and again."""

    def sample_independent(self, *_: object) -> object:
        return 1

    sample_relative = infer_relative_search_space = lambda *_: {}  # noqa: E731


@pytest.mark.parametrize("needs_number", [False, True])
def test_a_result_that_is_used_again_violates_its_constraints_again(*, needs_number: bool) -> None:
    sampler = type("Same", (First,), {"needs_number": needs_number})()
    policy = hopaas_p2p.StudyPolicy(repeats="reuse")
    at = f"memory://{secrets.token_hex(8)}"
    study = hopaas_p2p.open_study(at, "s", space={"n": Int(0, 3)}, sampler=sampler, policy=policy, budget=3)

    def objective(trial: optuna.Trial) -> float:
        trial.set_constraint("above", 1.0)
        return 0.0

    study.optimize(objective)
    assert ["hopaas:reused" in trial.system for trial in study.state.trials] == [False, True, True]
    assert facts.best(study.state) is None
    study.close()


def test_a_mean_over_a_trial_that_violates_a_constraint_is_behind_the_others() -> None:
    policy = hopaas_p2p.StudyPolicy(replicates=2)
    study = hopaas_p2p.open_study(f"memory://{secrets.token_hex(8)}", "s", space=SPACE, policy=policy, budget=6)

    def objective(trial: optuna.Trial) -> float:
        trial.set_constraint("below", 1.0 if trial.number == 1 else 0.0)
        return float(trial.number)

    study.optimize(objective)
    assert [one.mean for one in study.replicates()] == [2.5, 4.5, 0.5]
    study.close()


def test_each_attempt_may_say_anew_whether_it_satisfies_a_constraint() -> None:
    at = f"memory://{secrets.token_hex(8)}"
    study = hopaas_p2p.open_study(at, "s", space=SPACE)
    other = hopaas_p2p.open_study(hopaas_p2p.open_storage(at), "s")
    trial = study.ask()
    trial.set_constraint("kept", -1.0)
    trial.set_constraint("renewed", 1.0)
    study.storage.flush()
    other.storage.peer.commit(other.handle.log, TrialReclaim(0, other.state.trials[0].epoch, "silent"))
    retry = other.ask()
    assert (retry.number, retry.constraints) == (1, {"kept": -1.0, "renewed": 1.0})
    retry.set_constraint("renewed", -2.0)
    assert retry.constraints == {"kept": -1.0, "renewed": -2.0}
    with pytest.warns(UserWarning, match="already set"):  # as Optuna has it
        retry.set_constraint("renewed", 3.0)
    other.tell(retry, 1.0)
    assert other.best_trial.number == 1
    assert other.best_trial.constraints == {"kept": -1.0, "renewed": -2.0}
    study.close()
    other.close()


def test_a_continuation_says_anew_whether_it_satisfies_a_constraint(tmp_path: object) -> None:
    rungs = hopaas_p2p.Rungs(min=1, max=2, eta=2)
    study = hopaas_p2p.open_study(f"{tmp_path}/store", "s", space=SPACE, fidelity=rungs, budget=4)

    def objective(trial: hopaas_p2p.Trial) -> float:
        trial.set_constraint("late", 0.0 if trial.constraints else 1.0)
        for step in range(2):
            trial.report(1.0, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 1.0

    study.optimize(objective)
    continued = [trial for trial in study.state.trials if trial.continues is not None]
    assert {trial.system["constraints:late"] for trial in continued} == {"0.0"}
    study.close()
