"""A budget as people write it, in Python, on the command line, in files; and what reaches the log with it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner

import hopaas_p2p
from hopaas_p2p import Budget, Price, Until
from hopaas_p2p.cli.main import cli
from hopaas_p2p.core.admission import finished
from hopaas_p2p.core.spending import configuration_seconds, trial_seconds
from hopaas_p2p.errors import ConfigurationError, DefinitionMismatch, InvalidInput, NoWork
from hopaas_p2p.runtime import metering
from hopaas_p2p.spec.budget import budget_now, budget_of, changed, words
from hopaas_p2p.study.study import Study
from tests.support.studies import opened_study

NEW_YEAR = 1_798_761_600_000_000
WHOLE = Budget(
    trials=40,
    epochs=9000,
    gpu_hours=500.0,
    euro=250.0,
    prices={"cern.ch": Price(gpu_hour=1.1), "*": Price(kwh=0.3)},
    until=Until(target=0.02, date=NEW_YEAR),
)


def test_a_line_says_what_a_budget_says_and_is_what_a_budget_is_shown_as() -> None:
    line = (
        "trials=40,epochs=9000,gpu_hours=500,euro=250,prices.cern.ch.gpu_hour=1.1,prices.*.kwh=0.3,"
        "until.target=0.02,until.date=2027-01-01"
    )
    assert budget_of(line) == WHOLE
    assert budget_of(words(WHOLE)) == WHOLE
    assert budget_of("40") == Budget(trials=40)
    assert words(Budget(trials=40)) == "40"


@pytest.mark.parametrize(
    "date",
    ["2027-01-01", "2027-01-01T01:00:00+01:00", datetime.date(2027, 1, 1), datetime.datetime(2027, 1, 1)],  # noqa: DTZ001
)
def test_a_date_is_a_text_a_day_or_a_moment(date: Any) -> None:
    assert budget_of(Budget(until=Until(date=date))).until == Until(date=NEW_YEAR)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("gpu_hour=5", "'gpu_hour' is not a budget key; choose from: trials, epochs, gpu"),
        ("until.goal=5", "'goal' is not a budget key"),
        ("until.goal=none", "'goal' is not a budget key"),
        ("trials.many=none", "'many' is not a budget key"),
        ("gpu_hours=many", "gpu_hours = .many.; this takes a number$"),
        ("30.5", "trials = .30.5.; this takes a whole number$"),
        ("until.date=tomorrow", "until.date must be a date or time such as 2026-12-31"),
        ("until.date=0001-01-01T00:00+14:00", "until.date must be a date or time such as 2026-12-31"),
        ("euro=5", "needs prices per site"),
        ("gpu_hours=1,gpu_hours=2", "gives gpu_hours twice"),
        ("until=5,until.target=3", "not a budget key"),
        ("until.traget=none", "'traget' is not a budget key"),
        ("prices.north.gpu_hours=none", "'gpu_hours' is not a budget key"),
        ("gpu_hours.x=none", "'x' is not a budget key"),
        (0, "at least 1"),
        (2.5, "whole number"),
        (Budget(trials=0), "at least 1"),
    ],
)
def test_what_no_budget_can_be_is_said_at_the_call(given: Any, word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        budget_of(given)


@pytest.fixture
def opened(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    def open_(**options: Any) -> Study:
        study = opened_study(tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)}, **options)
        request.addfinalizer(study.close)
        return study

    return open_


def test_a_site_that_costs_nothing_keeps_its_price() -> None:
    free = Budget(euro=5.0, prices={"*": Price(core_hour=0.1), "south": Price()})
    assert budget_of(free) == free
    assert budget_of(words(free)) == free
    assert changed(free, "trials=40").prices == free.prices


def test_prices_are_removed_by_site_and_only_of_that_site() -> None:
    now = budget_of("euro=5,prices.a.kwh=1,prices.a.b.kwh=2,prices.a.b.gpu_hour=3")
    assert changed(now, "prices.a=none").prices == {"a.b": Price(kwh=2, gpu_hour=3)}
    assert changed(now, "prices.a.b.kwh=none").prices == {"a": Price(kwh=1), "a.b": Price(gpu_hour=3)}
    assert changed(now, "euro=none,prices=none") == Budget()


def test_a_study_keeps_its_limits_and_a_joiner_may_say_them_too(opened: Any) -> None:
    opened(budget=Budget(trials=9, gpu_hours=5))
    assert opened().state.policy.limits == Budget(gpu_hours=5)
    assert opened(budget="trials=9,gpu_hours=5").state.budget == 9
    assert opened(budget=9).state.policy.limits == Budget(gpu_hours=5)


@pytest.mark.parametrize(
    ("larger", "now"),
    [(12, "trials=12,gpu_hours=5"), ("gpu_hours=6", "trials=9,gpu_hours=6"), ("trials=none", "gpu_hours=5")],
)
def test_a_larger_budget_in_a_script_raises_the_studys_and_says_so(
    opened: Any, caplog: pytest.LogCaptureFixture, larger: Any, now: str
) -> None:
    opened(budget=Budget(trials=9, gpu_hours=5))

    study = opened(budget=larger)

    assert words(budget_now(study.state)) == now
    assert f"the budget of 's' is raised from trials=9,gpu_hours=5 to {now}" in caplog.text


@pytest.mark.parametrize("smaller", [8, "gpu_hours=4", "trials=10,gpu_hours=4", "until.target=1", "kwh=3"])
def test_a_smaller_budget_in_a_script_is_refused_with_the_command_that_lowers_it(opened: Any, smaller: Any) -> None:
    study = opened(budget=Budget(trials=9, gpu_hours=5))

    with pytest.raises(DefinitionMismatch, match=r"hopaas-p2p study set s --budget trials=\d+,.*"):
        opened(budget=smaller)

    assert words(budget_now(study.state)) == "trials=9,gpu_hours=5"


def test_moving_the_budget_of_trials_leaves_the_limits(opened: Any) -> None:
    study = opened(budget=Budget(trials=9, gpu_hours=5))
    study.set_budget(12)
    assert (study.state.budget, study.state.ledger.limits) == (12, Budget(gpu_hours=5))
    study.set_budget(Budget(kwh=3))
    assert (study.state.budget, study.state.ledger.limits) == (None, Budget(kwh=3))
    study.set_budget(None)
    assert (study.state.budget, study.state.ledger.limits) == (None, Budget())


def test_a_text_changes_the_limits_that_it_names_and_none_removes_one(opened: Any) -> None:
    study = opened(budget=Budget(trials=9, until=Until(target=1.0, date=NEW_YEAR)))
    for given, now in {
        "gpu_hours=5": "trials=9,gpu_hours=5,until.target=1,until.date=2027-01-01T00:00:00Z",
        "until.target=2,trials=none": "gpu_hours=5,until.target=2,until.date=2027-01-01T00:00:00Z",
        "12,until.target=none,until.date=none": "trials=12,gpu_hours=5",
        "gpu_hours=none": "12",
        "none": "",
    }.items():
        study.set_budget(given)
        assert words(budget_now(study.state)) == now


@pytest.mark.parametrize(
    "budget",
    [Budget(gpu_hours=5), Budget(kwh=1), Budget(euro=1, prices={"elsewhere": Price(core_hour=1)})],
    ids=["gpu-hours", "kwh", "euro"],
)
def test_a_budget_that_this_machine_cannot_spend_is_refused_at_the_first_trial(
    opened: Any, monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    monkeypatch.setattr(metering, "devices", lambda: {"cores": "2"})
    monkeypatch.setattr(metering, "energy_counter", lambda: None)
    study = opened(budget=budget)

    with pytest.raises(ConfigurationError, match=r"would never end here.*HOPAAS_GPUS=.*core_hours="):
        study.ask()

    study.set_budget(5)
    study.ask()


def test_a_gpu_that_is_named_is_enough_for_a_budget_of_gpu_hours(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPAAS_GPUS", "1")
    opened(budget="gpu_hours=5").ask()


def test_two_objectives_have_no_target(opened: Any) -> None:
    with pytest.raises(InvalidInput, match="several objectives can end only by its budget or a date"):
        opened(directions=["minimize", "minimize"], budget=Budget(until=Until(target=1)))


def test_optimize_ends_at_a_target_and_says_why(opened: Any, caplog: pytest.LogCaptureFixture) -> None:
    study = opened(budget=Budget(until=Until(target=2.0)))
    with caplog.at_level("INFO", logger="hopaas_p2p"):
        study.optimize(lambda trial: 5.0 - trial.number)
    assert len(study.trials) == 4
    with pytest.raises(NoWork, match="the study's budget is used up: the target 2 is reached"):
        study.ask()


def test_a_running_trial_ends_at_its_next_look_when_a_limit_is_reached(opened: Any) -> None:
    study = opened(budget=Budget(until=Until(target=1.0)), pruner=optuna.pruners.NopPruner())
    running, winner = study.ask(), study.ask()
    assert not running.should_prune()
    study.tell(winner, 0.5)
    assert running.should_prune()
    study.tell(running, state="pruned")
    assert study.state.trials[0].reason == "the target 1 is reached"
    assert finished(study.state)


def test_what_is_measured_travels_with_what_is_sent_anyway(opened: Any) -> None:
    study = opened()
    peer, joules = study.storage.peer, [0.0]
    study.tell(study.ask(), 1.0)
    before = study.state.lsn
    peer.meter._energy = lambda: joules[0]
    trial = study.ask()
    joules[0] = 25.0
    study.tell(trial, 1.0)
    assert study.state.lsn == before + 2
    costs = [cost for (_, _, how), cost in study.state.ledger.accounts.items() if how == "complete"]
    assert sum(cost.energy for cost in costs) == 25_000


def test_trials_at_a_time_in_one_process_share_its_time(opened: Any) -> None:
    study = opened()
    first, second = study.ask(), study.ask()
    study.tell(first, 1.0)
    study.tell(second, 1.0)
    (cost,) = [cost for (_, _, how), cost in study.state.ledger.accounts.items() if how == "complete"]
    leases = [trial.end - trial.start for trial in study.state.trials]
    assert cost.time < sum(leases)


def test_the_time_of_a_trial_is_that_of_all_its_leases(opened: Any) -> None:
    study = opened()
    for ended in (False, True):
        trial = study.ask()
        if ended:
            study.tell(trial, 1.0)
        else:
            study.handle.release(trial.number, reason="pre-empted")
    (logged,) = study.state.trials
    (past,) = logged.history
    expected = (past.end - past.start + logged.end - logged.start) / 1e6
    assert trial_seconds(logged) == configuration_seconds(logged, study.state) == pytest.approx(expected)


def run(*words_: str, store: Path) -> str:
    done = CliRunner().invoke(cli, [*words_, "--store", str(store)])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_line_creates_shows_moves_and_lifts_a_budget(tmp_path: Path) -> None:
    store = tmp_path / "store"
    create = ("study", "create", "s", "--space", "x=float(0,1)", "--budget", "trials=9,gpu_hours=5")
    run(*create, "--budget", "until.target=0.1", store=store)
    shown = run("study", "show", "s", store=store)
    assert "0 of 9 trials used" in shown
    assert "0 of 5 GPU hours used" in shown
    assert "ends when the value 0.1 is reached" in shown
    changed = "The budget of 's': 0 of 9 trials used; 0 of 2 kWh used; ends when the value 0.1 is reached."
    assert changed in run("study", "set", "s", "--budget", "gpu_hours=none,kwh=2", store=store)
    assert "The budget of 's': no limit." in run("study", "set", "s", "--budget", "none", store=store)


def test_more_running_trials_than_a_lowered_budget_allows_are_named(
    tmp_path: Path, opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    study = opened(budget=2)
    assert [study.ask().number, study.ask().number] == [0, 1]
    said = run("study", "set", "s", "--budget", "1", store=study.storage.url)
    assert "The budget of 's': 2 of 1 trials used." in said
    assert study.enqueue_trial({}) == 2
    assert "2 of 1 trials used, so a trial of 's' that is queued now starts only if a running one fails" in caplog.text


def test_a_budget_that_somebody_lowered_is_not_raised_by_a_script(
    opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    opened(budget=3)
    assert opened(budget=6).state.budget == 6
    opened().set_budget(4)

    assert opened(budget=6).state.budget == 4  # as before it was lowered
    assert opened(budget=9).state.budget == 4
    assert "was lowered to 4, and stays there. To raise it: hopaas-p2p study set s --budget 9" in caplog.text

    opened().set_budget("until.date=2099-01-01,prices.*.kwh=1")  # the limits that scripts may raise stay as they are
    assert opened(budget=9).state.budget == 4

    opened().set_budget(5)
    assert opened(budget=9).state.budget == 9  # somebody raised it since


def test_a_lowered_limit_stays_when_somebody_raises_another(opened: Any) -> None:
    opened(budget="trials=9,core_hours=10").set_budget(4)
    opened().set_budget("core_hours=20")
    assert opened(budget="trials=9,core_hours=20").state.budget == 4
    assert budget_now(opened(budget="core_hours=30").state).core_hours == 30, "nobody lowered this one"
    opened().set_budget(5)
    assert opened(budget="trials=9,core_hours=30").state.budget == 9
