"""Who takes part: peers and sites, how busy they were, and who ran what when."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from dashboard_app.views.columns import Columns
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State
from hopaas_p2p.report.timeline import Stretch, stretches

if TYPE_CHECKING:
    import pandas as pd

_BARS: Final = 1500
_ROWS: Final = 40
KINDS: Final = {
    "complete": "complete",
    "pruned": "pruned",
    "failed": "failed",
    "running": "running",
    "lost": "taken away",
    "given-back": "given back",
}


class Peer(NamedTuple):
    """One peer that ran a trial."""

    uuid: str
    label: str
    """Short, and told apart from all others."""
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


def peers(state: State, columns: Columns, now: float, alive: Callable[[str], bool]) -> list[Peer]:
    """The peers: those that run something first, then the last seen first."""
    found = stretches(state)
    spans = _spans(found)
    running: dict[str, list[int]] = {}
    for one in sorted(state.running):
        running.setdefault(state.trials[one].owner or "", []).append(one)
    ended = np.bincount(
        columns.owner[columns.is_(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL) & (columns.owner >= 0)],
        minlength=len(columns.owners),
    )
    counts = dict(zip(columns.owners, ended.tolist(), strict=True))
    lost: dict[str, int] = {}
    for stretch in found:
        if stretch.kind in ("lost", "given-back"):
            lost[stretch.owner] = lost.get(stretch.owner, 0) + 1
    labels = labels_of(state, [*spans, *running])
    rows = []
    for owner in dict.fromkeys([*running, *spans]):
        if not owner:
            continue
        said = state.peers.get(owner, {})
        span = spans.get(owner)
        until = now if owner in running and alive(owner) else span.last if span else now
        rows.append(
            Peer(
                uuid=owner,
                label=labels.get(owner, owner[:8]),
                site=said.get("site") or "?",
                host=said.get("host") or "?",
                user=said.get("user") or "?",
                job=" ".join(part for part in (said.get("batch"), said.get("job")) if part)
                or (f"pid {said['pid']}" if "pid" in said else "?"),
                hardware=said.get("gpu") or f"Python {said['python']}" if "python" in said else said.get("gpu") or "",
                running=running.get(owner, []),
                ended=counts.get(owner, 0),
                lost=lost.get(owner, 0),
                busy=min(1.0, _busy(span, running.get(owner, []), state, now) / max(1e-3, until - span.first))
                if span
                else 0.0,
                last=span.last if span else None,
                draining=state.is_draining(owner),
            )
        )
    return sorted(rows, key=lambda one: (not one.running, -(one.last or 0.0), one.label))


class _Span(NamedTuple):
    first: float
    last: float
    seconds: float
    """Of the stretches that are over."""


def _spans(found: list[Stretch]) -> dict[str, _Span]:
    spans: dict[str, _Span] = {}
    for one in found:
        start, end = one.start / 1e6, one.end / 1e6
        over = 0.0 if one.kind == "running" else end - start
        before = spans.get(one.owner)
        if before is None:
            spans[one.owner] = _Span(start, end, over)
        else:
            spans[one.owner] = _Span(min(start, before.first), max(end, before.last), before.seconds + over)
    return spans


def _busy(span: _Span, running: list[int], state: State, now: float) -> float:
    going = sum(max(0.0, now - (state.trials[one].start or now * 1e6) / 1e6) for one in running)
    return span.seconds + going


def labels_of(state: State, owners: list[str]) -> dict[str, str]:
    """A short name for each: site and process; told apart where they agree."""
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for owner in dict.fromkeys(owners):
        said = state.peers.get(owner, {})
        where = said.get("host") or said.get("site") or "peer"
        label = f"{where[:24]} · {said['pid'][:12]}" if "pid" in said else f"{where[:24]} · {owner[:6]}"
        if label in taken:
            label = f"{label} · {owner[:6]}"
        taken.add(label)
        labels[owner] = label
    return labels


def sites(found: list[Peer], state: State, alive: Callable[[str], bool]) -> list[Site]:
    """The sites of these peers, the busiest first. A site's busy share is the mean of its peers'."""
    by_name: dict[str, list[Peer]] = {}
    for one in found:
        by_name.setdefault(one.site, []).append(one)
    rows = [
        Site(
            name=name,
            live=sum(bool(one.running) and alive(one.uuid) for one in there),
            peers=len(there),
            running=sum(len(one.running) for one in there),
            ended=sum(one.ended for one in there),
            lost=sum(one.lost for one in there),
            busy=float(np.mean([one.busy for one in there])),
            draining=f"site:{name}" in state.draining,
        )
        for name, there in by_name.items()
    ]
    return sorted(rows, key=lambda one: (-one.live, -one.ended, one.name))


class Gantt(NamedTuple):
    """What the timeline draws, and what it leaves out."""

    bars: pd.DataFrame
    """peer, site, trial, kind, start, end (UTC), took: a row a stretch."""
    peers_left_out: int
    bars_left_out: int


def gantt(state: State, now: float, *, most: int = _BARS, rows: int = _ROWS) -> Gantt:
    """Who ran what: the peers that were busy last, and the newest stretches."""
    import pandas as pd

    found = sorted(stretches(state), key=lambda one: one.end)
    if not found:
        return Gantt(pd.DataFrame(columns=["peer", "site", "trial", "kind", "start", "end", "took"]), 0, 0)
    owners = list(dict.fromkeys(one.owner for one in reversed(found)))
    shown = set(owners[:rows])
    kept = [one for one in found if one.owner in shown]
    bars = kept[-most:]
    labels = labels_of(state, sorted(shown))
    sites_of = {owner: state.peers.get(owner, {}).get("site") or "?" for owner in shown}
    end_of_running = int(now * 1e6)
    ends = [max(one.start, end_of_running) if one.kind == "running" else one.end for one in bars]
    frame = pd.DataFrame(
        {
            "peer": [f"{sites_of[one.owner][:24]}: {labels[one.owner]}" for one in bars],
            "site": [sites_of[one.owner] for one in bars],
            "trial": [one.number for one in bars],
            "kind": [KINDS.get(one.kind, one.kind) for one in bars],
            "start": pd.to_datetime([one.start for one in bars], unit="us", utc=True),
            "end": pd.to_datetime(ends, unit="us", utc=True),
            "took": [round((end - one.start) / 1e6, 1) for one, end in zip(bars, ends, strict=True)],
        }
    )
    return Gantt(frame, len(owners) - len(shown), len(kept) - len(bars))
