"""What is true of a study whatever is in its log: named predicates on a State, and on a State and the one before it.

    witness = Witness()
    for lsn, commit in log:
        apply(state, lsn, commit)
        witness.look(state)  # raises Violated, with the names of the promises that were broken

`ALWAYS` holds for every single State. What may not happen from one State to the next is in `Witness`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import astuple

from hopaas_p2p.core.configurations import Configurations
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, RUNNING, WAITING, State, Trial

_FINISHED: Final = (COMPLETE, PRUNED, FAIL)


class Violated(AssertionError):
    """A promise about a study's State was broken."""


# --- of any State ------------------------------------------------------------------------------------------------


def numbers_are_dense(state: State) -> bool:
    return [trial.number for trial in state.trials] == list(range(len(state.trials)))


def counts_agree_with_states(state: State) -> bool:
    found = Counter(trial.state for trial in state.trials)
    return state.counts == [found[trial_state] for trial_state in (RUNNING, COMPLETE, PRUNED, FAIL, WAITING)]


def waiting_index_is_exact(state: State) -> bool:
    return set(state.waiting) == {trial.number for trial in state.trials if trial.state is WAITING}


def running_index_is_exact(state: State) -> bool:
    return set(state.running) == {trial.number for trial in state.trials if trial.state is RUNNING}


def running_trials_have_owner_and_epoch(state: State) -> bool:
    return all(t.owner is not None and t.epoch >= 1 for t in state.trials if t.state is RUNNING)


def waiting_trials_have_no_owner(state: State) -> bool:
    return all(t.owner is None and t.stop is None for t in state.trials if t.state is WAITING)


def only_finished_trials_have_an_end(state: State) -> bool:
    return all((t.end is not None) == (t.state in _FINISHED) for t in state.trials)


def complete_trials_have_a_number_per_direction(state: State) -> bool:
    width = len(state.define.directions) if state.define else 0
    return all(
        t.values is not None and len(t.values) == width and all(value == value for value in t.values)  # noqa: PLR0124
        for t in state.trials
        if t.state is COMPLETE
    )


def there_is_one_value_per_direction(state: State) -> bool:
    width = len(state.define.directions) if state.define else 0
    return all(trial.values is None or len(trial.values) == width for trial in state.trials)


def every_parameter_has_a_distribution(state: State) -> bool:
    return all(name in t.dists or name in state.dists for t in state.trials for name in t.params)


def a_lease_passes_but_once(state: State) -> bool:
    """The epochs of a trial's earlier owners rise, and none of them is the present one's."""
    for trial in state.trials:
        epochs = [tenure.epoch for tenure in trial.history]
        if epochs != sorted(set(epochs)):
            return False
        if trial.state is RUNNING and epochs and epochs[-1] >= trial.epoch:
            return False
    return True


def retries_and_their_origins_agree(state: State) -> bool:
    for trial in state.trials:
        if trial.retried_by is not None and state.trials[trial.retried_by].retry_of != trial.number:
            return False
        if trial.retry_of is not None:
            origin = state.trials[trial.retry_of]
            if origin.retried_by != trial.number or trial.attempt != origin.attempt + 1:
                return False
    return True


def attempts_are_limited(state: State) -> bool:
    return all(trial.attempt <= max(1, state.policy.attempts) for trial in state.trials)


def a_late_result_is_kept_once(state: State) -> bool:
    kept = [tenure.kept_as for t in state.trials for tenure in t.history if tenure.kept_as is not None]
    late = [trial.number for trial in state.trials if trial.late_of is not None]
    return sorted(kept) == late


def the_ledger_follows_the_trials(state: State) -> bool:
    """Every running trial has an open lease in it, and nothing is booked as running or given back but what is."""
    ledger = state.ledger
    booked = Counter[str]()
    for account in ledger.accounts.values():
        booked[account.outcome] += account.leases
    return (
        ledger.open.keys() == set(state.running)
        and ledger.given_back.keys() <= {*state.waiting, *state.running}
        and booked["running"] == sum(lease.booked for lease in ledger.open.values())
        and booked["given back"] == sum(map(len, ledger.given_back.values()))
        and all(min(astuple(account.cost)) >= 0 for account in ledger.accounts.values())
    )


def a_pause_is_continued_once(state: State) -> bool:
    """Also what failed in a population; there, others may copy a pause as often as they like."""
    continued = [trial.continues for trial in state.trials if trial.continues is not None]
    may_fail = state.configurations.population is not None
    ends = [state.trials[number] for number in continued]
    return len(continued) == len(set(continued)) and all(
        one.paused or (may_fail and one.state is FAIL and one.retried_by is None) for one in ends
    )


def configurations_follow_from_the_trials(state: State) -> bool:
    """Rungs that are derived anew from the trials, as from a snapshot, decide as those that were kept."""
    kept, maximize = state.configurations, state.define is not None and state.define.directions[0] == "maximize"
    if not isinstance(kept, Configurations):
        return True
    anew = Configurations(kept.policy, maximize=maximize)
    anew.refresh(state.trials)
    found = [
        (one.used(state.counts), one.resumable, one.standings.places(), one.promoted(room=False, running=True))
        for one in (anew, kept)
    ]
    return found[0] == found[1]


ALWAYS: Final[tuple[Callable[[State], bool], ...]] = (
    numbers_are_dense,
    counts_agree_with_states,
    waiting_index_is_exact,
    running_index_is_exact,
    running_trials_have_owner_and_epoch,
    waiting_trials_have_no_owner,
    only_finished_trials_have_an_end,
    complete_trials_have_a_number_per_direction,
    there_is_one_value_per_direction,
    every_parameter_has_a_distribution,
    a_lease_passes_but_once,
    retries_and_their_origins_agree,
    attempts_are_limited,
    a_late_result_is_kept_once,
    a_pause_is_continued_once,
    configurations_follow_from_the_trials,
    the_ledger_follows_the_trials,
)


def check(state: State) -> None:
    """Check a State against `ALWAYS`.

    Raises:
        Violated: with the names of the predicates that are false.

    """
    broken = [predicate.__name__ for predicate in ALWAYS if not predicate(state)]
    if broken:
        raise Violated(f"at lsn {state.lsn}: not true that {', '.join(broken)}")


# --- from one State to the next ----------------------------------------------------------------------------------


class Witness:
    """Checks a State after every commit, and remembers enough to see what may not change."""

    def __init__(self) -> None:
        self._lsn = 0
        self._used = 0
        self._budget: int | None = None
        self._trials = 0
        self._epochs: dict[int, int] = {}
        self._owners: dict[tuple[int, int], str] = {}
        self._finished: dict[int, bytes] = {}

    def look(self, state: State) -> None:
        """Check `state` against `ALWAYS` and against the State before it.

        Raises:
            Violated: with the names of the promises that were broken.

        """
        check(state)
        promises = {
            "the lsn never falls": state.lsn >= self._lsn,
            "trials are never removed": len(state.trials) >= self._trials,
            "epochs only rise": all(state.trials[number].epoch >= epoch for number, epoch in self._epochs.items()),
            "a trial has one owner per epoch": all(
                self._owners.get(lease, owner) == owner for lease, owner in _leases(state).items()
            ),
            "finished trials never change": all(
                _facts(state.trials[number]) == facts for number, facts in self._finished.items()
            ),
            "the budget is never exceeded": self._within_budget(state),
        }
        broken = [promise for promise, kept in promises.items() if not kept]
        if broken:
            raise Violated(f"at lsn {state.lsn}: not true that {', '.join(broken)}")
        self._remember(state)

    def _within_budget(self, state: State) -> bool:
        """A budget may be lowered below what was used already; from then on, use may only fall."""
        if state.budget is None:
            return True
        before = math.inf if self._budget is None else self._budget
        return state.used() <= max(state.budget, self._used, before if state.budget < before else 0)

    def _remember(self, state: State) -> None:
        self._lsn, self._used, self._trials = state.lsn, state.used(), len(state.trials)
        self._budget = state.budget
        self._epochs = {trial.number: trial.epoch for trial in state.trials}
        self._owners.update(_leases(state))
        for trial in state.trials:
            if trial.state in _FINISHED and trial.number not in self._finished:
                self._finished[trial.number] = _facts(trial)


def _leases(state: State) -> dict[tuple[int, int], str]:
    """The owner of each lease of a running trial, by (trial, epoch)."""
    running = (state.trials[number] for number in state.running)
    return {(trial.number, trial.epoch): trial.owner for trial in running if trial.owner is not None}


def _facts(trial: Trial) -> bytes:
    """Everything about a finished trial except where a late result of it is kept."""
    history = [msgspec.structs.replace(tenure, kept_as=None) for tenure in trial.history]
    return msgspec.msgpack.encode(msgspec.structs.replace(trial, history=history), enc_hook=dict)
