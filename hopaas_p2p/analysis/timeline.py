"""Draws the timeline of a study, with one row per peer that shows the trials it ran, interruptions and retries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from hopaas_p2p.analysis import palette
from hopaas_p2p.analysis.chart import Chart, ChartAxis, Points, Series, bundled, cut
from hopaas_p2p.analysis.facts import count, duration, peer_labels, trial_word
from hopaas_p2p.core.spending import is_last_lease, past_leases
from hopaas_p2p.core.state import State

_ROWS: Final = 40
_BARS: Final = 1500
_LINKS: Final = 60
_KINDS: Final = {"COMPLETE": "complete", "PRUNED": "pruned", "PAUSED": "paused", "FAIL": "failed"}
_LOOKS: Final = {
    "complete": (palette.COMPLETE, 18, "marks", "solid"),
    "pruned": (palette.PRUNED, 10, "marks", "solid"),
    "paused": (palette.PAUSED, 10, "marks", "solid"),
    "failed": (palette.FAILED, 6, "marks", "solid"),
    "running": (palette.RUNNING, 14, "marks", "solid"),
    "taken over": (palette.LOST, 16, "marks", "dotted"),
    "returned": (palette.WAITING, 8, "marks", "solid"),
    "came back": (palette.LOST, 1.8, "marks", "solid"),
}
"""Colour, height, symbol and dashes for each kind. The height helps people who cannot tell the colours apart."""
_UNITS: Final = (("days", 86400e6), ("hours", 3600e6), ("minutes", 60e6), ("seconds", 1e6))


class Stretch(NamedTuple):
    """A trial's time on one peer, in microseconds by that peer's clock."""

    owner: str
    number: int
    start: int
    end: int
    kind: str
    """One of complete, pruned, paused, failed, running, taken over and returned."""


def stretches(state: State) -> list[Stretch]:
    """All stretches of the study, in the order of the trials. A copied trial has none, because no peer here ran it."""
    newest = max((t.end for t in state.trials if t.end is not None), default=0)
    found = []
    for trial in state.trials:
        for tenure, kind in past_leases(trial):
            if tenure.start is not None:
                found.append(Stretch(tenure.owner, trial.number, tenure.start, max(tenure.start, tenure.end), kind))
        if trial.owner is None or trial.start is None or is_last_lease(trial):
            continue
        end = max(trial.start, newest if trial.end is None else trial.end)
        found.append(Stretch(trial.owner, trial.number, trial.start, end, _KINDS.get(trial_word(trial), "running")))
    return found


def timeline(state: State, now: float | None = None, *, most: int = _BARS, rows: int = _ROWS) -> Chart | None:
    """The newest stretches of the most recently busy peers; None if no peer of the study has started a trial.

    Args:
        state: the study.
        now: the time, in seconds since 1970, up to which running trials are drawn. The axis then shows times of day. By
            default, running trials are drawn to the last time in the log, and the axis counts from the first trial
            drawn.
        most: the maximum number of stretches drawn.
        rows: the maximum number of peers drawn.

    """
    found = sorted(stretches(state), key=lambda one: one.end)
    if not found:
        return None
    owners = list(dict.fromkeys(one.owner for one in reversed(found)))
    labels = peer_labels(state)
    row = {owner: at for at, owner in enumerate(sorted(owners[:rows], key=lambda one: labels.get(one, one)))}
    kept = [one for one in found if one.owner in row]
    bars = kept[-most:]
    began, name, scale = 0, "", 1000.0  # an axis of times is in milliseconds
    if now is None:
        began = min(one.start for one in bars)
        units = [unit for unit in _UNITS if unit[1] * 4 <= bars[-1].end - began]
        unit, scale = units[0] if units else _UNITS[-1]
        name = f"{unit} since the first trial drawn"
    counts = Counter(one.kind for one in bars)
    notes = ["Each peer's times are by its own clock"]
    notes += [f"{count(len(owners) - len(row), 'more peer')} not drawn"] if len(owners) > len(row) else []
    notes += [f"{count(len(kept) - len(bars), 'earlier period')} not drawn"] if len(kept) > len(bars) else []
    copied = sum(one.start is not None and one.owner is None and not one.history for one in state.trials)
    notes += [f"{count(copied, 'copied trial')} not drawn"] if copied else []
    about = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    return Chart(
        "Timeline by peer",
        _layers(state, bars, row, lambda at: (at - began) / scale, (now or 0) * 1e6),
        ChartAxis(name, time=now is not None),
        ChartAxis(choices=tuple(cut(labels.get(owner, owner), 26) for owner in row), down=True),
        f"Timeline of {count(len(row), 'peer')}: {about}.",
        ". ".join(notes) + ".",
        height=26 * len(row) + 120,
        wide=True,
    )


def _layers(
    state: State, bars: list[Stretch], row: dict[str, int], place: Callable[[float], float], until: float
) -> list[Series]:
    """Thick lines for the stretches, by kind, and thin lines from an interrupted trial to its retry."""
    drawn: dict[str, list[tuple[Points, int, str]]] = {kind: [] for kind in _LOOKS}
    for one in bars:
        end, at = max(one.end, until) if one.kind == "running" else one.end, row[one.owner]
        said = f"trial {one.number}: {one.kind}, {duration((end - one.start) / 1e6)}"
        drawn[one.kind].append(([(place(one.start), at), (place(end), at)], one.number, said))
    first = {one.number: one for one in reversed(bars)}
    for one in [one for one in bars if one.kind == "taken over"][-_LINKS:]:
        there = first.get(state.trials[one.number].retried_by or -1)
        if there is not None:
            said = f"trial {one.number} came back as trial {there.number}"
            line: Points = [(place(one.end), row[one.owner]), (place(there.start), row[there.owner])]
            drawn["came back"].append((line, one.number, said))
    names = ("at", "peer", "trial", "said")
    return [Series(kind, "line", bundled(names, lines), *_LOOKS[kind]) for kind, lines in drawn.items() if lines]
