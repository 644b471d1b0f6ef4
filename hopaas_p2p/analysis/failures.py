"""Counts errors of the objective, lost leases and returned trials separately, by reason, site and node."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from hopaas_p2p.analysis.facts import queued_again, reason_line
from hopaas_p2p.analysis.table import place
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.spending import is_last_lease, past_leases
from hopaas_p2p.core.state import State

Kind = Literal["error", "taken over", "returned", "withdrawn"]
Key = tuple[Kind, str, str, str]
"""The kind, reason, site and node that a group of failures has in common."""

_WORDS: Final = {"error": "error in the objective", "taken over": "lease lost"}
_VARYING: Final = re.compile(r"0x[0-9a-fA-F]+|\d+")
_WITHDRAWN: Final = ("withdrawn", "requeued by hand")
_LONGEST: Final = 160


class Failure(NamedTuple):
    """One failed trial, or one lease that ended before its trial."""

    number: int
    reason: str
    """The reason in one line, otherwise unchanged."""
    final: bool
    """Whether the trial stays failed, because it is not retried."""


def failures(state: State) -> dict[Key, list[Failure]]:
    """All failures in groups by kind, reason, site and node. The largest group comes first, and among equals the
    newest. Each group begins with its newest failure.

    A lost lease or a return counts even if the trial was run again. In the reason of a group, numbers and addresses are
    replaced, so that similar ones are counted together.
    """
    again, found = queued_again(state), dict[Key, list[Failure]]()
    for trial in reversed(list(state.trials)):
        final = trial.state is TrialState.FAIL and trial.retried_by is None and trial.number not in again
        ends: list[tuple[str, str | None, Kind]] = [(past.why, past.owner, how) for past, how in past_leases(trial)]
        if trial.state is TrialState.FAIL and not is_last_lease(trial):  # otherwise the history has this failure
            ends.append((trial.reason or "", trial.owner, "error"))
        for why, owner, otherwise in reversed(ends):
            site, host = place(state, owner)
            kind = "withdrawn" if why.startswith(_WITHDRAWN) else otherwise
            reason = reason_line(why)[:_LONGEST] or "no reason given"
            alike = _VARYING.sub(lambda one: "0x…" if one[0].startswith("0x") else "N", reason)
            found.setdefault((kind, alike, site, host), []).append(Failure(trial.number, reason, final))
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), -item[1][0].number)))


HEADS: Final = ("kind", "reason", "site", "node", "times", "not retried", "newest trial")


def cells(groups: dict[Key, list[Failure]], link: Callable[[int], str]) -> list[list[str]]:
    """A row per group, with its kind, its reason (unchanged if it is the same for all), site, node, counts, and the
    `link` of a trial.
    """
    rows = []
    for (kind, alike, site, host), members in groups.items():
        reason = members[0].reason if len({one.reason for one in members}) == 1 else alike
        counts = f"{len(members):,}", f"{sum(one.final for one in members):,}"
        rows.append([_WORDS.get(kind, kind), reason, site, host, *counts, link(members[0].number)])
    return rows
