"""Who is promoted from which rung: the rule alone, without a store."""

from __future__ import annotations

import math
import random

import pytest

from hopaas_p2p.core.fidelity import Rungs
from hopaas_p2p.core.standings import RungStanding
from tests.support.ladder import EventLadder

NINE = Rungs(min=1, max=9, eta=3)


def _reached(ladder: EventLadder, number: int, epochs: int, value: float) -> None:
    ladder.report(number, epochs, value)
    ladder.pause(number)


def _first_wave(values: list[float], policy: Rungs = NINE) -> EventLadder:
    ladder = EventLadder(policy)
    for number, value in enumerate(values):
        ladder.admit(number)
        _reached(ladder, number, 1, value)
    return ladder


def test_rungs_are_powers_of_eta_below_the_whole_training() -> None:
    assert Rungs(min=1, max=27, eta=3).levels == (1, 3, 9)
    assert Rungs(min=2, max=27, eta=3).levels == (2, 6, 18)
    assert Rungs(min=1, max=28, eta=3).levels == (1, 3, 9, 27)


def test_nobody_is_promoted_before_eta_have_reached_the_rung() -> None:
    assert _first_wave([0.1, 0.2]).best() is None
    assert _first_wave([0.3, 0.1, 0.2]).best() == 1


def test_a_rung_promotes_the_best_third_of_all_that_reached_it() -> None:
    ladder = _first_wave([0.5, 0.1, 0.4, 0.2, 0.3, 0.6])
    promoted = []
    while (best := ladder.best()) is not None:
        promoted.append(best)
        ladder.promote(best)
    assert promoted == [1, 3]


def test_those_that_run_at_a_rung_are_compared_with_too() -> None:
    ladder = _first_wave([0.3, 0.2])
    ladder.admit(2)
    ladder.report(2, 1, 0.1)  # the best, which has not paused yet
    assert ladder.best() is None
    ladder.pause(2)
    assert ladder.best() == 2


def test_the_highest_rung_comes_first() -> None:
    ladder = _first_wave([float(one) for one in range(9)])
    for number in (0, 1, 2):
        assert ladder.best() == number
        ladder.promote(number)
        assert ladder.pauses_at(number) == 3
        _reached(ladder, number, 3, float(number))
    for number in (20, 21, 22):
        ladder.admit(number)
        _reached(ladder, number, 1, float(number) - 30)
    assert ladder.best() == 0  # on the rung at 3, though better ones wait at 1
    ladder.promote(0)
    assert ladder.pauses_at(0) is None
    assert ladder.best() == 20


def test_large_values_are_good_where_the_study_maximizes() -> None:
    ladder = EventLadder(NINE, maximize=True)
    for number, value in enumerate((0.1, 0.3, 0.2)):
        ladder.admit(number)
        _reached(ladder, number, 1, value)
    assert ladder.best() == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_diverged_is_never_promoted(value: float) -> None:
    ladder = _first_wave([value, value, value])
    assert ladder.best() is None
    assert ladder.best(closing=True) is None
    ladder.place(0, RungStanding((0.5,), 0, waits=True))
    assert ladder.best() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_diverged_ranks_behind_what_violates_its_constraints(value: float) -> None:
    ladder = _first_wave([value, 0.5])
    ladder.place(1, RungStanding((0.5,), 0, waits=True, infeasible=True))
    assert ladder.best(closing=True) == 1
    assert ladder.may_be_promoted(1, most=2)


def test_a_small_study_ends_with_one_whole_training() -> None:
    ladder = _first_wave([0.2, 0.1])
    assert ladder.best() is None
    assert ladder.best(closing=True) == 1
    ladder.promote(1)
    assert ladder.best(closing=True) is None  # the best of the rung is on its way
    _reached(ladder, 1, 3, 0.05)
    assert ladder.best(closing=True) == 1


def test_a_report_that_passes_two_rungs_counts_on_both() -> None:
    ladder = EventLadder(NINE)
    ladder.admit(0)
    _reached(ladder, 0, 5, 0.1)
    assert [place.reached for place in ladder.places()] == [1, 1]
    assert [place.waiting for place in ladder.places()] == [0, 1]


def _whole(ladder: EventLadder, number: int, values: tuple[float, ...], end: float) -> None:
    """Trained to the end, with these values at the rungs."""
    ladder.admit(number)
    for level, value in zip(ladder.policy.levels, values, strict=True):
        ladder.report(number, level, value)
    ladder.end(number, end)


HEDGED = Rungs(min=1, max=9, eta=3, brackets=3, whole=4)


def _after(policy: Rungs, *curves: tuple[tuple[float, ...], float]) -> EventLadder:
    ladder = EventLadder(policy)
    for number, (values, end) in enumerate(curves):
        _whole(ladder, number, values, end)
    return ladder


RIGHT = (((0.1, 0.1), 0.1), ((0.2, 0.2), 0.2), ((0.3, 0.3), 0.3), ((0.4, 0.4), 0.4))
LATE = (((0.4, 0.1), 0.1), ((0.3, 0.2), 0.2), ((0.2, 0.3), 0.3), ((0.1, 0.4), 0.4))


def test_with_three_brackets_none_pauses_until_some_were_trained_to_the_end() -> None:
    ladder = _after(HEDGED, *RIGHT[:3])
    ladder.admit(3)
    assert ladder.brackets[3] == 0
    assert ladder.pauses_at(3) is None
    assert ladder.may_pause_at(3) == 1
    ladder.report(3, 1, 0.4)
    ladder.report(3, 3, 0.4)
    ladder.end(3, 0.4)
    for number in range(4, 7):
        ladder.admit(number)
    assert [ladder.pauses_at(number) for number in range(4, 7)] == [3, None, 1]


def test_before_there_is_proof_no_rung_misleads_and_those_that_come_later_pause() -> None:
    ladder = _after(HEDGED, *LATE[:3])
    for number in range(3, 40):
        ladder.admit(number)
    assert not any(place.passed for place in ladder.places())
    assert ladder.pauses_at(30) is None
    assert ladder.brackets[33] == 0
    assert ladder.pauses_at(33) == 1


def test_two_brackets_pause_from_the_first_on() -> None:
    ladder = EventLadder(Rungs(min=1, max=9, eta=3, brackets=2))
    ladder.admit(0)
    assert ladder.pauses_at(0) == 1


def test_a_rung_where_the_best_at_the_end_stood_behind_is_passed() -> None:
    ladder = _after(HEDGED, *LATE)
    for number in range(4, 7):
        ladder.admit(number)
    assert [ladder.brackets[number] for number in range(4, 7)] == [1, 2, 0]
    assert ladder.pauses_at(6) == 3
    assert [bool(place.passed) for place in ladder.places()] == [True, False, False]


def test_what_waits_at_a_rung_that_misleads_goes_on_as_it_began() -> None:
    ladder = _after(HEDGED, *LATE[:3])
    for number, value in ((3, 0.9), (6, 0.1), (9, 0.5)):  # paused where none needs to, by another peer's word
        while len(ladder.brackets) <= number:
            ladder.admit(len(ladder.brackets))
        _reached(ladder, number, 1, value)
    _whole(ladder, 10, *LATE[3])
    for number in (3, 6, 9):
        assert ladder.best() == number
        assert ladder.may_be_promoted(number, most=11)
        ladder.promote(number)


def test_without_whole_trainings_first_no_rung_is_passed() -> None:
    ladder = _after(Rungs(min=1, max=9, eta=3, brackets=3, whole=0), *LATE)
    assert not any(place.passed for place in ladder.places())


def test_rungs_count_again_when_more_show_that_they_tell_the_end() -> None:
    ladder = _after(HEDGED, *LATE)
    for number in range(4, 20):
        _whole(ladder, number, (number / 100, 0.5), number / 100)
    ladder.admit(20)
    ladder.admit(21)
    assert ladder.pauses_at(21) == 1


def test_what_was_promoted_says_nothing_of_rungs() -> None:
    """It was among the best there, so it cannot show that the rung misleads."""
    ladder = _after(HEDGED, *RIGHT)
    for number in range(4, 40):
        ladder.admit(number)
        if ladder.brackets[number] == 0:
            _reached(ladder, number, 1, 1.0 - number / 100)
            ladder.promote(number)
            ladder.report(number, 3, number / 100)
            ladder.end(number, number / 100)
    assert not any(place.passed for place in ladder.places())


def test_brackets_get_configurations_by_turns() -> None:
    ladder = EventLadder(Rungs(min=1, max=27, eta=3, brackets=4))
    for number in range(6):
        ladder.admit(number)
    assert list(ladder.brackets.values()) == [0, 1, 2, 3, 0, 1]


def test_the_last_bracket_pauses_nowhere() -> None:
    ladder = EventLadder(Rungs(min=1, max=9, eta=3, brackets=3, whole=0))
    for number in range(6):
        ladder.admit(number)
    assert [ladder.pauses_at(number) is None for number in range(6)] == [False, False, True] * 2


@pytest.mark.parametrize("brackets", [2, 3])
def test_a_ladder_made_anew_decides_as_one_that_was_kept(brackets: int) -> None:
    rng = random.Random(5)
    policy = Rungs(min=1, max=27, eta=3, brackets=brackets)
    kept = EventLadder(policy)
    for number in range(2000):
        kept.admit(number)
        for _ in range(2):
            one = rng.randrange(number + 1)
            epochs = kept.may_pause_at(one)
            if epochs is not None and not kept.standing(one).waits:
                _reached(kept, one, epochs, rng.choice([rng.random(), math.nan]))
        if rng.random() < 0.7 and (best := kept.best()) is not None:
            kept.promote(best)
        if rng.random() < 0.05:
            kept.end(rng.randrange(number + 1), rng.random())
    again = EventLadder(policy)
    for number in range(2000):
        again.admit(number)
    assert again.brackets == kept.brackets
    for number in rng.sample(range(2000), 2000):
        again.place(number, kept.standing(number))
    assert again.places() == kept.places()
    while (best := kept.best()) is not None:
        assert again.best() == best
        kept.promote(best)
        again.promote(best)
    assert again.best() is None


@pytest.mark.parametrize(
    "policy",
    [Rungs(min=0), Rungs(min=27, max=27), Rungs(eta=1), Rungs(brackets=0), Rungs(brackets=5), Rungs(first_step=2)],
)
def test_impossible_rungs_are_said_to_be(policy: Rungs) -> None:
    assert policy.impossible()


def test_the_default_rungs_are_possible() -> None:
    assert Rungs().impossible() is None
