"""What went wrong: failures by reason, site and node, with lost leases apart from errors of the objective."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

from hopaas_p2p.analysis.facts import queued_again, reason_line
from hopaas_p2p.analysis.table import place
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State

Kind = Literal["error", "lease", "withdrawn"]
Key = tuple[Kind, str, str, str]
"""What the failures of a group share: kind, reason, site and node."""

KINDS: Final[dict[Kind, str]] = {
    "error": "errors in the objective",
    "lease": "leases lost: the peer fell silent, was pre-empted or interrupted",
    "withdrawn": "withdrawn by hand or by a late result",
}
_VARYING: Final = re.compile(r"0x[0-9a-fA-F]+|\d+")
_WITHDRAWN: Final = ("withdrawn", "requeued by hand")
_LONGEST: Final = 160


class Failure(NamedTuple):
    """One trial that failed, or one lease that was lost on the way."""

    kind: Kind
    reason: str
    """In one line, with numbers and addresses replaced, so that similar reasons are counted together."""
    site: str
    host: str
    number: int
    full: str
    """The reason as it stands."""
    final: bool
    """Whether the trial stays failed: nothing retries it."""


def failures(state: State) -> list[Failure]:
    """All of them, by trial. A lease that was lost counts, also when a retry made up for it."""
    again, found = queued_again(state), []
    for trial in list(state.trials):
        final = trial.state is TrialState.FAIL and trial.retried_by is None and trial.number not in again
        ends: list[tuple[str, str | None, Kind]] = [(tenure.why, tenure.owner, "lease") for tenure in trial.history]
        lost_with_its_lease = trial.history and trial.history[-1].end == trial.end  # that failure is in the history
        if trial.state is TrialState.FAIL and not lost_with_its_lease:
            ends.append((trial.reason or "no reason given", trial.owner, "error"))
        for why, owner, otherwise in ends:
            kind = "withdrawn" if why.startswith(_WITHDRAWN) else otherwise
            found.append(Failure(kind, alike(why), *place(state, owner), trial.number, why, final))
    return found


def alike(reason: str) -> str:
    """A reason without what differs from trial to trial."""
    first = reason_line(reason)[:_LONGEST]
    return _VARYING.sub(lambda found: "0x…" if found[0].startswith("0x") else "N", first) or "no reason given"


def reason(members: list[Failure]) -> str:
    """The reason of a group in one line: as it stands if all have the same, else without what differs."""
    said = {reason_line(one.full)[:_LONGEST] for one in members}
    return said.pop() if len(said) == 1 and all(said) else members[0].reason


def groups(found: list[Failure]) -> dict[Key, list[Failure]]:
    """Failures by kind, reason, site and node, the newest first: the largest group first, of equal ones the newest."""
    members: dict[Key, list[Failure]] = {}
    for one in reversed(found):
        members.setdefault((one.kind, one.reason, one.site, one.host), []).append(one)
    return dict(sorted(members.items(), key=lambda item: (-len(item[1]), -item[1][0].number)))
