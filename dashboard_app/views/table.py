"""The trials as a table for people, the selections of filters and searches, and the trials' notes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dashboard_app.views.studies import first_line
from hopaas_p2p import notes
from hopaas_p2p.analysis.chart import cut
from hopaas_p2p.analysis.facts import why_not
from hopaas_p2p.analysis.table import Floats, Mask, Parameter, TrialTable, place
from hopaas_p2p.core.names import first_id
from hopaas_p2p.core.state import State
from hopaas_p2p.moving.tables import cell

if TYPE_CHECKING:  # pandas takes half a second to import
    import pandas as pd

FIXED: Final = ("trial", "state", "site", "node", "started", "seconds", "steps", "last", "attempt", "reason", "tags",
         "note")  # fmt: skip
"""Our own columns. A parameter with such a name is shown as `param NAME`, and an objective as `value NAME`."""
_REASON: Final = 200
_CHOICE: Final = 58  # as many characters fit in the widest column
_NOTE: Final = re.compile(r"dashboard:([0-9]{1,20}):note_str:0")


def table(
    state: State, columns: TrialTable, shown: Mask, *, tags: dict[int | None, list[str]], lines: dict[int, str]
) -> pd.DataFrame:
    """The trials to show, newest first; parameters as the objective saw them, and strings made safe for CSV."""
    import pandas as pd

    rows = np.flatnonzero(shown)[::-1]
    numbers: list[int] = rows.tolist()
    found: dict[str, Any] = {"trial": rows, "state": np.char.lower(columns.words[rows])}
    for name, values in zip(columns.objectives, columns.values[rows].T, strict=True):
        found[f"value {name}" if name in FIXED else name] = values
    for name, column in columns.params.items():
        own = f"param {name}" if name in FIXED or name in found else name
        found[own] = _param(column[rows], columns.parameters[name])
    hosts = [place(state, owner)[1] for owner in columns.owners] + [""]
    found |= {
        "site": [columns.sites[at] if at < len(columns.sites) else "" for at in columns.site[rows]],
        "node": [hosts[at] for at in columns.owner[rows]],
        "started": pd.to_datetime(columns.start[rows] * 1000, unit="ms", utc=True),
        "seconds": columns.seconds()[rows].round(1),
        "steps": columns.steps[rows],
        "last": columns.last[rows],
        "attempt": columns.attempt[rows],
        "reason": [why_not(state.trials[one])[:_REASON] for one in numbers],
    }
    if tags:
        found["tags"] = [", ".join(tags.get(one, ())) for one in numbers]
    if lines:
        found["note"] = [lines.get(one, "") for one in numbers]
    texts = pd.DataFrame({cell(name): column for name, column in found.items()})
    for one in texts.select_dtypes(exclude=["number", "datetimetz"]):  # the browser can save these columns as CSV
        texts[one] = texts[one].map(cell)
    return texts


def _param(column: Floats, one: Parameter) -> Any:
    if one.choices is not None:
        codes = np.where(np.isfinite(column), column, -1).astype(np.int64)
        codes[codes >= len(one.choices)] = -1
        return np.array([*(cut(choice, _CHOICE) for choice in one.choices), ""], dtype=object)[codes]
    whole = one.whole and bool((column == np.rint(column)).all()) and bool((np.abs(column) < 2**53).all())
    return column.astype(np.int64) if whole else column  # a trial without the parameter has NaN


def passing(
    columns: TrialTable,
    *,
    states: Collection[str] = (),
    sites: Collection[str] = (),
    first: float | None = None,
    last: float | None = None,
    ranges: Collection[tuple[str, float, float]] = (),
) -> Mask:
    """Which trials pass the filter that pages share. An empty part of the filter passes every trial.

    Args:
        columns: all trials.
        states: some of the words complete, pruned, paused, fail, running and waiting.
        sites: names of sites.
        first, last: trial numbers, both inclusive.
        ranges: (parameter, from, to), both inclusive, in the log's representation.

    """
    mask: Mask = np.ones(len(columns), dtype=np.bool_)
    if states:
        mask &= np.isin(columns.words, [word.upper() for word in states])
    if sites:
        mask &= np.isin(columns.site, [index for index, name in enumerate(columns.sites) if name in sites])
    if first is not None:
        mask &= columns.number >= first
    if last is not None:
        mask &= columns.number <= last
    for name, low, high in ranges:
        column = columns.params.get(name)
        if column is not None:
            mask &= (column >= low) & (column <= high)
    return mask


def matching(state: State, columns: TrialTable, text: str, tags: dict[int | None, list[str]]) -> Mask:
    """The trials whose reason, site, node, user or tags contain the text, ignoring case, or whose number it is."""
    wanted = text.strip().casefold()
    if not wanted:
        return np.ones(len(columns), dtype=np.bool_)
    infos = [state.peers.get(owner, {}) for owner in columns.owners]
    texts = ["\n".join(info.get(key, "") for key in ("site", "host", "user")).casefold() for info in infos]
    found: Mask = np.array([wanted in text for text in texts] + [False])[columns.owner]
    number = wanted.lstrip("#")
    for one in range(len(columns)):
        texts = [state.trials[one].reason or "", *tags.get(one, ())]
        if number == str(one) or any(wanted in text.casefold() for text in texts if text):
            found[one] = True
    return found


def note_lines(system: Mapping[str, Any], study_id: int) -> dict[int, str]:
    """The first line of the note of each trial that has one. `system` holds the study's system attributes, decoded."""
    ids = [int(match[1]) for match in map(_NOTE.fullmatch, system) if match]
    return {one - first_id(study_id): line for one in ids if (line := first_line(notes.read_note(system, one)))}
