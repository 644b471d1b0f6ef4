"""Who takes part: peers and sites, how busy they were now."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Final, NamedTuple

from hopaas_p2p.analysis.table import TrialTable, place
from hopaas_p2p.analysis.timeline import Stretch, stretches
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, differences

_LOST: Final = ("taken over", "returned")


class PeerRow(NamedTuple):
    """One peer that ran a trial."""

    uuid: str
    site: str
    host: str
    user: str
    job: str
    """Its batch job, or process."""
    hardware: str
    running: list[int]
    ended: int
    lost: int
    """Leases that it lost or gave back."""
    busy: float
    """Share of its time, from its first trial to its last sign or `now`, in which it ran one."""
    last: float | None
    """When it last began or ended a trial, by its own clock."""
    draining: bool
    differs: str
    """How it searches, if not as the study says."""


class Site(NamedTuple):
    """All peers of a site together."""

    name: str
    live: int
    peers: int
    running: int
    ended: int
    lost: int
    busy: float
    draining: bool


def peers(state: State, columns: TrialTable, now: float, alive: Callable[[str], bool | None]) -> list[PeerRow]:
    """The peers: those that run something first, then the last seen first."""
    by_owner: dict[str, list[Stretch]] = defaultdict(list)
    for stretch in stretches(state):
        by_owner[stretch.owner].append(stretch)
    running: dict[str, list[int]] = defaultdict(list)
    for number in sorted(state.running):
        running[state.trials[number].owner or ""].append(number)
    over = columns.is_(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL) & (columns.owner >= 0)
    ended = Counter(columns.owners[at] for at in columns.owner[over].tolist())
    rows = []
    for owner in filter(None, dict.fromkeys([*running, *by_owner])):
        info, ran, runs = state.peers.get(owner, {}), by_owner.get(owner, []), running.get(owner, [])
        last = max((one.end / 1e6 for one in ran), default=None)
        busy = 0.0
        if last is not None:
            until = now if runs and alive(owner) else last
            seconds = sum((one.end - one.start) / 1e6 for one in ran if one.kind != "running")
            seconds += sum(max(0.0, now - (state.trials[one].start or now * 1e6) / 1e6) for one in runs)
            busy = min(1.0, seconds / max(1e-3, until - min(one.start for one in ran) / 1e6))
        job = " ".join(part for part in (info.get("batch"), info.get("job")) if part)
        row = PeerRow(
            owner,
            *place(state, owner),
            user=info.get("user") or "?",
            job=job or (f"pid {info['pid']}" if "pid" in info else "?"),
            hardware=info.get("gpu") or (f"Python {info['python']}" if "python" in info else ""),
            running=runs,
            ended=ended[owner],
            lost=sum(one.kind in _LOST for one in ran),
            busy=busy,
            last=last,
            draining=state.is_draining(owner),
            differs="; ".join(differences(info)),
        )
        rows.append(row)
    return sorted(rows, key=lambda one: (not one.running, -(one.last or 0.0), one.uuid))


def sites(found: list[PeerRow], state: State, alive: Callable[[str], bool | None]) -> list[Site]:
    """The sites of these peers, the busiest first. A site's busy share is the mean of its peers'."""
    by_name: dict[str, list[PeerRow]] = defaultdict(list)
    for one in found:
        by_name[one.site].append(one)
    rows = []
    for name, there in by_name.items():
        live = sum(bool(one.running and alive(one.uuid)) for one in there)
        running, ended = sum(len(one.running) for one in there), sum(one.ended for one in there)
        lost = sum(one.lost for one in there)
        busy = sum(one.busy for one in there) / len(there)
        rows.append(Site(name, live, len(there), running, ended, lost, busy, f"site:{name}" in state.draining))
    return sorted(rows, key=lambda one: (-one.live, -one.ended, one.name))
