"""Finds the conditions of a study that are worth an alert.

Conditions are, for example, a silent site, consecutive failures, no improvement, a nearly used budget, or a new best
trial. Each is posted once when it becomes true, and again only after it was false. No clock is used.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from hopaas_p2p.analysis.facts import best, shown, state_word
from hopaas_p2p.analysis.spending import amount, spending
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State

NEW_BEST: Final = "new-best"
FAILURES: Final = 5
"""Consecutive failures caused by the objective that trigger an alert."""
STAGNATION: Final = 100
"""COMPLETE trials since the best one that trigger an alert."""
_BUDGET: Final = 0.8
"""The fraction of the budget whose use triggers an alert."""


def conditions(state: State, silent: Collection[str], *, over: bool = False) -> dict[str, str]:
    """The conditions that hold, as key -> text. A key begins with its kind, which is new-best, site-silent, failures,
    stagnation, budget or done.

    Args:
        state: the study.
        silent: the owners of running trials that have been silent for longer than their ttl.
        over: whether the study is over; see `Study.is_over`.

    """
    found, top, value = {}, best(state), ""
    if top is not None and top.values:
        value = f"{shown(top.values[0])} (trial {top.number})"
        found[f"{NEW_BEST}:{top.values[0]!r}"] = f"new best {value}"  # an equal value is not a new best
    sites: dict[str, set[str]] = {}
    for owner in {state.trials[number].owner for number in list(state.running)} - {None}:
        sites.setdefault(state.peers.get(owner or "", {}).get("site", "?"), set()).add(owner or "")
    for site, peers in sorted(sites.items()):
        if peers <= set(silent):
            who = f"all {len(peers)} of its peers that run trials are"
            who = "its one peer that runs a trial is" if len(peers) == 1 else who
            found[f"site-silent:{site}"] = f"site {site}: {who} silent"
    row = state.failures_in_a_row
    if row >= FAILURES:
        reasons = (one.reason for one in reversed(state.trials) if one.state is TrialState.FAIL and one.reason)
        why = next(reasons, "no reason given").split("\n", 1)[0][:200]
        found["failures"] = f"{row} trials in a row failed; the last: {why}"
    if top is not None:
        since = sum(trial.state is TrialState.COMPLETE for trial in state.trials[top.number + 1 :])
        if since >= STAGNATION:
            found[f"stagnation:{top.number}"] = f"no better trial among the last {since:,} complete ones"
    for one in spending(state).amounts:
        if one.limit and one.spent >= _BUDGET * one.limit:
            text = f"{amount(one.spent)} of {amount(one.limit)} {one.unit} of the budget are used"
            found[f"budget:{one.what}:{one.limit:g}"] = text
    if over:
        word = state_word(state).replace("idle", "done")  # idle: its sampler has no points left
        found["done"] = f"the study is {word}" + (f"; the best is {value}" if value else "")
    return found
