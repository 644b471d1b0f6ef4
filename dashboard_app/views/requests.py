"""What became of a request of a person: requested, acknowledged, done or refused. Read off the State."""

from __future__ import annotations

from typing import Literal, NamedTuple

from hopaas_p2p.analysis.table import place
from hopaas_p2p.core.admission import next_start
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, Trial

Kind = Literal["stop-trial", "run", "control"]
Word = Literal["requested", "acknowledged", "done", "refused"]


class NotMade(NamedTuple):
    """Why a change was not made, or not yet."""

    why: str
    queued: bool = False
    """The store has not answered yet; the dashboard goes on sending it."""


class Request(NamedTuple):
    """One request, as it was made."""

    kind: Kind
    what: str
    """In words, for people."""
    at: float
    """Seconds since 1970."""
    number: int | None = None
    """The trial to be stopped, or the one that was queued."""
    epoch: int | None = None
    """The lease that the person saw."""
    status: str | None = None
    """The status that the study is to have."""
    budget: int | None = None
    """The budget that the study is to have; -1: none."""
    failure: NotMade | None = None
    """Why the store did not take it, or has not answered yet."""


class Progress(NamedTuple):
    """How far it is."""

    word: Word
    more: str = ""


def progress(request: Request, state: State) -> Progress:
    """How far it is, as far as this State knows."""
    failure, number = request.failure, request.number
    if failure is not None and not (failure.queued and _shows(request, state)):
        return Progress("requested" if failure.queued else "refused", failure.why)
    if request.kind == "control":  # the store has taken it, or it would be refused: what differs was changed afterwards
        return Progress("done", "" if _as_asked(request, state) else "changed again since")
    if number is None:
        return Progress("done", "taken away; its attempts are used up")
    if number >= len(state.trials):
        return Progress("requested")
    trial = state.trials[number]
    return _stop(request, trial) if request.kind == "stop-trial" else _run(trial, state)


def _shows(request: Request, state: State) -> bool:
    """Whether the log shows that a request which the store had not answered was made."""
    if request.kind == "control":
        still_failing = request.status == "running" and next_start(state).why == "failing"
        return _as_asked(request, state) and not still_failing
    if request.kind == "run" or request.number is None:
        return False  # which trial it became is not known
    trial = state.trials[request.number]
    return trial.stop is not None or trial.state is not TrialState.RUNNING or trial.epoch != request.epoch


def _as_asked(request: Request, state: State) -> bool:
    wanted = None if request.budget == -1 else request.budget
    return request.status in (None, state.status) and (request.budget is None or state.budget == wanted)


def _stop(request: Request, trial: Trial) -> Progress:
    if trial.epoch != request.epoch:
        return Progress("done", "that lease has ended, and another peer has taken the trial over")
    if trial.state is not TrialState.RUNNING:
        return Progress("done", f"the trial ended as {trial.state.name}")
    if trial.stopping:
        return Progress("acknowledged", "its peer has seen the request and is ending the trial")
    return Progress("requested", "its peer will see it at its next report" if trial.stop else "")


def _run(trial: Trial, state: State) -> Progress:
    if trial.state is TrialState.WAITING:
        return Progress("acknowledged", f"trial {trial.number} is waiting for a peer")
    if trial.state is TrialState.RUNNING:
        return Progress("acknowledged", f"trial {trial.number} runs at {place(state, trial.owner)[0]}")
    return Progress("done", f"trial {trial.number} ended as {trial.state.name}")
