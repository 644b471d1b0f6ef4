"""The timeline: one row per peer, with the trials it ran, what was interrupted, and where that was retried."""

from __future__ import annotations

from typing import Final, NamedTuple

from hopaas_p2p.analysis import svg
from hopaas_p2p.analysis.charts import Figure, key
from hopaas_p2p.analysis.facts import duration, peer_labels
from hopaas_p2p.analysis.svg import Scale
from hopaas_p2p.core.spending import is_last_lease
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, State

_W: Final = 1040.0
_LEFT: Final = 150.0
_ROW: Final = 26.0
_ROWS: Final = 40
_FEW: Final = 800
_LINKS: Final = 60
_KINDS: Final = {COMPLETE: "complete", PRUNED: "pruned", FAIL: "failed"}


class Stretch(NamedTuple):
    """A trial's time on one peer: microseconds by that peer's clock."""

    owner: str
    number: int
    start: int
    end: int
    kind: str
    """complete, pruned, failed, running, lost (taken over) or given-back."""


def stretches(state: State) -> list[Stretch]:
    """All stretches of the study, by trial."""
    newest = max((t.end for t in state.trials if t.end is not None), default=0)
    found = []
    for trial in state.trials:
        for tenure in trial.history:
            if tenure.start is not None:
                kind = "given-back" if tenure.why.startswith(("released", "interrupted")) else "lost"
                found.append(Stretch(tenure.owner, trial.number, tenure.start, max(tenure.start, tenure.end), kind))
        if trial.owner is None or trial.start is None or is_last_lease(trial):
            continue
        end = max(trial.start, newest if trial.end is None else trial.end)
        found.append(Stretch(trial.owner, trial.number, trial.start, end, _KINDS.get(trial.state, "running")))
    return found


def timeline(state: State) -> Figure | None:
    """The chart; None if no trial has been started."""
    found = stretches(state)
    if not found:
        return None
    labels = peer_labels(state)
    rows, left_out = _rows(found)
    found = [one for one in found if one.owner in rows]
    began = min(one.start for one in found)
    seconds = max(0.001, (max(one.end for one in found) - began) / 1e6)
    x = Scale(0.0, seconds, _LEFT, _W - 14)
    height = 14 + _ROW * len(rows) + 40
    parts = [_grid(x, height, seconds)]
    for owner, row in rows.items():
        count = sum(one.owner == owner for one in found)
        parts.append(
            f'<text class="tick end" x="{svg.px(_LEFT - 8)}" y="{svg.px(_y(row) + 13)}">'
            f"{svg.safe(labels.get(owner, owner), longest=22)}"
            f"<title>{svg.safe(labels.get(owner, owner))}: {count} trials</title></text>"
        )
    parts.append(_bars(found, rows, x, began))
    parts.append(_links(state, found, rows, x, began))
    lost = sum(one.kind == "lost" for one in found)
    keys = [("complete", "complete"), ("pruned", "pruned"), ("failed", "failed"), ("running", "running")]
    present = {one.kind for one in found}
    caption = " ".join(key(css, text) for css, text in keys if css in present)
    if lost:
        caption += (
            f" {key('lost', f'{lost:,} interrupted')} The peer fell silent; the bar ends when the trial was taken "
            "from it. The line leads to the retry."
        )
    if left_out:
        caption += f" {left_out:,} more peers are not drawn."
    about = f"{len(rows)} peers over {duration(seconds)}; {lost} trials were interrupted"
    drawing = svg.svg("".join(parts), width=_W, height=height, title="Timeline by peer", description=about, css="wide")
    return Figure("Timeline by peer", drawing, caption + " Times are by each peer's own clock.", wide=True)


def _rows(found: list[Stretch]) -> tuple[dict[str, int], int]:
    """Peer -> row, in order of first appearance; if there are too many, the busiest and those with interruptions."""
    first: dict[str, int] = {}
    count: dict[str, int] = {}
    for one in found:
        first[one.owner] = min(first.get(one.owner, one.start), one.start)
        count[one.owner] = count.get(one.owner, 0) + (1000 if one.kind == "lost" else 1)
    kept = sorted(count, key=lambda owner: (-count[owner], owner))[:_ROWS]
    ordered = sorted(kept, key=lambda owner: (first[owner], owner))
    return {owner: row for row, owner in enumerate(ordered)}, len(count) - len(kept)


def _y(row: int) -> float:
    return 10 + row * _ROW


def _grid(x: Scale, height: float, seconds: float) -> str:
    bottom = height - 36
    parts = [f'<path class="axis" d="M{svg.px(_LEFT)} {svg.px(bottom)}H{svg.px(_W - 14)}"/>']
    for tick in x.ticks(8):
        at = svg.px(x(tick))
        text = duration(tick) if seconds >= 120 else f"{tick:g} s"
        parts.append(f'<path class="grid" d="M{at} 6V{svg.px(bottom)}"/>')
        parts.append(f'<text class="tick mid" x="{at}" y="{svg.px(bottom + 16)}">{text}</text>')
    parts.append(f'<text class="name end" x="{svg.px(_W - 14)}" y="{svg.px(bottom + 31)}">since the first trial</text>')
    return "".join(parts)


def _bars(found: list[Stretch], rows: dict[str, int], x: Scale, began: int) -> str:
    parts = []
    paths: dict[str, list[str]] = {}
    for one in found:
        start, end = x((one.start - began) / 1e6), x((one.end - began) / 1e6)
        width = max(1.5, end - start - 0.8)
        top = _y(rows[one.owner])
        if len(found) > _FEW and one.kind != "lost":
            paths.setdefault(one.kind, []).append(f"M{svg.px(start)} {svg.px(top + 9)}h{svg.px(width)}")
            continue
        took = duration((one.end - one.start) / 1e6)
        parts.append(
            f'<rect class="{one.kind}" x="{svg.px(start)}" y="{svg.px(top)}" width="{svg.px(width)}" height="18" '
            f'rx="2"><title>trial {one.number}: {one.kind}, {took}</title></rect>'
        )
        if one.kind == "lost":
            parts.append(f'<text class="cross mid" x="{svg.px(start + width / 2)}" y="{svg.px(top + 14)}">✕</text>')
    drawn = [
        f'<path class="{kind} bars" stroke-width="18" d="{"".join(path)}"/>' for kind, path in sorted(paths.items())
    ]
    return "".join(drawn + parts)


def _links(state: State, found: list[Stretch], rows: dict[str, int], x: Scale, began: int) -> str:
    """A line from the end of each lost stretch to the first stretch of its retry."""
    first: dict[int, Stretch] = {}
    for one in found:
        first.setdefault(one.number, one)
    parts = []
    for one in [one for one in found if one.kind == "lost"][:_LINKS]:
        retry = state.trials[one.number].retried_by
        there = first.get(retry) if retry is not None else None
        if there is None:
            continue
        x1, y1 = x((one.end - began) / 1e6), _y(rows[one.owner]) + 9
        x2, y2 = x((there.start - began) / 1e6), _y(rows[there.owner]) + 9
        parts.append(
            f'<path class="link" d="M{svg.px(x1)} {svg.px(y1)}C{svg.px(x1 + 14)} {svg.px(y1)} '
            f'{svg.px(x2 - 14)} {svg.px(y2)} {svg.px(x2)} {svg.px(y2)}">'
            f"<title>trial {one.number} came back as trial {there.number}</title></path>"
            f'<circle class="link-end" cx="{svg.px(x2)}" cy="{svg.px(y2)}" r="3.5"/>'
        )
    return "".join(parts)
