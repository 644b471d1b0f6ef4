"""Which alerts are due, and which have been posted already.

A condition (a site is silent, trials fail in a row, no improvement, the budget is nearly used) is posted once when it
comes true, and again only after it was false. Every new best is posted. Pure: no clock, no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from hopaas_p2p.analysis.facts import best, is_better, shown, state_word
from hopaas_p2p.analysis.spending import amount, limited
from hopaas_p2p.core.admission import finished
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, Trial


class AlertThresholds(NamedTuple):
    """When something is worth an alert."""

    failures: int = 5
    """Failures in a row that the objective caused."""
    stagnation: int = 100
    """COMPLETE trials since the best one."""
    budget: float = 0.8
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
    """What was posted; kept in the study."""

    best: float | None = None
    best_trial: int | None = None
    active: tuple[str, ...] = ()
    """Keys of the conditions that hold and were posted."""
    begun: bool = False
    """Whether a sender has looked before; the best trial at its first look is not news."""


def due(
    state: State, silences: Mapping[str, float], memory: AlertMemory, thresholds: AlertThresholds | None = None
) -> tuple[list[Alert], AlertMemory]:
    """The alerts that are due now, and what to remember once they are posted.

    Args:
        state: the study.
        silences: owner of running trials -> its silence as a share of its ttl: 1 or more means that it is gone.
        memory: of the previous call.
        thresholds: when something is worth an alert.

    """
    thresholds = thresholds or AlertThresholds()
    alerts = []
    top = best(state)
    found = _improved(state, top, memory)
    if found is not None and memory.begun:
        alerts.append(found)
    conditions = {one.key: one for one in _conditions(state, silences, top, thresholds)}
    alerts += [one for key, one in conditions.items() if key not in memory.active]
    value = top.values[0] if top is not None and top.values else None
    after = AlertMemory(value, top.number if top is not None else None, tuple(sorted(conditions)), begun=True)
    return alerts, after


def after_sending(sent: Sequence[Alert], before: AlertMemory, after: AlertMemory) -> AlertMemory:
    """What to remember when only these of the alerts were posted."""
    keys = {one.key for one in sent}
    best_sent = any(one.kind == "new-best" for one in sent)
    kept = after if best_sent or not before.begun else before
    active = tuple(key for key in after.active if key in keys or key in before.active)
    return AlertMemory(kept.best, kept.best_trial, active, begun=True)


def _improved(state: State, top: Trial | None, memory: AlertMemory) -> Alert | None:
    if top is None or not top.values or state.define is None:
        return None
    value, before = top.values[0], memory.best
    if before is not None and not is_better(value, before, state.define.directions[0]):
        return None
    came = f", before {shown(before)}" if before is not None else ""
    details = {"trial": top.number, "value": _plain(value), "before": None if before is None else _plain(before)}
    return Alert("new-best", f"new-best:{top.number}", f"new best {shown(value)} (trial {top.number}{came})", details)


def _conditions(
    state: State, silences: Mapping[str, float], top: Trial | None, thresholds: AlertThresholds
) -> Iterator[Alert]:
    yield from _silent_sites(state, silences)
    row = state.failures_in_a_row
    if row >= thresholds.failures:
        why = _last_reason(state)
        yield Alert("failures", "failures", f"{row} trials in a row failed; the last: {why}", {"in_a_row": row})
    if top is not None:
        since = sum(trial.state is TrialState.COMPLETE for trial in state.trials[top.number + 1 :])
        if since >= thresholds.stagnation:
            text = f"no better trial among the last {since:,} complete ones"
            yield Alert("stagnation", f"stagnation:{top.number}", text, {"complete_since_best": since})
    if state.budget and state.used() >= thresholds.budget * state.budget:
        used = state.used()
        text = f"{used:,} of {state.budget:,} trials of the budget are used"
        yield Alert("budget", f"budget:{state.budget}", text, {"used": used, "budget": state.budget})
    for one in limited(state):
        if one.limit is not None and one.spent >= thresholds.budget * one.limit:
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
