"""Pauses and continuations, as the log decides them: one configuration is one chain of trials."""

from __future__ import annotations

import itertools
import random

import pytest

from hopaas_p2p.core import snapshot
from hopaas_p2p.core.admission import finished, next_start
from hopaas_p2p.core.attributes import FIDELITY
from hopaas_p2p.core.fidelity import Rungs, encode_fidelity
from hopaas_p2p.core.records import StudySet, TrialFinish, TrialReclaim, TrialRelease
from hopaas_p2p.core.state import Trial
from tests.support.campaign import NINE, Campaign
from tests.support.scribe import COMPLETE, FAIL, PRUNED, RUNNING, WAITING, Scribe, defined


def test_an_ask_goes_on_with_the_best_that_waits() -> None:
    study = Campaign()
    study.first_rung(0.3, 0.1, 0.2)
    trial = study.start("other")
    assert (trial.continues, trial.params, trial.reports) == (1, {"x": 0.5}, {0: 0.1})
    assert trial.checkpoints[-1].key == "k1-1"
    assert trial.state is RUNNING
    assert study.trial(1).state is PRUNED  # as every sampler expects
    assert study.start("another").continues is None  # one of three is promoted


def test_who_violates_its_constraints_is_promoted_behind_all_who_do_not() -> None:
    study = Campaign()
    started = [study.start(f"p{index}") for index in range(9)]
    values = [0.1, 0.9, 0.3, 0.2, 0.8, 0.7, 0.6, 0.5, 0.4]
    for trial, value in zip(started, values, strict=True):
        study.train(trial, 1, value, constraint=1.0 if trial.number in (0, 2, 3, 4, 5, 6, 7) else -1.0)
        study.pause(trial)

    continued = [study.start(f"q{index}").continues for index in range(4)]

    assert continued == [8, 1, 0, None]  # the two that satisfy them, then the best of the others; a third in all


def test_a_study_in_which_all_violate_their_constraints_still_ends_with_a_whole_training() -> None:
    study = Campaign(budget=2)
    for value in (0.2, 0.1):
        trial = study.start("p")
        study.train(trial, 1, value, constraint=1.0)
        study.pause(trial)

    assert study.start("p").continues == 1


def test_a_continuation_that_satisfies_its_constraints_ranks_by_its_value_again() -> None:
    study = Campaign(Rungs(min=1, max=4, eta=2))
    for trial, constraint in zip([study.start("a"), study.start("b")], (1.0, 2.0), strict=True):
        study.train(trial, 1, 0.1 + trial.number, constraint=constraint)
        study.pause(trial)
    again = study.start("c")
    assert study.state.configurations.standing(0).infeasible
    study.train(again, 2, 0.1, constraint=-1.0)
    study.pause(again)

    assert not study.state.configurations.standing(0).infeasible
    assert study.state.configurations.standing(1).infeasible


def test_an_ask_in_the_commit_of_a_pause_sees_it() -> None:
    study = Campaign()
    study.first_rung(0.3, 0.2)
    third = study.start("p2")
    study.train(third, 1, 0.1)
    verdict = study.ask("p2", TrialFinish(third.number, third.epoch, PRUNED, None, None, True))
    assert study.trial(verdict.number or 0).continues == third.number


def test_a_pruned_trial_that_did_not_pause_is_not_continued() -> None:
    study = Campaign()
    for value in (0.1, 0.2, 0.3):
        trial = study.start("p")
        study.train(trial, 1, value)
        study.say("p", TrialFinish(trial.number, trial.epoch, PRUNED, None, "its loss explodes"))
    assert study.start("p").continues is None


def test_a_pause_below_the_rung_is_an_end() -> None:
    study = Campaign(Rungs(min=3, max=9, eta=3))
    trial = study.start("p")
    study.train(trial, 2, 0.1)
    study.pause(trial)
    assert not study.trial(trial.number).paused


def test_a_continuation_pauses_at_the_next_rung_and_completes_after_the_last() -> None:
    study = Campaign(budget=3)
    study.first_rung(0.3, 0.1, 0.2)
    for epochs in (3, None):
        trial = study.start("p")
        assert study.state.configurations.pauses_at(trial.number) == epochs
        if epochs is not None:
            study.train(trial, epochs, 0.1)
            study.pause(trial)
    study.train(trial, 9, 0.05)
    assert study.say("p", TrialFinish(trial.number, trial.epoch, COMPLETE, (0.05,))).accepted
    assert finished(study.state)
    assert study.ask("p").refusal == "budget"


def test_with_three_brackets_trials_pause_once_some_have_shown_that_rungs_tell_the_end() -> None:
    study = Campaign(Rungs(min=1, max=9, eta=3, brackets=3, whole=2))
    configurations = study.state.configurations
    first, second, third = (study.start(peer) for peer in "abc")
    for trial, value in ((first, 0.1), (second, 0.2)):
        study.train(trial, 9, value)
        assert configurations.pauses_at(third.number) is None
        study.say(trial.owner or "", TrialFinish(trial.number, trial.epoch, COMPLETE, (value,)))
    study.train(third, 2, 0.5)
    fourth = study.start("d")
    assert [configurations.pauses_at(trial.number) for trial in (third, fourth)] == [None, 1]  # brackets 2 and 0
    again = snapshot.load(snapshot.dump(study.state)).configurations
    assert again is not None
    assert again.pauses_at(fourth.number) == 1


def test_a_pause_counts_though_its_rung_is_passed_by_now() -> None:
    """The peer that paused did not know yet."""
    study = Campaign(Rungs(min=1, max=9, eta=3, brackets=3, whole=1000))
    trial = study.start("p")
    study.train(trial, 1, 0.5)
    study.pause(trial)
    assert study.trial(trial.number).paused


def test_the_budget_counts_configurations() -> None:
    study = Campaign(budget=3)
    study.first_rung(0.3, 0.1, 0.2)
    assert study.state.used() == 3
    assert study.start("p").continues == 1
    assert study.state.used() == 3
    assert study.ask("q").refusal == "budget"
    assert study.state.counts[PRUNED] + study.state.counts[RUNNING] == 4


def test_nothing_is_promoted_for_want_of_others_while_others_still_run() -> None:
    study = Campaign(budget=3)
    first, second = study.start("a"), study.start("b")
    third = study.start("c")
    for trial, value in ((first, 0.1), (second, 0.2)):
        study.train(trial, 1, value)
        study.pause(trial)
    assert study.ask("a").refusal == "budget"  # two of three eta have come
    study.say("c", TrialFinish(third.number, third.epoch, FAIL, None, "crash"))
    new = study.start("a")  # its place is free
    study.say("a", TrialFinish(new.number, new.epoch, COMPLETE, (0.5,)))
    assert study.start("a").continues == first.number  # nobody runs, nobody comes


def test_a_retry_of_a_continuation_counts_once_and_keeps_its_bracket() -> None:
    study = Campaign(Rungs(min=1, max=9, eta=3, brackets=2), budget=4)
    ladder = study.state.configurations
    study.first_rung(*[0.1] * 4)
    waiting = [number for number in range(4) if study.trial(number).paused]
    trial = study.start("p")
    assert trial.continues in waiting
    study.train(trial, 3, 0.1)
    before = ladder.places()
    study.say("q", TrialReclaim(trial.number, trial.epoch))
    assert ladder.places() == before
    retry = study.start("r")  # though the budget is used up: its configuration has its place
    assert retry.retry_of == trial.number
    assert ladder.root(retry.number) == trial.continues
    assert retry.number not in ladder.brackets
    study.train(retry, 3, 0.9)
    assert ladder.places() == before
    study.pause(retry)
    assert study.state.used() == 4


def test_a_continuation_that_fails_is_not_promoted_again() -> None:
    study = Campaign(budget=3)
    study.first_rung(0.3, 0.1, 0.2)
    trial = study.start("p")
    study.say("p", TrialFinish(trial.number, trial.epoch, FAIL, None, "crash"))
    assert study.state.used() == 3
    assert study.start("p").continues == 2  # the next best: what failed ranks behind all others


def test_a_late_result_belongs_to_its_configuration() -> None:
    study = Campaign(budget=3)
    study.first_rung(0.3, 0.1, 0.2)
    trial = study.start("zombie")
    study.train(trial, 3, 0.1)
    study.say("q", TrialReclaim(trial.number, 1))
    verdict = study.say("zombie", TrialFinish(trial.number, 1, COMPLETE, (0.05,)))
    assert verdict.refusal == "late"
    assert study.trial(verdict.number or 0).state is COMPLETE
    assert study.state.used() == 3
    assert study.ask("q").refusal == "budget"


def test_a_continuation_without_a_checkpoint_begins_anew_and_pauses_at_the_next_rung() -> None:
    study = Campaign()
    for value in (0.3, 0.1, 0.2):
        trial = study.start("p")
        study.train(trial, 1, value, checkpoint=False)
        study.pause(trial)
    trial = study.start("p")
    assert (trial.continues, trial.reports) == (1, {})
    assert study.state.configurations.pauses_at(trial.number) == 3


def test_a_released_continuation_comes_before_all_others() -> None:
    study = Campaign(budget=6)
    study.first_rung(0.3, 0.1, 0.2, 0.4, 0.5, 0.15)
    trial = study.start("p")
    study.say("p", TrialRelease(trial.number, trial.epoch, reason="pre-empted"))
    assert study.trial(trial.number).state is WAITING
    assert study.start("q").number == trial.number


def test_new_rungs_sort_all_trials_anew() -> None:
    study = Campaign()
    study.first_rung(0.3, 0.1, 0.2)
    study.say("founder", StudySet(system={FIDELITY: encode_fidelity(Rungs(min=2, max=9, eta=3))}))
    assert study.start("p").continues == 0  # they stopped before the first rung there is now, and all go on
    study.say("founder", StudySet(system={FIDELITY: "null"}))
    assert study.start("p").continues is None


def test_only_owners_set_rungs_and_only_possible_ones_are_taken() -> None:
    study = Scribe(defined())
    said = StudySet(system={FIDELITY: encode_fidelity(NINE)})
    assert study.say("p", said, role="worker").refusal == "role"
    assert study.say("p", StudySet(system={FIDELITY: '{"type":"rungs","eta":1}'})).refusal == "malformed"
    assert study.say("p", StudySet(system={FIDELITY: "[1]"})).refusal == "malformed"
    assert study.state.configurations.policy is None


def _storm(seed: int, steps: int, *, budget: int = 60, brackets: int = 2) -> tuple[Campaign, int]:
    """Peers that train, pause, die, come back late, and keep few checkpoints; the study, and how many were killed."""
    rng = random.Random(seed)
    study = Campaign(Rungs(min=1, max=9, eta=3, brackets=brackets), budget=budget, attempts=3)
    zombies: list[tuple[int, int, str]] = []
    kills = 0
    for step in range(steps):
        peer = f"p{rng.randrange(12)}"
        action = rng.random()
        running = [study.trial(number) for number in study.state.running]
        if action < 0.4 or not running:
            study.ask(peer)
        elif action < 0.85:
            trial = rng.choice(running)
            configurations = study.state.configurations
            target = configurations.pauses_at(trial.number)
            begun = max(trial.reports, default=-1) + 1
            until = min(begun + rng.randint(1, 4), 9 if target is None else max(begun, target))
            constraint = None if rng.random() < 0.5 else rng.random() - 0.5
            study.train(trial, until, rng.random(), checkpoint=rng.random() < 0.7, constraint=constraint)
            if target is not None and until >= target:
                study.pause(trial)
            elif until == 9:
                study.say(trial.owner or "", TrialFinish(trial.number, trial.epoch, COMPLETE, (rng.random(),)))
        elif action < 0.95:
            trial = rng.choice(running)
            zombies.append((trial.number, trial.epoch, trial.owner or ""))
            study.say(peer, TrialReclaim(trial.number, trial.epoch))
            kills += 1
        elif action < 0.97:
            trial = rng.choice(running)
            study.say(trial.owner or "", TrialRelease(trial.number, trial.epoch))
        elif zombies:
            number, epoch, owner = zombies.pop(rng.randrange(len(zombies)))
            study.say(owner, TrialFinish(number, epoch, COMPLETE, (rng.random(),)))
        if step % 50 == 0:
            _same_after_a_restart(study)
    return study, kills


def _same_after_a_restart(study: Campaign) -> None:
    again = snapshot.load(snapshot.dump(study.state))
    mine, theirs = study.state.configurations, again.configurations
    assert theirs.places() == mine.places()
    roots = {mine.root(trial.number) for trial in study.state.trials}
    assert all(repr(theirs.standing(root)) == repr(mine.standing(root)) for root in roots)
    assert (again.used(), theirs.resumable) == (study.state.used(), mine.resumable)
    assert next_start(again) == next_start(study.state)


def _holds_what_was_promised(study: Campaign, budget: int) -> None:
    state = study.state
    continued = [trial.continues for trial in state.trials if trial.continues is not None]
    assert len(continued) == len(set(continued)), "a pause was promoted twice"
    chains: dict[int, list[Trial]] = {}
    for trial in state.trials:
        chains.setdefault(state.configurations.root(trial.number), []).append(trial)
    taking = [root for root, chain in chains.items() if any(one.state in (COMPLETE, PRUNED, RUNNING) for one in chain)]
    assert state.used() == len(taking) <= budget
    places = state.configurations.places()
    assert sum(place.waiting for place in places) <= len(chains)
    ladder = state.configurations
    for place in places:
        bracket = [root for root in chains if ladder.brackets[root] == place.bracket]
        at = ladder.policy.levels.index(place.epochs)
        assert place.reached == sum(len(ladder.standing(root).reached) > at for root in bracket)
    assert chains.keys() == ladder.brackets.keys()
    promotions: dict[tuple[int, int], int] = {}
    for chain in chains.values():
        for trial in chain:
            if trial.continues is not None:
                rung = len(ladder.standing(state.configurations.root(trial.number)).reached)
                promotions[trial.continues, rung] = promotions.get((trial.continues, rung), 0) + 1
    assert all(count == 1 for count in promotions.values())


@pytest.mark.parametrize("brackets", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_every_promise_about_configurations_holds_in_a_storm(seed: int, brackets: int) -> None:
    study, kills = _storm(seed, 500, brackets=brackets)
    assert kills > 10
    _same_after_a_restart(study)
    _holds_what_was_promised(study, 60)


@pytest.mark.soak
def test_every_promise_about_configurations_holds_after_a_thousand_kills() -> None:
    kills = 0
    for seed, brackets in itertools.product(range(12), (1, 2, 3)):
        study, killed = _storm(seed, 500, brackets=brackets)
        _same_after_a_restart(study)
        _holds_what_was_promised(study, 60)
        kills += killed
    assert kills >= 1000
