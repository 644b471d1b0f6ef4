"""What a study has spent: what each record adds, where it is booked, and which limit ends the study when."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hopaas_p2p.analysis.spending import budget_lines, spending
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.admission import finished, next_start
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.ledger import HOUR, LONGEST_LEASE, Cost, Ledger, OpenLease
from hopaas_p2p.core.records import (
    FROM_START,
    Budget,
    Checkpoint,
    Commit,
    PeerJoin,
    Policy,
    Price,
    Record,
    Stamp,
    StudyControl,
    StudyDefine,
    TrialCheckpoint,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    TrialState,
    Until,
    Used,
)
from hopaas_p2p.core.state import State, Verdict
from tests.support.scribe import COMPLETE, PRUNED, Scribe, defined

NORTH = {"site": "north", "user": "ann", "gpus": "2", "cores": "8", "watts": "500"}
SOUTH = {"site": "south", "user": "bob", "gpus": "1", "cores": "4"}
ASK = TrialCreate(prefer_waiting=True)


class Campaign(Scribe):
    """A study with a ledger, in which ann works at north and bob at south; times are hours."""

    def __init__(self, limits: Budget | None = None, *, budget: int | None = None, attempts: int = 3) -> None:
        policy = Policy(budget=budget, attempts=attempts, limits=limits or Budget())
        super().__init__(StudyDefine("study", ("minimize",), policy))
        self.at(0, "ann", PeerJoin(NORTH))
        self.at(0, "bob", PeerJoin(SOUTH))

    def at(self, hour: float, writer: str, *records: Record) -> Verdict:
        return self.say(writer, *records, at=round(hour * HOUR))

    def cost(self, outcome: str, site: str = "north") -> Cost:
        ledger = self.state.ledger
        found = [cost for (at, _, how), cost in ledger.accounts.items() if (at, how) == (site, outcome)]
        return found[0] if found else Cost()

    def reached(self) -> str | None:
        return self.state.ledger.reached


@pytest.fixture
def study() -> Campaign:
    return Campaign()


def end(number: int, epoch: int = 1, value: float = 1.0, used: Used | None = None) -> TrialFinish:
    return TrialFinish(number, epoch, COMPLETE, (value,), used=used)


# --- what is booked ----------------------------------------------------------------------------------------------


def test_a_trial_costs_its_time_on_each_device_of_its_peer(study: Campaign) -> None:
    study.at(1, "ann", ASK)
    study.at(4, "ann", end(0))
    assert study.cost("complete") == Cost(3 * HOUR, 6 * HOUR, 24 * HOUR, 3 * 500 * 3600 * 1000, 0, 1)
    assert study.cost("running") == Cost()


def test_the_clocks_of_others_do_not_count(study: Campaign) -> None:
    study.at(1, "ann", ASK)
    study.at(-9000, "bob", ASK)
    study.at(2, "ann", end(0))
    study.at(-8999.5, "bob", end(1))
    assert study.cost("complete").time == HOUR
    assert study.cost("complete", "south").time == HOUR // 2


def test_an_owner_that_measured_is_believed(study: Campaign) -> None:
    study.at(1, "ann", ASK)
    study.at(500_000, "ann", TrialSet(0, 1, used=Used(HOUR, 7)))
    study.at(500_001, "ann", end(0, used=Used(2 * HOUR, 9)))
    assert study.cost("complete") == Cost(2 * HOUR, 4 * HOUR, 16 * HOUR, 9, 0, 1)


@pytest.mark.parametrize("used", [Used(-1), Used(LONGEST_LEASE + 1), Used(1, -1), Used((1 << 63) - 1, (1 << 63) - 1)])
def test_a_measurement_that_cannot_be_true_does_not_count(study: Campaign, used: Used) -> None:
    study.at(1, "ann", ASK)
    study.at(2, "ann", end(0, used=used))
    assert study.cost("complete").time == HOUR


def test_a_clock_that_is_set_from_1970_costs_400_days_at_most(study: Campaign) -> None:
    study.at(0, "ann", ASK)
    study.at(500_000, "ann", end(0))
    assert study.cost("complete").time == LONGEST_LEASE


def test_what_a_peer_announces_may_be_nonsense(study: Campaign) -> None:
    for gpus in ("many", "nan", "inf", "-1", "1e300"):
        study.at(0, "cid", PeerJoin({"gpus": gpus, "cores": "2", "site": "x" * 10_000}))
        study.at(0, "cid", ASK)
        study.at(1, "cid", end(len(study.state.trials) - 1))
    assert study.cost("complete", "x" * 64) == Cost(5 * HOUR, 0, 10 * HOUR, 0, 0, 5)


def test_a_killed_attempt_is_lost_for_as_long_as_it_was_seen_alive(study: Campaign) -> None:
    study.at(1, "ann", ASK)
    study.at(2, "ann", TrialSet(0, 1, reports={1: 1.0}))
    study.at(90_000, "bob", TrialReclaim(0, 1, lived=5 * HOUR))
    assert study.cost("lost") == Cost(5 * HOUR, 10 * HOUR, 40 * HOUR, 5 * 500 * 3600 * 1000, 1, 1)


@pytest.mark.parametrize(("lived", "counted"), [(LONGEST_LEASE, 4 * HOUR), (3 * HOUR, 3 * HOUR), (None, HOUR)])
@pytest.mark.parametrize("ahead", [0, 100 * HOUR, -100 * HOUR], ids=["right", "ahead", "behind"])
def test_by_the_clock_of_the_store_nobody_was_alive_for_longer_than_its_lease(
    ahead: int, lived: int | None, counted: int
) -> None:
    """Whatever the clock of the owner shows."""
    study = Scribe(defined(limits=Budget(gpu_hours=1e6)))
    said = (("ann", 1, ASK), ("ann", 2, TrialSet(0, 1, reports={1: 1.0})), ("dan", 5, TrialReclaim(0, 1, lived=lived)))
    for seq, (who, hour, record) in enumerate(said, 1):
        at = hour * HOUR + ahead * (who == "ann")
        commit = Commit(who, seq, who, at, (record,))
        assert study.append(commit, Stamp(who, "worker", 1000 * HOUR + hour * HOUR))[0].accepted
    assert sum(cost.time for (*_, booked), cost in study.state.ledger.accounts.items() if booked == "lost") == counted


def test_without_an_observer_a_killed_attempt_counts_until_its_last_word(study: Campaign) -> None:
    study.at(1, "ann", ASK)
    study.at(2, "ann", TrialSet(0, 1, reports={1: 1.0}))
    study.at(90_000, "bob", TrialReclaim(0, 1))
    assert study.cost("lost").time == HOUR


def test_energy_that_was_measured_goes_on_at_its_rate_until_the_attempt_was_last_seen(study: Campaign) -> None:
    study.at(1, "ann", ASK)
    study.at(2, "ann", TrialSet(0, 1, used=Used(HOUR, 1000)))
    study.at(90_000, "bob", TrialReclaim(0, 1, lived=3 * HOUR))
    assert study.cost("lost").energy == 3000


def test_what_is_given_back_belongs_to_the_trial_s_end(study: Campaign) -> None:
    study.at(1, "ann", ASK)
    study.at(2, "ann", TrialRelease(0, 1, reason="pre-empted"))
    assert study.cost("given back").time == HOUR
    study.at(0, "bob", ASK)
    study.at(3, "bob", end(0, 2))
    assert study.cost("given back") == Cost()
    assert study.cost("complete").time == HOUR
    assert study.cost("complete", "south").time == 3 * HOUR


def test_a_late_result_is_no_longer_lost(study: Campaign) -> None:
    study.at(1, "ann", ASK)
    study.at(0, "bob", TrialReclaim(0, 1, lived=HOUR))
    assert study.cost("lost").time == HOUR
    study.at(4, "ann", TrialSet(0, 1, reports={1: 1.0, 2: 1.0}), end(0))
    assert study.cost("lost") == Cost()
    assert (study.cost("complete").time, study.cost("complete").epochs) == (3 * HOUR, 2)


def test_a_late_result_of_a_lease_that_was_given_back_changes_nothing_about_the_one_that_was_lost(
    study: Campaign,
) -> None:
    """As when a child of ann's process, which was pre-empted, trains to the end all the same."""
    study.at(0, "ann", ASK)
    study.at(1, "ann", TrialRelease(0, 1))
    study.at(2, "bob", ASK)
    study.at(5, "cat", TrialReclaim(0, 2, lived=HOUR))
    assert study.at(9, "ann", end(0, 1)).refusal == "late"
    assert [study.cost("lost", site).time / HOUR for site in ("north", "south")] == [1.0, 1.0]
    assert study.state.ledger.total.time == 2 * HOUR


def test_epochs_count_each_time_they_are_trained_and_not_when_they_are_inherited(study: Campaign) -> None:
    study.at(0, "ann", ASK)
    study.at(1, "ann", TrialSet(0, 1, reports=dict.fromkeys(range(10), 1.0)))
    study.at(1, "ann", TrialCheckpoint(0, 1, Checkpoint(5, "key", 1, "0" * 64)))
    study.at(2, "bob", TrialReclaim(0, 1))
    assert study.cost("lost").epochs == 10
    study.at(2, "bob", ASK)
    study.at(3, "bob", TrialSet(1, 1, reports=dict.fromkeys(range(6, 20), 1.0), resumed_from=5))
    study.at(3, "bob", end(1))
    assert study.cost("complete", "south").epochs == 14


def test_a_retry_that_begins_anew_trains_all_epochs_again(study: Campaign) -> None:
    study.at(0, "ann", ASK)
    study.at(1, "ann", TrialSet(0, 1, reports={1: 1.0, 2: 1.0, 3: 1.0}))
    study.at(1, "ann", TrialCheckpoint(0, 1, Checkpoint(2, "key", 1, "0" * 64)))
    study.at(2, "bob", TrialReclaim(0, 1))
    study.at(2, "bob", ASK)
    study.at(3, "bob", TrialSet(1, 1, reports={1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}, resumed_from=FROM_START))
    study.at(3, "bob", end(1))
    assert study.cost("complete", "south").epochs == 4


def test_reports_every_few_epochs_count_as_the_epochs_between_them(study: Campaign) -> None:
    study.at(0, "ann", ASK)
    study.at(1, "ann", TrialSet(0, 1, reports={4: 1.0}))
    study.at(2, "ann", TrialSet(0, 1, reports={9: 1.0}))
    study.at(3, "ann", end(0))
    assert study.cost("complete").epochs == 9


# --- what ends a study -------------------------------------------------------------------------------------------


def test_the_record_that_reaches_a_limit_ends_the_study_and_asks_running_trials_to_end() -> None:
    study = Campaign(Budget(gpu_hours=6.0))
    study.at(0, "ann", ASK)
    study.at(0, "bob", ASK)
    assert study.at(3, "ann", end(0), ASK).refusal == "budget"
    assert study.reached() == "6 GPU hours are spent"
    assert study.state.trials[1].stop == "6 GPU hours are spent"
    assert not finished(study.state)
    study.at(4, "bob", TrialFinish(1, 1, PRUNED))
    assert finished(study.state)


def test_a_running_trial_that_reports_reaches_a_limit_too() -> None:
    study = Campaign(Budget(core_hours=16.0))
    study.at(0, "ann", ASK)
    study.at(1, "ann", TrialSet(0, 1, reports={1: 1.0}))
    assert study.reached() is None
    study.at(2, "ann", TrialSet(0, 1, reports={2: 1.0}))
    assert study.reached() == "16 core hours are spent"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Budget(epochs=3), "3 epochs are spent"),
        (Budget(kwh=1.5), "1.5 kWh are spent"),
        (Budget(euro=6.0, prices={"north": Price(gpu_hour=1.0)}), "6 euro are spent"),
        (Budget(euro=2.7, prices={"*": Price(core_hour=0.1, kwh=0.2), "south": Price()}), "2.7 euro are spent"),
    ],
)
def test_each_amount_is_a_limit(limits: Budget, words: str) -> None:
    study = Campaign(limits)
    study.at(0, "ann", ASK)
    study.at(3, "ann", TrialSet(0, 1, reports={1: 1.0, 2: 1.0, 3: 1.0}), end(0))
    assert study.reached() == words


def test_a_higher_limit_lets_the_study_go_on_and_those_that_have_not_stopped_yet() -> None:
    study = Campaign(Budget(gpu_hours=1.0))
    for who in ("ann", "bob"):
        study.at(0, who, ASK)
    study.at(1, "ann", TrialSet(0, 1, reports={1: 1.0}))
    study.at(1, "bob", TrialSet(1, 1, stopping=True))
    study.at(1, "founder", StudyControl(limits=Budget(gpu_hours=100.0)))
    assert next_start(study.state).why is None
    assert [trial.stop for trial in study.state.trials] == [None, "1 GPU hours are spent"]


def test_a_trial_that_a_limit_asked_to_stop_waits_again_when_its_owner_is_preempted() -> None:
    study = Campaign(Budget(gpu_hours=1.0))
    study.at(0, "ann", ASK)
    study.at(1, "ann", TrialSet(0, 1, reports={1: 1.0}))
    (trial,) = study.state.trials
    assert trial.stop == "1 GPU hours are spent"
    study.at(2, "ann", TrialRelease(0, 1))
    assert (trial.state, trial.stop) == (TrialState.WAITING, None)


def test_limits_beside_a_budget_of_trials_leave_that_exact() -> None:
    study = Campaign(Budget(gpu_hours=100.0), budget=2)
    assert study.at(0, "ann", ASK, ASK).accepted
    assert study.at(0, "bob", ASK).refusal == "budget"
    assert study.reached() is None
    assert study.state.trials[0].stop is None


def test_a_target_is_reached_by_the_best_value() -> None:
    study = Campaign(Budget(until=Until(target=0.1)))
    study.at(0, "ann", ASK, ASK)
    study.at(1, "ann", end(0, value=0.2))
    assert study.reached() is None
    study.at(2, "ann", end(1, value=0.1))
    assert study.reached() == "the target 0.1 is reached"


def test_a_target_is_not_reached_by_a_trial_that_breaks_its_constraints() -> None:
    study = Campaign(Budget(until=Until(target=0.1)))
    study.at(0, "ann", ASK)
    study.at(1, "ann", TrialSet(0, 1, system={"constraints": "[0.5]"}), end(0, value=0.0))
    assert study.reached() is None


def test_trials_without_a_better_one_end_a_study_and_failures_do_not() -> None:
    study = Campaign(Budget(until=Until(trials_without_gain=2)))
    for hour, value in enumerate((1.0, 0.5, 0.7)):
        study.at(hour, "ann", ASK)
        study.at(hour, "ann", end(hour, value=value))
    study.at(4, "ann", ASK, TrialFinish(3, 1, TrialState.FAIL))
    assert study.reached() is None
    study.at(5, "ann", ASK, TrialFinish(4, 1, PRUNED))
    assert study.reached() == "2 trials without a better one"


def test_hours_without_a_better_trial_are_those_of_the_log() -> None:
    study = Campaign(Budget(until=Until(hours_without_gain=2.0)))
    study.at(0.9, "bob", ASK)
    study.at(1, "ann", ASK, end(1))
    study.at(2.8, "bob", TrialSet(0, 1, reports={1: 1.0}))
    assert study.at(2.9, "ann", ASK).accepted
    study.at(3.0, "bob", TrialSet(0, 1, reports={2: 1.0}))
    assert study.at(3.1, "ann", ASK).refusal == "budget"


def test_limits_that_come_later_know_when_the_best_trial_ended() -> None:
    study = Campaign(Budget(until=Until(hours_without_gain=2.0)))
    study.at(0, "ann", ASK)
    study.say("founder", StudyControl(limits=Budget()))
    study.at(9, "ann", end(0))
    study.say("founder", StudyControl(limits=Budget(until=Until(hours_without_gain=2.0))), at=10 * HOUR)
    study.at(10, "ann", ASK)
    study.at(10, "bob", ASK)
    assert study.reached() is None
    study.at(11, "ann", end(1, value=2.0))
    study.at(11, "bob", end(2, value=2.0))
    assert study.reached() == "2 hours without a better trial"


def test_a_date_ends_a_study_by_the_clocks_of_most_and_not_by_one_that_is_wrong() -> None:
    study = Campaign(Budget(until=Until(date=10 * HOUR)))
    study.at(1, "ann", ASK)
    assert study.at(9000, "bob", ASK).accepted
    study.at(2, "ann", TrialSet(0, 1, reports={1: 1.0}))
    assert study.reached() is None
    study.at(10.5, "ann", TrialSet(0, 1, reports={2: 1.0}))
    assert study.reached() == "the date is reached"
    assert study.state.trials[0].stop == "the date is reached"


def test_the_time_of_a_server_counts_before_the_clocks_of_peers() -> None:
    study = Campaign(Budget(until=Until(date=10 * HOUR)))
    commit = Commit("cid", 1, "cid", 9000 * HOUR, (ASK,))
    assert study.append(commit, Stamp(at=5 * HOUR))[0].accepted


@pytest.mark.parametrize(
    "limits",
    [
        Budget(gpu_hours=0.0),
        Budget(kwh=float("nan")),
        Budget(epochs=-1),
        Budget(trials=5),
        Budget(euro=1.0, prices={"x": Price(kwh=-1.0)}),
        Budget(until=Until(date="2026-12-31")),
        Budget(until=Until(target=float("nan"))),
        Budget(until=Until(hours_without_gain=0.0)),
    ],
)
def test_impossible_limits_are_refused(limits: Budget) -> None:
    study = Scribe()
    assert study.say("founder", StudyControl(limits=limits)).refusal == "malformed"
    assert study.state.ledger.limits == Budget()


def test_a_study_with_several_objectives_has_no_target_but_may_have_a_date() -> None:
    study = Scribe(defined(("minimize", "minimize")))
    assert study.say("founder", StudyControl(limits=Budget(until=Until(target=0.1)))).refusal == "malformed"
    assert study.say("founder", StudyControl(limits=Budget(until=Until(date=10)))).accepted


def test_limits_are_the_owners() -> None:
    study = Scribe()
    assert study.say("ann", StudyControl(limits=Budget(kwh=1.0)), role="worker").refusal == "role"


# --- the same everywhere -----------------------------------------------------------------------------------------


def _full() -> Campaign:
    """A campaign with something in every field of its ledger."""
    limits = Budget(gpu_hours=1e6, until=Until(hours_without_gain=1e9, target=-1e9))
    study = Campaign(limits, attempts=9)
    study.at(0, "ann", ASK, ASK, ASK, ASK)
    study.at(1, "ann", end(0, value=3.0), TrialRelease(1, 1))
    study.at(1, "bob", TrialReclaim(2, 1, lived=HOUR), ASK)
    study.at(2, "ann", TrialSet(3, 1, reports={0: 1.0}, used=Used(HOUR, 5)))
    return study


def test_a_snapshot_holds_the_ledger_and_a_replica_from_it_goes_on_alike() -> None:
    study = _full()
    loaded = snapshot.load(snapshot.dump(study.state))
    assert loaded.ledger == study.state.ledger
    more = Commit("cid", 1, "ann", 9 * HOUR, (end(3, value=2.0),))
    for state in (study.state, loaded):
        assert apply(state, state.lsn + 1, more)[0].accepted
    assert snapshot.digest(loaded) == snapshot.digest(study.state)
    assert loaded.ledger == study.state.ledger


def test_every_snapshot_and_its_tail_are_the_replay() -> None:
    study = _full()
    for at in range(1, len(study.log)):
        state = State()
        for lsn, (commit, stamp) in enumerate(study.log, 1):
            apply(state, lsn, codec.decode(codec.encode(commit)), stamp)
            if lsn == at:
                state = snapshot.load(snapshot.dump(state))
        assert snapshot.digest(state) == snapshot.digest(study.state)


def test_a_snapshot_can_be_read_whatever_energy_a_lost_attempt_has_claimed(study: Campaign) -> None:
    study.at(0, "ann", ASK)
    study.at(0, "ann", TrialSet(0, 1, used=Used(1, 1 << 52)))
    study.at(1, "bob", TrialReclaim(0, 1, lived=HOUR))
    assert snapshot.load(snapshot.dump(study.state)).ledger == study.state.ledger


def test_a_snapshot_can_be_read_whatever_devices_a_lost_attempt_has_claimed() -> None:
    study = Scribe()
    for number, devices in ((0, "30000"), (1, "100000")):
        study.say("ann", PeerJoin(dict.fromkeys(("gpus", "cores", "watts"), devices)), ASK, at=0)
        study.say("bob", TrialReclaim(number, 1, lived=LONGEST_LEASE), at=0)
    assert snapshot.load(snapshot.dump(study.state)).ledger == study.state.ledger


def test_limits_that_come_later_count_what_was_spent_before() -> None:
    study = Scribe()
    study.say("ann", PeerJoin(NORTH), at=0)
    study.say("ann", ASK, ASK, at=0)
    study.say("ann", end(0), at=2 * HOUR)
    study.say("founder", StudyControl(limits=Budget(gpu_hours=5.0)), at=0)
    assert study.state.ledger.reached is None
    study.say("ann", TrialSet(1, 1, reports={1: 1.0}), at=HOUR)
    assert study.state.ledger.reached == "5 GPU hours are spent"


@pytest.mark.parametrize(
    "peer", [lambda n: {"site": f"site{n}", "user": "ann"}, lambda n: {"site": "others", "user": f"user{n}"}]
)
def test_what_a_thousand_sites_spend_is_kept_and_more_is_booked_together(peer: Callable[[int], dict[str, str]]) -> None:
    ledger = Ledger(Budget())
    for number in range(1200):
        ledger.open[number] = OpenLease(*peer(number).values(), 0, 1000, 0, 0, 0, 0, 0, False)
        ledger.heard(number, HOUR, None, {})
        ledger.ended(number, "complete")
    assert len(ledger.accounts) <= 1002
    assert sum(cost.time for cost in ledger.accounts.values()) == 1200 * HOUR


# --- what people read --------------------------------------------------------------------------------------------


def test_what_is_left_lasts_as_long_as_what_runs_now_takes() -> None:
    study = Campaign(Budget(gpu_hours=10.0))
    study.at(0, "ann", ASK)
    study.at(1, "ann", end(0), ASK)
    study.at(2, "ann", TrialSet(1, 1, reports={1: 1.0}))
    found = spending(study.state)
    (gpus,) = [one for one in found.amounts if one.what == "gpu_hours"]
    assert (gpus.spent, gpus.left, gpus.pace, gpus.lasts) == (4.0, 6.0, 2.0, 3 * 3600.0)
    assert budget_lines(found)[0] == "4 of 10 GPU hours used; the rest lasts about 3 h"


def test_a_limit_of_energy_that_nobody_measures_is_pointed_out() -> None:
    study = Campaign(Budget(kwh=5.0))
    study.at(0, "bob", ASK)
    study.at(1, "bob", end(0))
    assert "set HOPAAS_WATTS" in budget_lines(spending(study.state))[1]


def test_reading_changes_nothing() -> None:
    study = _full()
    before = snapshot.digest(study.state)
    spending(study.state)
    assert snapshot.digest(study.state) == before
