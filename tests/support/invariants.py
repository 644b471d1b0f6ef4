"""Invariants of a study, whatever its log contains: of a State, and of a State and its predecessor.

    witness = Witness()
    for lsn, commit in log:
        apply(state, lsn, commit)
        witness.look(state)  # raises Violated, with the promises that were broken

`broken` checks a single State. `Witness` checks the step from one State to the next.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

import msgspec
from msgspec.structs import astuple, replace

from hopaas_p2p.core.configurations import Configurations
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, RUNNING, WAITING, State, Trial

_FINISHED: Final = (COMPLETE, PRUNED, FAIL)


class Violated(AssertionError):
    """A promise about a study's State was broken."""


def broken(state: State) -> list[str]:
    """The invariants that this State violates."""
    trials, ledger, define = list(state.trials), state.ledger, state.define
    width = len(define.directions) if define else 0
    counts = Counter(one.state for one in trials)
    of = {word: [one for one in trials if one.state is word] for word in (RUNNING, COMPLETE, PRUNED, FAIL, WAITING)}
    epochs = {one.number: [tenure.epoch for tenure in one.history] for one in trials}
    retries = [(one, trials[one.retry_of]) for one in trials if one.retry_of is not None]
    kept = [tenure.kept_as for one in trials for tenure in one.history if tenure.kept_as is not None]
    continued = [one.continues for one in trials if one.continues is not None]
    in_population = state.configurations.population is not None  # what failed is continued too, and a pause is copied
    booked = Counter[str]()
    for (_, _, outcome), cost in ledger.accounts.items():
        booked[outcome] += cost.leases
    promises = {
        "numbers are dense": [one.number for one in trials] == list(range(len(trials))),
        "counts agree with states": state.counts == [counts[word] for word in of],
        "the index of waiting trials is exact": set(state.waiting) == {one.number for one in of[WAITING]},
        "the index of running trials is exact": set(state.running) == {one.number for one in of[RUNNING]},
        "running trials have an owner and an epoch": all(t.owner is not None and t.epoch >= 1 for t in of[RUNNING]),
        "waiting trials have no owner": all(t.owner is None and t.stop is None for t in of[WAITING]),
        "only finished trials have an end": all((t.end is not None) == (t.state in _FINISHED) for t in trials),
        "complete trials have a number per direction": all(
            one.values is not None and len(one.values) == width and not any(map(math.isnan, one.values))
            for one in of[COMPLETE]
        ),
        "there is one value per direction": all(one.values is None or len(one.values) == width for one in trials),
        "every parameter has a distribution": all(
            name in one.dists or name in state.dists for one in trials for name in one.params
        ),
        "a lease passes but once": all(some == sorted(set(some)) for some in epochs.values())
        and all(one.epoch > max(epochs[one.number], default=0) for one in of[RUNNING]),
        "retries and their origins agree": all(
            origin.retried_by == one.number and one.attempt == origin.attempt + 1 for one, origin in retries
        )
        and all(trials[one.retried_by].retry_of == one.number for one in trials if one.retried_by is not None),
        "attempts are limited": all(one.attempt <= max(1, state.policy.attempts) for one in trials),
        "a late result is kept once": sorted(kept) == [one.number for one in trials if one.late_of is not None],
        "a pause is continued once": len(continued) == len(set(continued))
        and all(
            one.paused or (in_population and one.state is FAIL and one.retried_by is None)
            for one in map(trials.__getitem__, continued)
        ),
        "configurations follow from the trials": _follow_from_the_trials(state),
        "every running trial has an open lease in the ledger": ledger.open.keys() == set(state.running),
        "only what is given back is kept as such": ledger.given_back.keys() <= {*state.waiting, *state.running},
        "running leases are booked as such": booked["running"]
        == sum(map(bool, [one.booked for one in ledger.open.values()])),
        "what is given back is booked as such": booked["given back"] == sum(map(len, ledger.given_back.values())),
        "the price of all accounts is known": replace(ledger).bill == ledger.bill,
        "no cost is negative": all(min(astuple(cost)) >= 0 for cost in ledger.accounts.values()),
    }
    return [promise for promise, holds in promises.items() if not holds]


def _follow_from_the_trials(state: State) -> bool:
    """Rungs derived anew from the trials, as from a snapshot, decide the same as those updated incrementally."""
    kept, maximize = state.configurations, state.define is not None and state.define.directions[0] == "maximize"
    if not isinstance(kept, Configurations):
        return True
    anew = type(kept)(kept.policy, maximize=maximize)
    anew.refresh(state.trials, set())
    found = [
        (one.used(state.counts), one.resumable, one.places(), one.promoted(room=False, running=True))
        for one in (anew, kept)
    ]
    return found[0] == found[1]


def check(state: State) -> None:
    """Raises Violated if anything is `broken`."""
    if wrong := broken(state):
        raise Violated(f"at lsn {state.lsn}: not true that {', '.join(wrong)}")


class Witness:
    """Checks a State after every commit, and remembers enough to detect forbidden changes."""

    def __init__(self) -> None:
        self._lsn = self._used = self._trials = 0
        self._budget: int | None = None
        self._epochs: dict[int, int] = {}
        self._owners: dict[tuple[int, int], str] = {}
        self._finished: dict[int, bytes] = {}

    def look(self, state: State) -> None:
        """Check a State by itself and against the one before it.

        Raises:
            Violated: with the promises that were broken.

        """
        check(state)
        running = (state.trials[number] for number in state.running)
        leases = {(trial.number, trial.epoch): trial.owner for trial in running if trial.owner is not None}
        before = math.inf if self._budget is None else self._budget
        promises = {
            "the lsn never falls": state.lsn >= self._lsn,
            "trials are never removed": len(state.trials) >= self._trials,
            "epochs only rise": all(state.trials[number].epoch >= epoch for number, epoch in self._epochs.items()),
            "a trial has one owner per epoch": all(
                self._owners.get(lease, owner) == owner for lease, owner in leases.items()
            ),
            "finished trials never change": all(
                _facts(state.trials[number]) == facts for number, facts in self._finished.items()
            ),
            # it may be lowered below the amount used; from then on, use may only fall
            "the budget is never exceeded": state.budget is None
            or state.used() <= max(state.budget, self._used, before if state.budget < before else 0),
        }
        if wrong := [promise for promise, kept in promises.items() if not kept]:
            raise Violated(f"at lsn {state.lsn}: not true that {', '.join(wrong)}")
        self._lsn, self._used, self._trials, self._budget = state.lsn, state.used(), len(state.trials), state.budget
        self._epochs = {trial.number: trial.epoch for trial in state.trials}
        self._owners |= leases
        for trial in state.trials:
            if trial.state in _FINISHED and trial.number not in self._finished:
                self._finished[trial.number] = _facts(trial)


def _facts(trial: Trial) -> bytes:
    """Everything about a finished trial except where a late result of it is kept."""
    history = [msgspec.structs.replace(tenure, kept_as=None) for tenure in trial.history]
    return msgspec.msgpack.encode(msgspec.structs.replace(trial, history=history), enc_hook=dict)
