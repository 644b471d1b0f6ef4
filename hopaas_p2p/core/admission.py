"""Decides what may start next, by the same rules in the log and in a peer that asks for work.

`apply` calls `next_start` for a record that asks for any trial, and refuses the record if nothing may start. A peer
calls it before it writes such a record, with what it has seen of other peers. If nothing may start now, the peer learns
whether to wait, for which trials, and for how long at most. The command line, monitor and reports show the same answer.

Interrupted continuations come first, then what a rung or a population promotes, waiting trials, replicates, and finally
a new configuration. Pure: no clock and no I/O. The caller passes its knowledge about time as `alive`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import ClassVar, Final

import msgspec

from hopaas_p2p.core.state import NEVER_PAUSING, State

Alive = Callable[[str], float | None]
"""What a caller knows about the owner of a running trial: None if the owner is alive. Otherwise, the latest time, by
the caller's own clock, by which the owner will have shown a sign of life, or its trials will have been taken over."""


class Start(msgspec.Struct, frozen=True, gc=False):
    """Start this waiting trial, which was queued or returned, or is a retry."""

    number: int
    why: ClassVar[None] = None


class Continue(msgspec.Struct, frozen=True, gc=False):
    """Start a new trial that continues where this paused one stopped."""

    number: int
    why: ClassVar[None] = None


class New(msgspec.Struct, frozen=True, gc=False):
    """Start a trial of a new configuration, or the next replicate of an existing one."""

    replicate_of: int | None = None
    """The first trial of the configuration; see `State.replicates`."""
    why: ClassVar[None] = None


class Wait(msgspec.Struct, frozen=True, gc=False):
    """Nothing may start now, but something may start later without intervention."""

    why: str
    """Like `Done.why`."""
    for_whom: tuple[int, ...] = ()
    """The trials to wait for, if the caller passed `alive`."""
    until: float | None = None
    """The latest time at which the wait ends, by the clock of `Alive`; None if no such time is known."""
    waits: ClassVar[bool] = True


class Done(msgspec.Struct, frozen=True, gc=False):
    """Nothing more will start unless somebody changes the study."""

    why: str
    """The key of `REFUSALS` with which the log refuses an ask, or the caller's `no_new`."""
    for_whom: ClassVar[tuple[int, ...]] = ()
    waits: ClassVar[bool] = False


NextStart = Start | Continue | New | Wait | Done
NEW: Final = New()


def next_start(
    state: State, me: str = "", *, alive: Alive | None = None, skip: Collection[int] = (), no_new: str = ""
) -> NextStart:
    """Return what a peer that asks for work may start now.

    Args:
        state: the study.
        me: the peer's name, since a peer may have been asked to take no more trials. "" means any peer.
        alive: what the peer knows about the owners of running trials. None means nothing; any owner may be dead.
        skip: trials that the peer leaves to others for now. Paused ones are skipped only while the budget has room.
        no_new: why the peer begins no new configuration, such as "space" when its sampler is exhausted.

    """
    closed = _closed_to(state, me)
    if closed is not None and closed != "paused":
        return Done(closed)
    if state.ledger.reached is not None:  # a trial that is returned could not start either, so do not wait for one
        return Done("budget")
    pausing, room = state.configurations, state.has_room()
    found = _found(state, skip, no_new, room=room)
    if closed is not None and (found is not None or state.running):
        return Wait(closed)
    if found is not None:
        return found
    why = no_new or "budget"
    if alive is None:
        return Wait(why) if state.running else Done(why)
    resting = state.waiting if room else pausing.resumable
    if resting:
        return Wait(why, tuple(resting))
    if state.running and pausing.waiting():
        return Wait(why, tuple(state.running))
    doubted = {one: until for one in state.running if (until := alive(state.trials[one].owner or "")) is not None}
    return Wait(why, tuple(doubted), max(doubted.values())) if doubted else Done(why)


def _closed_to(state: State, me: str) -> str | None:
    """Why this peer may not start any trial, whatever is available; None if it may."""
    if state.status == "stopped":
        return "stopped"
    limit = state.policy.max_failures
    if limit is not None and state.failures_in_a_row >= limit:
        return "failing"
    if state.draining and state.is_draining(me):
        return "draining"
    return "paused" if state.status == "paused" else None


def refused(state: State, me: str, number: int | None = None) -> str | None:
    """Why this peer may not start a new trial, or the trial with this number; None if it may."""
    closed = _closed_to(state, me)
    if closed is None and (state.ledger.reached is not None or not state.has_room(number)):
        return "budget"
    return closed


def _found(state: State, skip: Collection[int], no_new: str, *, room: bool) -> Start | Continue | New | None:
    """What is available to start, for a peer that may start something."""
    pausing = state.configurations
    for number in pausing.resumable:
        if number not in skip:
            return Start(number)
    if pausing is not NEVER_PAUSING:  # a call saved in nearly all studies
        paused = pausing.promoted(room=room, running=bool(state.running), skip=skip)
        if paused is not None:
            return Continue(paused)
    if not room:
        return None
    for number in state.waiting:
        if number not in skip:
            return Start(number)
    if state.replicates:
        return New(next(iter(state.replicates)))
    return None if no_new else NEW


def finished(state: State) -> bool:
    """Whether the study is over: it was stopped, too many trials failed in a row, or nothing runs or can start."""
    found = next_start(state)
    return isinstance(found, Done) and not (found.why == "budget" and state.running)
