"""Populations, as the log decides them: a member is one chain of trials, and copies better ones."""

from __future__ import annotations

import math
import random

import pytest

from hopaas_p2p.analysis.savings import Savings, savings
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core import snapshot
from hopaas_p2p.core.admission import NEW, finished, next_start
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.attributes import AGAIN, CMAES, COPIES, FIDELITY
from hopaas_p2p.core.fidelity import Population, decode_fidelity, encode_fidelity, possible_fidelity
from hopaas_p2p.core.inherited import FEW
from hopaas_p2p.core.lineage import copied_trial, segments
from hopaas_p2p.core.populations import Members
from hopaas_p2p.core.records import (
    FROM_START,
    Budget,
    StudySet,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
)
from hopaas_p2p.core.standings import RungStanding
from hopaas_p2p.core.state import State, Trial
from tests.support.campaign import Campaign
from tests.support.scribe import COMPLETE, FAIL, PRUNED, RUNNING, WAITING, X

FIVE = Population(size=5, every=2, max=6)


class Herd(Campaign):
    """A population, written by hand."""

    def __init__(self, population: Population = FIVE, **policy: object) -> None:
        super().__init__(population, **policy)

    def wave(self, *values: float) -> list[Trial]:
        """So many members go on to their next pause, in the order in which they are given out."""
        started = [self.start(f"p{index}", x=0.1 + index / 10) for index in range(len(values))]
        for trial, value in zip(started, values, strict=True):
            self.interval(trial, value)
        return started

    def interval(self, trial: Trial, value: float, *, checkpoint: bool = True) -> None:
        """Train up to the next pause, or to the end."""
        target = self.state.configurations.pauses_at(trial.number)
        assert isinstance(self.state.configurations.policy, Population)
        self.resume(trial)
        self.train(trial, target or self.state.configurations.policy.max, value, checkpoint=checkpoint)
        if target is None:
            self.say(trial.owner or "", TrialFinish(trial.number, trial.epoch, COMPLETE, (value,)))
        else:
            self.pause(trial)

    def resume(self, trial: Trial) -> None:
        """The owner says from which checkpoint it went on."""
        if trial.checkpoints:
            step = trial.checkpoints[-1].step
            self.say(trial.owner or "", TrialSet(trial.number, trial.epoch, resumed_from=step))


@pytest.fixture
def study() -> Herd:
    return Herd()


def test_a_population_begins_with_as_many_members_as_it_has_and_no_more(study: Herd) -> None:
    for index in range(5):
        assert study.start(f"p{index}").continues is None
    assert study.ask("p5").refusal == "budget"
    assert study.state.used() == 5


def test_all_members_begin_before_one_goes_on(study: Herd) -> None:
    study.interval(study.start("a"), 0.1)
    assert next_start(study.state) == NEW
    assert study.start("a").continues is None


def test_the_lowest_goes_on_from_the_best_with_perturbed_parameters(study: Herd) -> None:
    study.wave(0.5, 0.1, 0.3, 0.9, 0.2)
    again = [study.start(f"q{index}") for index in range(5)]
    assert [trial.continues for trial in again] == [0, 1, 2, 3, 4]
    copies = [copied_trial(trial) for trial in again]
    assert copies == [None, None, None, 1, None]
    for trial in again:
        if trial.number != again[3].number:
            assert trial.params == study.trial(trial.continues or 0).params
    copied, best = again[3], study.trial(1)
    assert copied.params["x"] != best.params["x"]
    assert copied.checkpoints == best.checkpoints
    assert copied.reports == best.reports
    assert study.trial(3).state is PRUNED


def test_the_one_that_has_come_least_far_goes_on_first(study: Herd) -> None:
    study.wave(0.5, 0.1, 0.3, 0.9, 0.2)
    ahead = study.start("a")
    study.interval(ahead, 0.4)
    assert [study.start("a").continues for _ in range(5)] == [1, 2, 3, 4, ahead.number]


def test_a_member_that_is_ahead_is_compared_at_the_rung_where_the_other_pauses(study: Herd) -> None:
    study.wave(0.5, 0.1, 0.3, 0.9, 0.2)
    for _ in range(3):
        study.interval(study.start("a"), 9.0)  # far worse at the second pause
    assert copied_trial(study.start("a")) == 1


def test_a_population_ends_with_a_whole_training_of_each_member(study: Herd) -> None:
    for wave in range(3):
        study.wave(*[1.0 / (wave + 1) + member / 10 for member in range(5)])
    assert finished(study.state)
    assert study.ask("p").refusal == "budget"
    assert study.state.counts[COMPLETE] == 5
    assert study.state.counts[PRUNED] == 10
    assert study.state.used() == 5
    saved = savings(study.state, TrialTable.of(study.state))
    assert saved == Savings(made=saved.made)


def test_a_budget_below_the_size_makes_a_smaller_population() -> None:
    study = Herd(budget=2)
    study.wave(0.1, 0.2)
    assert study.start("a").continues == 0
    assert study.start("b").continues == 1
    assert study.ask("c").refusal == "budget"
    assert study.state.used() == 2


def test_a_member_that_violates_its_constraints_copies_one_that_satisfies_them(study: Herd) -> None:
    for index, trial in enumerate([study.start(f"p{index}") for index in range(5)]):
        study.train(trial, 2, 0.1 + index / 10, constraint=1.0 if index == 0 else -1.0)
        study.pause(trial)

    again = study.start("q")

    assert (again.continues, again.system[COPIES]) == (0, "1")


@pytest.mark.parametrize("others", [0, FEW])
def test_what_holds_for_its_old_parameters_is_not_said_of_a_member_that_copies(study: Herd, others: int) -> None:
    old = {"constraints": "[1.0]", "fixed_params": '{"x": 0.1}', CMAES: '{"generation": 0, "parents": []}', AGAIN: "0"}
    named = {"constraints:named": "-1.0"}
    kept = {str(number): "1" for number in range(others)} | {"kept": "1"}
    for index, trial in enumerate([study.start(f"p{index}") for index in range(5)]):
        study.say(trial.owner or "", TrialSet(trial.number, trial.epoch, system=old | named | kept))
        study.interval(trial, 0.1 + (index == 0))

    copied, own = study.start("q"), study.start("r")

    assert (copied_trial(copied) is None, copied_trial(own)) == (False, None)
    assert copied.feasible
    assert not own.feasible
    assert old.keys() | kept.keys() <= own.system.keys()
    assert kept.keys() <= copied.system.keys()
    assert not old.keys() & copied.system.keys()
    assert ("constraints:named" in copied.system) is bool(others), "not one of very many is looked for"


def test_a_value_that_is_no_number_copies_even_before_others_have_come(study: Herd) -> None:
    trials = [study.start(f"p{index}") for index in range(5)]
    study.interval(trials[0], 0.3)
    study.interval(trials[1], float("nan"))
    study.start("a")
    assert copied_trial(study.start("b")) == 0


def test_a_retry_of_a_member_counts_once_and_has_its_parameters(study: Herd) -> None:
    study.wave(0.5, 0.1, 0.3, 0.9, 0.2)
    copied = [study.start(f"q{index}") for index in range(5)][3]
    study.say("other", TrialReclaim(copied.number, copied.epoch))
    assert study.state.used() == 5
    retry = study.start("r")
    assert (retry.retry_of, retry.params, retry.checkpoints) == (copied.number, copied.params, copied.checkpoints)
    assert copied_trial(retry) == 1
    study.interval(retry, 0.05)
    assert study.state.used() == 5
    assert study.start("r").continues == retry.number


def test_a_released_member_comes_before_all_others(study: Herd) -> None:
    study.wave(0.5, 0.1, 0.3, 0.9, 0.2)
    trial = study.start("a")
    study.say("a", TrialRelease(trial.number, trial.epoch, reason="pre-empted"))
    assert study.trial(trial.number).state is WAITING
    assert study.start("b").number == trial.number


def test_a_late_result_ends_its_member_and_the_budget_stays_exact(study: Herd) -> None:
    study.wave(0.5, 0.1, 0.3, 0.9, 0.2)
    trial = study.start("zombie")
    study.say("other", TrialReclaim(trial.number, trial.epoch))
    verdict = study.say("zombie", TrialFinish(trial.number, 1, COMPLETE, (0.01,)))
    assert verdict.refusal == "late"
    assert study.trial(verdict.number or 0).state is COMPLETE
    assert study.state.used() == 5
    assert [study.start(f"q{index}").continues for index in range(4)] == [1, 2, 3, 4]
    assert study.ask("r").refusal == "budget"


def test_a_member_that_fails_goes_on_from_a_better_one_until_it_has_failed_too_often(study: Herd) -> None:
    study.wave(0.5, 0.1, 0.3, 0.9, 0.2)
    running = [study.start(f"q{index}") for index in range(5)]
    failing = running[0]
    for _ in range(3):
        study.say(failing.owner or "", TrialFinish(failing.number, failing.epoch, FAIL, None, "its loss explodes"))
        before, failing = failing, study.start("again")
        assert failing.continues == before.number
        assert copied_trial(failing) == 1
        assert failing.state is RUNNING
    study.say("again", TrialFinish(failing.number, failing.epoch, FAIL, None, "its loss explodes"))
    assert study.ask("again").refusal == "budget"
    assert study.state.used() == 5


def test_a_first_trial_that_fails_gives_its_place_back(study: Herd) -> None:
    trial = study.start("a")
    study.say("a", TrialFinish(trial.number, trial.epoch, FAIL, None, "out of memory"))
    study.wave(0.5, 0.1, 0.3, 0.9, 0.2)
    assert study.start("a").continues == 1


def test_a_member_that_was_asked_to_end_is_out(study: Herd) -> None:
    study.wave(0.5, 0.1, 0.3, 0.9, 0.2)
    trial = study.start("a")
    study.say("a", TrialFinish(trial.number, trial.epoch, PRUNED, None, "somebody asked"))
    assert study.start("a").continues == 1


def test_without_checkpoints_a_member_begins_anew_with_the_parameters_it_copies(study: Herd) -> None:
    started = [study.start(f"p{index}") for index in range(5)]
    for trial, value in zip(started, (0.5, 0.1, 0.3, 0.9, 0.2), strict=True):
        study.interval(trial, value, checkpoint=False)
    again = [study.start(f"q{index}") for index in range(5)][3]
    assert (again.reports, again.checkpoints) == ({}, ())
    assert copied_trial(again) == 1
    study.train(again, 4, 0.2)
    assert study.pause(again).accepted
    assert study.trial(again.number).paused
    assert segments(study.state.trials, again.number) == [(FROM_START, 3, again.number)]


def test_a_schedule_goes_through_the_trials_whose_checkpoints_were_copied(study: Herd) -> None:
    first = study.wave(0.5, 0.1, 0.3, 0.9, 0.2)
    second = [study.start(f"q{index}") for index in range(5)]
    for trial in second:
        study.interval(trial, 0.1 if trial.continues == 3 else 0.5)
    third = [study.start(f"r{index}") for index in range(5)]
    last = next(trial for trial in third if trial.continues == second[3].number)
    study.interval(last, 0.01)
    assert segments(study.state.trials, last.number) == [
        (FROM_START, 1, first[1].number),
        (1, 3, second[3].number),
        (3, 5, last.number),
    ]


def test_a_schedule_has_the_steps_that_a_killed_attempt_left_a_checkpoint_of() -> None:
    study = Herd(Population(size=2, every=4, max=8))
    study.wave(0.1, 0.2)
    trial = study.start("a")
    study.resume(trial)
    study.train(trial, 6, 0.1)
    study.say("b", TrialReclaim(trial.number, trial.epoch))
    retry = study.start("b")
    study.interval(retry, 0.05)
    assert segments(study.state.trials, retry.number) == [
        (FROM_START, 3, trial.continues),
        (3, 5, trial.number),
        (5, 7, retry.number),
    ]


def test_a_copy_that_was_killed_before_it_began_made_no_step_of_the_schedule(study: Herd) -> None:
    first = study.wave(0.5, 0.1, 0.3, 0.9, 0.2)
    second = [study.start(f"q{index}") for index in range(5)]
    copy = next(trial for trial in second if copied_trial(trial) is not None)
    study.say("b", TrialReclaim(copy.number, copy.epoch))
    retry = study.start("b")
    assert retry.retry_of == copy.number
    study.resume(retry)
    study.interval(retry, 0.05)
    assert segments(study.state.trials, retry.number) == [(FROM_START, 1, first[1].number), (1, 3, retry.number)]


def test_continuations_carry_the_reports_of_one_interval() -> None:
    study = Herd(Population(size=2, every=2, max=10))
    for _ in range(3):
        study.wave(0.1, 0.2)
    assert sorted(study.start("a").reports) == [4, 5]


def test_a_pause_that_may_be_copied_keeps_its_checkpoint(study: Herd) -> None:
    study.wave(0.5, 0.1, 0.3, 0.9, 0.2)
    configurations = study.state.configurations
    again = [study.start(f"q{index}") for index in range(5)]
    assert all(configurations.may_be_continued(number, most=None) for number in range(5))
    for trial in again:
        study.interval(trial, 0.1)
    for index in range(5):
        study.start(f"r{index}")
    assert not any(configurations.may_be_continued(number, most=None) for number in range(5))
    assert all(configurations.may_be_continued(trial.number, most=None) for trial in again)


def _replayed(study: Herd) -> State:
    state = State()
    for lsn, (commit, stamp) in enumerate(study.log, 1):
        apply(state, lsn, commit, stamp)
    return state


def test_every_replica_decides_alike(study: Herd) -> None:
    for wave in range(3):
        study.wave(*[((7 * member + wave) % 5) / 10 for member in range(5)])
    assert any(COPIES in trial.system for trial in study.state.trials)
    assert snapshot.digest(_replayed(study)) == snapshot.digest(study.state)
    assert snapshot.digest(snapshot.load(snapshot.dump(study.state))) == snapshot.digest(study.state)


def test_rungs_may_become_a_population() -> None:
    study = Campaign()
    study.first_rung(0.3, 0.1, 0.2)
    study.say("founder", StudySet(system={FIDELITY: encode_fidelity(Population(size=3, every=2, max=6))}))
    assert [study.start(f"q{index}").continues for index in range(3)] == [0, 1, 2]
    assert study.ask("r").refusal == "budget"


def test_a_population_is_kept_as_an_attribute_and_only_possible_ones_are_taken() -> None:
    given = Population(size=8, every=3, quantile=0.25, fixed=("layers",))
    assert decode_fidelity(encode_fidelity(given)) == given
    assert possible_fidelity({"type": "population"})
    for wrong in ({"size": 1}, {"every": 0}, {"quantile": 0.6}, {"resample": -1}, {"max": 3}, {"fixed": 1}):
        assert not possible_fidelity({"type": "population", **wrong})


def test_a_limit_of_epochs_ends_a_population_and_each_epoch_counts_once() -> None:
    study = Herd(limits=Budget(epochs=25))
    for wave in range(2):
        study.wave(*[((3 * member + wave) % 5) / 10 for member in range(5)])
    assert any(copied_trial(trial) is not None for trial in study.state.trials)
    ledger = study.state.ledger
    assert ledger.total.epochs == 20
    for _ in range(3):
        study.interval(study.start("a"), 0.1)
    assert study.ask("a").refusal == "budget"
    assert ledger.total.epochs == 26  # the interval in which the limit was reached is reported to its end


def test_a_member_that_reports_seldom_is_worth_what_it_said_next() -> None:
    study = Herd(Population(size=2, every=2, max=8))
    trial = study.start("a")
    study.say("a", TrialSet(trial.number, trial.epoch, reports={0: 0.9, 4: 0.5}))
    study.pause(trial)
    assert study.state.configurations.standing(trial.number).reached == (0.5, 0.5)
    study.interval(study.start("b"), 0.7)
    again = [study.start("a"), study.start("b")]
    assert [one.continues for one in again] == [1, 0]
    assert study.state.configurations.pauses_at(again[1].number) == 6


def test_as_many_are_copied_as_copy() -> None:
    members = Members(Population(size=20, every=1, max=3))
    for number in range(20):
        members.admit(number)
        members.place(number, RungStanding((float(number),), 0, waits=True))
    assert [number for number in range(20) if members.better(number)] == [16, 17, 18, 19]
    assert members.better(16) == [0, 1, 2, 3]


def test_nobody_copies_what_diverged_even_if_all_others_violate_their_constraints() -> None:
    members = Members(Population(size=3, every=1, max=3))
    for number, value in enumerate((math.nan, 0.2, 0.1)):
        members.admit(number)
        members.place(number, RungStanding((value,), 0, waits=True, infeasible=number > 0))
    assert [members.better(number) for number in range(3)] == [[2], [], []]


def test_small_populations_copy_too() -> None:
    members = Members(Population(size=3, every=1, max=3), maximize=True)
    for number in range(3):
        members.admit(number)
        members.place(number, RungStanding((float(number),), 0, waits=True))
    assert [members.better(number) for number in range(3)] == [[2], [], []]


def _ahead(*members_at_second_rung: tuple[int, float], copied: int = 0) -> Members:
    """Five members at the first rung, the first the best; these have come to the second one, too."""
    members = Members(Population(size=5, every=1, max=3))
    for number in range(5):
        members.admit(number)
        members.place(number, RungStanding((float(number),), 0, waits=True))
    for number, value in members_at_second_rung:
        members.place(number, RungStanding((float(number), value), 1, waits=True, copied=copied))
    return members


def test_a_member_that_comes_early_is_judged_where_enough_have_been() -> None:
    members = _ahead((4, 0.4), (0, 0.1), (3, 0.5))
    assert [members.better(number) for number in (0, 3, 4)] == [[], [], [0]]


def test_a_member_that_comes_first_has_nobody_to_copy() -> None:
    assert _ahead((4, 0.4)).better(4) == []


def test_a_member_is_not_judged_by_what_it_was_before_it_copied() -> None:
    assert _ahead((4, 0.4), (0, 0.1), copied=1).better(4) == []


def test_a_member_that_copied_has_an_interval_to_prove_itself() -> None:
    study = Herd()
    study.wave(0.5, 0.1, 0.3, 0.2, 0.9)  # the fifth is the worst, and will be among the first at the second pause
    first = [study.start(f"q{index}") for index in range(5)]
    assert [copied_trial(trial) for trial in first] == [None] * 4 + [1]
    study.interval(first[1], 0.1)
    study.interval(first[0], 0.6)
    study.interval(first[4], 0.8)  # worse than the others that are there, but it copied: a second chance
    assert [study.start(f"r{index}").continues for index in range(3)] == [
        first[0].number,
        first[1].number,
        first[4].number,
    ]
    assert [copied_trial(trial) for trial in study.state.trials[-3:]] == [None, None, None]


def test_equals_do_not_copy_each_other() -> None:
    members = Members(Population(size=5, every=1, max=3))
    for number in range(5):
        members.admit(number)
        members.place(number, RungStanding((0.5,), 0, waits=True))
    assert not any(members.better(number) for number in range(5))


def _storm(seed: int, kills: int, *, size: int = 6, budget: int | None = None) -> Herd:
    """Peers train, pause, fail, die and come back late until so many were killed; then the study runs to its end."""
    rng = random.Random(seed)
    study = Herd(Population(size=size, every=2, max=9), budget=budget, attempts=1000)
    zombies: list[tuple[int, int, str]] = []
    killed = 0
    while not finished(study.state):
        peer = f"p{rng.randrange(8)}"
        running = [study.trial(number) for number in study.state.running]
        action = rng.random()
        if action < 0.3 or not running:
            study.say(
                peer, TrialCreate(prefer_waiting=True, params={"x": rng.random()}, dists={"x": X}), at=study.state.lsn
            )
        elif killed < kills and action < 0.75:
            trial = rng.choice(running)
            zombies.append((trial.number, trial.epoch, trial.owner or ""))
            study.say(peer, TrialReclaim(trial.number, trial.epoch))
            killed += 1
        elif action < 0.95:
            _train(study, rng.choice(running), rng)
        elif action < 0.97:
            trial = rng.choice(running)
            study.say(trial.owner or "", TrialRelease(trial.number, trial.epoch))
        elif action < 0.98:
            trial = rng.choice(running)
            study.say(trial.owner or "", TrialFinish(trial.number, trial.epoch, FAIL, None, "crash"))
        elif zombies and killed >= kills:
            number, epoch, owner = zombies.pop(rng.randrange(len(zombies)))
            study.say(owner, TrialFinish(number, epoch, COMPLETE, (rng.random(),)))
    assert killed == kills
    return study


def _train(study: Herd, trial: Trial, rng: random.Random) -> None:
    """Some steps, and often a pause or the end."""
    assert study.state.configurations.policy is not None
    end = study.state.configurations.policy.max
    if not max(trial.reports, default=-1) >= 0 or rng.random() < 0.5:
        study.resume(trial)
    target = study.state.configurations.pauses_at(trial.number) or end
    begun = max(trial.reports, default=-1) + 1
    until = min(begun + rng.randint(1, 2), target)
    value = float("nan") if rng.random() < 0.05 else rng.random()
    constraint = (None, -1.0, 1.0)[trial.number % 3]
    study.train(trial, until, value, checkpoint=rng.random() < 0.8, constraint=constraint)
    if until < target:
        return
    if target == end:
        study.say(trial.owner or "", TrialFinish(trial.number, trial.epoch, COMPLETE, (rng.random(),)))
    else:
        study.pause(trial)


def _holds_what_was_promised(study: Herd) -> None:
    state = study.state
    configurations = state.configurations
    continued = [trial.continues for trial in state.trials if trial.continues is not None]
    assert len(continued) == len(set(continued)), "a pause was continued twice"
    members: dict[int, list[Trial]] = {}
    for trial in state.trials:
        members.setdefault(configurations.root(trial.number), []).append(trial)
    taking = [root for root, chain in members.items() if any(one.state in (COMPLETE, PRUNED) for one in chain)]
    assert state.used() == len(taking) == state.places()
    for trial in state.trials:
        path = segments(state.trials, trial.number)
        steps = [step for part in path for step in (part.after, part.last)]
        assert steps == sorted(steps), "a schedule goes back"
        source = copied_trial(trial)
        if source is not None:
            assert state.trials[source].paused
            assert 0.0 <= trial.params["x"] <= 1.0
        elif trial.continues is not None:
            assert trial.params == state.trials[trial.continues].params


@pytest.mark.parametrize(("seed", "kills", "size"), [(0, 0, 6), (1, 25, 6), (2, 100, 6), (3, 400, 40)])
def test_every_promise_about_populations_holds_in_a_storm(seed: int, kills: int, size: int) -> None:
    study = _storm(seed, kills, size=size)
    _holds_what_was_promised(study)
    assert snapshot.digest(_replayed(study)) == snapshot.digest(study.state)


def test_a_smaller_budget_is_exact_in_a_storm() -> None:
    study = _storm(4, 50, budget=4)
    assert study.state.used() == 4
    _holds_what_was_promised(study)
