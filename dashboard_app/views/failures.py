"""What went wrong: failures by reason, site and node, with lost leases apart from errors of the objective."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, Trial
from hopaas_p2p.notes import AGAIN

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["error", "lease", "withdrawn"]

KINDS: Final[dict[Kind, str]] = {
    "error": "errors of the objective",
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
    """The first line, with numbers and addresses replaced, so that what is alike is counted together."""
    site: str
    host: str
    number: int
    full: str
    """The reason as it stands."""
    over: bool
    """Whether the trial stays failed: nothing retries it."""


def failures(state: State) -> list[Failure]:
    """All of them, by trial. A lease that was lost counts, also when a retry made up for it."""
    again = queued_again(state)
    return [failure for trial in list(state.trials) for failure in _of(trial, state, again)]


def queued_again(state: State) -> frozenset[int]:
    """The numbers of trials that somebody queued again by hand."""
    said = [trial.system[AGAIN] for trial in list(state.trials) if AGAIN in trial.system]
    return frozenset(int(text) for text in said if text.isascii() and text.isdigit())


def _of(trial: Trial, state: State, again: frozenset[int]) -> Iterator[Failure]:
    for tenure in trial.history:
        yield _failure(_kind(tenure.why), tenure.why, tenure.owner, trial, state, again)
    if trial.state is TrialState.FAIL and not _ended_with_its_lease(trial):
        why = trial.reason or "no reason given"
        yield _failure("withdrawn" if why.startswith(_WITHDRAWN) else "error", why, trial.owner, trial, state, again)


def _ended_with_its_lease(trial: Trial) -> bool:
    """Whether the failure is the loss of the last lease, which the history holds already."""
    return bool(trial.history) and trial.history[-1].end == trial.end


def _kind(why: str) -> Kind:
    return "withdrawn" if why.startswith(_WITHDRAWN) else "lease"


def _failure(kind: Kind, why: str, owner: str | None, trial: Trial, state: State, again: frozenset[int]) -> Failure:
    peer = state.peers.get(owner or "", {})
    lost_for_good = trial.state is TrialState.FAIL and trial.retried_by is None and trial.number not in again
    return Failure(
        kind, alike(why), peer.get("site", "?"), peer.get("host", "?"), trial.number, why, lost_for_good
    )  # fmt: skip


def alike(reason: str) -> str:
    """A reason without what differs from trial to trial."""
    first = reason.strip().split("\n", 1)[0][:_LONGEST]
    return _VARYING.sub(lambda found: "0x…" if found[0].startswith("0x") else "N", first) or "no reason given"


def groups(found: list[Failure]) -> pd.DataFrame:
    """One row a kind, reason, site and node: how many, how many stay failed, the newest trial; the most first."""
    import pandas as pd

    counted: dict[tuple[str, str, str, str], list[Failure]] = {}
    for one in found:
        counted.setdefault((one.kind, one.reason, one.site, one.host), []).append(one)
    rows = [
        {
            "kind": kind, "reason": reason, "site": site, "node": host, "count": len(members),
            "stay failed": sum(one.over for one in members), "newest": max(one.number for one in members),
        }
        for (kind, reason, site, host), members in counted.items()
    ]  # fmt: skip
    names = ["kind", "reason", "site", "node", "count", "stay failed", "newest"]
    frame = pd.DataFrame(rows, columns=names)
    return frame.sort_values(["count", "newest"], ascending=False, kind="stable", ignore_index=True)


def members(found: list[Failure], kind: str, reason: str, site: str, host: str) -> list[Failure]:
    """The failures of one group, the newest first."""
    wanted = (kind, reason, site, host)
    return [one for one in reversed(found) if (one.kind, one.reason, one.site, one.host) == wanted]
