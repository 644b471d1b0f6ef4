"""Explains the log's refusals to the caller."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from typing import Final

from optuna.exceptions import UpdateFinishedTrialError

from hopaas_p2p.analysis.facts import ago, duration, person
from hopaas_p2p.core.admission import Done, Wait
from hopaas_p2p.core.leases import FailureDetector
from hopaas_p2p.core.state import REFUSALS, State, Verdict
from hopaas_p2p.errors import NoWork
from hopaas_p2p.open import store_option
from hopaas_p2p.peer.liveness import SignOfLife, sign_of_life

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


def no_work(state: State, found: Wait | Done, heard: FailureDetector, now: float, why: str, store: str) -> NoWork:
    """The error for a caller that found nothing to start; `why` replaces the usual reason.

    For a `Wait`, the message names the trials, their owners and when these were last `heard`, the longest time to wait
    and, for a silent owner, how to avoid the wait. `now` is on the clock of `Wait.until`.
    """
    quoted = shlex.quote(state.define.name) if state.define is not None else "NAME"
    quoted += store_option(store) if store else ""
    reason, limit = why or NO_WORK.get(found.why, found.why).format(quoted=quoted), state.ledger.reached
    if found.why == "budget" and limit is not None:
        reason += f": {limit}"
    elif found.why == "budget" and state.budget is None:  # a population starts no more members than its size
        reason = "all members of the population have started"
    if isinstance(found, Wait) and found.for_whom:
        owners = [state.trials[number].owner or "" for number in found.for_whom]
        named = list(zip(found.for_whom, owners, strict=True))[:_NAMED]
        signs = {owner: sign_of_life(state, owner, heard, now, time.time()) for _, owner in named}
        runs = ", ".join(f"trial {number}{_run_by(state, owner, signs[owner])}" for number, owner in named)
        more = f" and {len(owners) - _NAMED} more" if len(owners) > _NAMED else ""
        if found.until is None:
            return NoWork(f"{reason}; the next step depends on {runs}{more}", found)
        known = duration(max(10.0, found.until - now))
        reason += f"; still running: {runs}{more}. If a peer has died, that will be known within {known}"
        if (first := signs[owners[0]]).ago is not None and not first.alive:
            same = " ".join(str(number) for number, owner in named if owner == owners[0])
            which = "it" if len({*owners}) == 1 else "the first one"  # the command takes trials from live peers, too
            reason += f". If you know that {which} has died: hopaas-p2p trial requeue {same} --study {quoted}"
    return NoWork(reason, found)


def _run_by(state: State, owner: str, sign: SignOfLife) -> str:
    """The owner of a trial and its last sign of life, for display."""
    about = state.peers.get(owner, {})
    seen = "" if sign.ago is None else f", last heard of {ago(sign.ago)}"
    return (f" of {person(about.get('user', '?'))} on {about['host']}" if "host" in about else "") + seen


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
