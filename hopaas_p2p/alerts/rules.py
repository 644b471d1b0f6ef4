"""Which alerts are due, and which have been posted already.

A condition (a site is silent, trials fail in a row, no improvement, the budget is nearly used) is posted once when it
comes true, and again only after it was false. Every new best is posted. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from hopaas_p2p.analysis.facts import best, is_better, json_number, shown, state_word
from hopaas_p2p.analysis.spending import amount, limited
from hopaas_p2p.core.admission import finished
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, Trial

FAILURES: Final = 5
"""Failures in a row that the objective caused."""
STAGNATION: Final = 100
"""COMPLETE trials since the best one."""
_BUDGET: Final = 0.8
"""Share of the budget that is used."""


class Alert(NamedTuple):
    """One message."""

    kind: str
    """site-silent, failures, stagnation, budget, new-best or done."""
    key: str
    """Equal for equal alerts, so that a receiver can drop duplicates."""
    text: str
    details: dict[str, Any]


class AlertMemory(msgspec.Struct, frozen=True):
    """Who sends, and what was posted; kept in the study."""

    sender: str = ""
    best: float | None = None
    active: tuple[str, ...] = ()
    """Keys of the conditions that hold and were posted."""
    begun: bool = False
    """Whether a sender has looked before; the best trial at its first look is not news."""


def due(state: State, silences: Mapping[str, float], memory: AlertMemory) -> tuple[list[Alert], AlertMemory]:
    """The alerts that are due now, and what to remember once they are posted.

    Args:
        state: the study.
        silences: owner of running trials -> its silence as a share of its ttl: 1 or more means that it is gone.
        memory: of the previous call.

    """
    alerts = []
    direction = state.define.directions[0] if state.define is not None else "minimize"
    top, before = best(state), memory.best
    value = top.values[0] if top is not None and top.values else None
    better = value is not None and (before is None or is_better(value, before, direction))
    if memory.begun and better and top is not None and value is not None:
        came = f", before {shown(before)}" if before is not None else ""
        text = f"new best {shown(value)} (trial {top.number}{came})"
        details = {"trial": top.number, "value": json_number(value), "before": json_number(before)}
        alerts.append(Alert("new-best", f"new-best:{top.number}", text, details))
    conditions = {one.key: one for one in _conditions(state, silences, top)}
    alerts += [one for key, one in conditions.items() if key not in memory.active]
    after = msgspec.structs.replace(memory, best=value, active=tuple(sorted(conditions)), begun=True)
    return alerts, after


def after_sending(sent: Sequence[Alert], before: AlertMemory, after: AlertMemory) -> AlertMemory:
    """What to remember when only these of the alerts were posted."""
    known = {one.key for one in sent} | set(before.active)
    new_best = after.best if not before.begun or any(one.kind == "new-best" for one in sent) else before.best
    return msgspec.structs.replace(after, best=new_best, active=tuple(key for key in after.active if key in known))


def _conditions(state: State, silences: Mapping[str, float], top: Trial | None) -> Iterator[Alert]:
    yield from _silent_sites(state, silences)
    row = state.failures_in_a_row
    if row >= FAILURES:
        reasons = (one.reason for one in reversed(state.trials) if one.state is TrialState.FAIL and one.reason)
        why = next(reasons, "no reason given").split("\n", 1)[0][:200]
        yield Alert("failures", "failures", f"{row} trials in a row failed; the last: {why}", {"in_a_row": row})
    if top is not None:
        since = sum(trial.state is TrialState.COMPLETE for trial in state.trials[top.number + 1 :])
        if since >= STAGNATION:
            text = f"no better trial among the last {since:,} complete ones"
            yield Alert("stagnation", f"stagnation:{top.number}", text, {"complete_since_best": since})
    used = state.used()
    if state.budget and used >= _BUDGET * state.budget:
        text = f"{used:,} of {state.budget:,} trials of the budget are used"
        yield Alert("budget", f"budget:{state.budget}", text, {"used": used, "budget": state.budget})
    for one in limited(state):
        if one.limit is not None and one.spent >= _BUDGET * one.limit:
            text = f"{amount(one.spent)} of {amount(one.limit)} {one.unit} of the budget are used"
            about = {"used": one.spent, "budget": one.limit, "unit": one.what}
            yield Alert("budget", f"budget:{one.what}:{one.limit:g}", text, about)
    if finished(state) and not state.running:
        word = state_word(state)
        value = f"; the best is {shown(top.values[0])} (trial {top.number})" if top is not None and top.values else ""
        yield Alert("done", "done", f"the study is {word}{value}", {"because": word})


def _silent_sites(state: State, silences: Mapping[str, float]) -> Iterator[Alert]:
    """A site where all peers that run trials have been silent for longer than their ttl."""
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
            about = {"site": site, "peers": count}
            yield Alert("site-silent", f"site-silent:{site}", f"site {site}: {who} silent", about)
