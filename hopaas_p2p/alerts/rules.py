"""What there is to say of a study, and what has been said already.

A condition (a site is silent, trials fail one after another, nothing gets better, the budget is nearly spent) is said
once when it comes true, and again only after it had passed. A new best is said for each one. Pure: no clock, no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, Trial
from hopaas_p2p.report.facts import best, is_better, shown


class Limits(NamedTuple):
    """When something is worth saying."""

    failures: int = 5
    """FAILs in a row by the objective's own fault."""
    stagnation: int = 100
    """COMPLETE trials since the best one."""
    budget: float = 0.8
    """Share of the budget that is used."""


class Alert(NamedTuple):
    """One thing to say."""

    kind: str
    """site-silent, failures, stagnation, budget, new-best or done."""
    key: str
    """The same for the same thing: a receiver that gets it twice may drop one."""
    text: str
    details: dict[str, Any]


class Memory(msgspec.Struct, frozen=True):
    """What was said, kept in the study."""

    best: float | None = None
    best_trial: int | None = None
    active: tuple[str, ...] = ()
    """Keys of conditions that are true and were said."""
    begun: bool = False
    """Whether anybody has looked yet: what was best before that is no news."""


def due(
    state: State, silences: Mapping[str, float], memory: Memory, limits: Limits | None = None
) -> tuple[list[Alert], Memory]:
    """What is to be said now, and what to remember once it was.

    Args:
        state: the study.
        silences: owner of running trials -> seconds of silence as a share of what its lease bears: 1 and more is gone.
        memory: from the last time.
        limits: when something is worth saying.

    """
    limits = limits or Limits()
    alerts = []
    top = best(state)
    found = _improved(state, top, memory)
    if found is not None and memory.begun:
        alerts.append(found)
    conditions = {one.key: one for one in _conditions(state, silences, top, limits)}
    alerts += [one for key, one in conditions.items() if key not in memory.active]
    value = top.values[0] if top is not None and top.values else None
    after = Memory(value, top.number if top is not None else None, tuple(sorted(conditions)), begun=True)
    return alerts, after


def after_saying(said: Sequence[Alert], before: Memory, after: Memory) -> Memory:
    """What to remember when only these of the alerts were said."""
    keys = {one.key for one in said}
    best_said = any(one.kind == "new-best" for one in said)
    told = after if best_said or not before.begun else before
    active = tuple(key for key in after.active if key in keys or key in before.active)
    return Memory(told.best, told.best_trial, active, begun=True)


def _improved(state: State, top: Trial | None, memory: Memory) -> Alert | None:
    if top is None or not top.values or state.define is None:
        return None
    value, before = top.values[0], memory.best
    if before is not None and not is_better(value, before, state.define.directions[0]):
        return None
    came = f", before {shown(before)}" if before is not None else ""
    details = {"trial": top.number, "value": _plain(value), "before": None if before is None else _plain(before)}
    return Alert("new-best", f"new-best:{top.number}", f"new best {shown(value)} (trial {top.number}{came})", details)


def _conditions(state: State, silences: Mapping[str, float], top: Trial | None, limits: Limits) -> Iterator[Alert]:
    yield from _silent_sites(state, silences)
    row = state.failures_in_a_row
    if row >= limits.failures:
        why = _last_reason(state)
        yield Alert("failures", "failures", f"{row} trials in a row failed; the last: {why}", {"in_a_row": row})
    if top is not None:
        since = sum(trial.state is TrialState.COMPLETE for trial in state.trials[top.number + 1 :])
        if since >= limits.stagnation:
            text = f"no better trial among the last {since:,} complete ones"
            yield Alert("stagnation", f"stagnation:{top.number}", text, {"complete_since_best": since})
    if state.budget and state.used() >= limits.budget * state.budget:
        used = state.used()
        text = f"{used:,} of {state.budget:,} trials of the budget are used"
        yield Alert("budget", f"budget:{state.budget}", text, {"used": used, "budget": state.budget})
    if state.finished() and not state.running:
        word = "done" if state.closed_because() == "budget" else state.closed_because() or "done"
        value = f"; the best is {shown(top.values[0])} (trial {top.number})" if top is not None and top.values else ""
        yield Alert("done", "done", f"the study is {word}{value}", {"because": word})


def _silent_sites(state: State, silences: Mapping[str, float]) -> Iterator[Alert]:
    """A site all of whose running peers are silent for longer than their leases bear."""
    sites: dict[str, dict[str, bool]] = {}
    for number in list(state.running):
        owner = state.trials[number].owner
        if owner is not None:
            site = state.peers.get(owner, {}).get("site", "?")
            sites.setdefault(site, {})[owner] = silences.get(owner, 0.0) >= 1.0
    for site, peers in sorted(sites.items()):
        if all(peers.values()):
            count = len(peers)
            who = "its one peer that runs a trial is" if count == 1 else f"all {count} of its peers that run trials are"
            yield Alert(
                "site-silent", f"site-silent:{site}", f"site {site}: {who} silent", {"site": site, "peers": count}
            )


def _last_reason(state: State) -> str:
    for trial in reversed(state.trials):
        if trial.state is TrialState.FAIL and trial.reason:
            return trial.reason.split("\n", 1)[0][:200]
    return "no reason given"


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


KINDS: Final = ("site-silent", "failures", "stagnation", "budget", "new-best", "done")
