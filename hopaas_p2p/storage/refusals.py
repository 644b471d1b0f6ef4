"""Explains the log's refusals to the caller."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Final

from optuna.exceptions import UpdateFinishedTrialError

from hopaas_p2p.analysis.facts import duration, person
from hopaas_p2p.core.admission import Done, Wait
from hopaas_p2p.core.state import REFUSALS, State, Verdict
from hopaas_p2p.errors import NoWork
from hopaas_p2p.open import store_option

_NAMED: Final = 3  # number of trials that a message names
NO_WORK: Final = {
    "budget": "the study's budget is used up",
    "paused": "the study is paused; resume it with: hopaas-p2p study resume {quoted}",
    "stopped": "the study is stopped",
    "draining": "this peer or its site was asked to take no more trials",
    "failing": (
        "too many trials failed in a row; look at them with: hopaas-p2p trial list --state fail --study {quoted}, then "
        "start trials again with: hopaas-p2p study resume {quoted}"
    ),
}


class AlreadyFinished(UpdateFinishedTrialError, ValueError):
    """The trial is over. Optuna's storages raise UpdateFinishedTrialError, and its `Study.tell` ValueError."""

    def __init__(self, number: int) -> None:
        super().__init__(f"Trial#{number} has already finished and can not be updated.")


def owner_only(study: str) -> str:
    """Why a user may not do something, and what to do about it."""
    cure = f"hopaas-p2p admin grant {shlex.quote(study)} USER owner"
    return f"Only an owner of the study {study!r} may do that. Ask one for a grant: {cure}"


def no_work(state: State, found: Wait | Done, *, now: float, why: str = "", store: str = "") -> NoWork:
    """The error for a caller that found nothing to start; `why` replaces the usual reason.

    For a `Wait`, the message names the trials and their owners, the longest time to wait, and how to avoid the wait.
    `now` is on the clock of `Wait.until`.
    """
    quoted = shlex.quote(state.define.name) if state.define is not None else "NAME"
    quoted += store_option(store) if store else ""
    reason, limit = why or NO_WORK.get(found.why, found.why).format(quoted=quoted), state.ledger.reached
    if found.why == "budget" and limit is not None:
        reason += f": {limit}"
    elif found.why == "budget" and state.budget is None:  # a population starts no more members than its size
        reason = "all members of the population have started"
    if isinstance(found, Wait) and found.for_whom:
        named = found.for_whom[:_NAMED]
        runs = ", ".join(f"trial {number}{_run_by(state, number)}" for number in named)
        more = f" and {len(found.for_whom) - _NAMED} more" if len(found.for_whom) > _NAMED else ""
        if found.until is None:
            return NoWork(f"{reason}; the next step depends on {runs}{more}", found)
        known = duration(max(10.0, found.until - now))
        owners = [state.trials[number].owner for number in found.for_whom]
        same = [str(number) for number, owner in zip(named, owners, strict=False) if owner == owners[0]]
        which = "it" if len({*owners}) == 1 else "the first one"  # the command takes trials from live peers, too
        reason += (
            f"; if a peer has died, its trial must be run again: {runs}{more}. That will be known within "
            f"{known}. If you know that {which} has died: hopaas-p2p trial requeue {' '.join(same)} --study {quoted}"
        )
    return NoWork(reason, found)


def _run_by(state: State, number: int) -> str:
    """The owner of this trial, for display."""
    about = state.peers.get(state.trials[number].owner or "", {})
    return f" of {person(about.get('user', '?'))} on {about['host']}" if "host" in about else ""


def why_refused(state: State, verdict: Verdict, values: Sequence[float] | None = None) -> str:
    """A refusal in words; with the refused `values`, also what is wrong with them."""
    define = state.define
    if verdict.refusal == "malformed" and values is not None and define is not None:
        expected = len(define.directions)
        if len(values) != expected:
            return f"{expected} value{'s' * (expected > 1)} expected, got {len(values)}"
        if any(map(math.isnan, values)):
            return f"a value must be a number, got {', '.join(map(str, values))}"
    word = verdict.refusal or "refused"
    return REFUSALS.get(word, word)
