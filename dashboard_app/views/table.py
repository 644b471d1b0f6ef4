"""The trials as a table for people: one row a trial, parameters as the objective saw them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dashboard_app.views.columns import Columns, Floats, Mask, Parameter
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State

if TYPE_CHECKING:
    import pandas as pd

FIXED: Final = ("trial", "state", "site", "node", "started", "seconds", "steps", "last", "attempt", "reason")
"""Columns that are no value, parameter or tag; a parameter of such a name is shown as `param NAME`."""
_REASON: Final = 200


def table(state: State, columns: Columns, shown: Mask, *, tags: dict[int, list[str]] | None = None) -> pd.DataFrame:
    """The trials that are shown, the newest first."""
    import pandas as pd

    rows = np.flatnonzero(shown)[::-1]
    words = np.array([one.name.lower() for one in TrialState])
    found: dict[str, Any] = {"trial": columns.number[rows], "state": words[columns.state[rows]]}
    for objective, name in enumerate(value_names(columns)):
        found[name] = columns.values[rows, objective]
    for name, column in columns.params.items():
        found[param_name(name)] = _param(column[rows], columns.parameters[name])
    numbers = columns.number[rows].tolist()
    hosts = [state.peers.get(owner, {}).get("host") or "?" for owner in columns.owners] + [""]
    found |= {
        "site": [columns.sites[at] if at < len(columns.sites) else "" for at in columns.site[rows]],
        "node": [hosts[at] for at in columns.owner[rows]],
        "started": pd.to_datetime(columns.start[rows] * 1000, unit="ms", utc=True),
        "seconds": columns.seconds()[rows].round(1),
        "steps": columns.steps[rows],
        "last": columns.last[rows],
        "attempt": columns.attempt[rows],
        "reason": _reasons(state, numbers),
    }
    if tags:
        found["tags"] = [", ".join(tags.get(one, ())) for one in numbers]
    return pd.DataFrame(found)


def value_names(columns: Columns) -> list[str]:
    """The columns that hold the objectives' values."""
    return ["value"] if len(columns.directions) == 1 else [f"value {at}" for at in range(len(columns.directions))]


def param_name(name: str) -> str:
    """The column of a parameter; never one of our own."""
    return f"param {name}" if name in FIXED or name == "tags" or name.startswith("value") else name


def _param(column: Floats, one: Parameter) -> Any:
    if one.choices is not None:
        codes = np.where(np.isfinite(column), column, -1).astype(np.int64)
        codes[codes >= len(one.choices)] = -1
        return np.array([*one.choices, ""], dtype=object)[codes]
    whole = one.whole and bool((column == np.rint(column)).all()) and bool((np.abs(column) < 2**53).all())
    return column.astype(np.int64) if whole else column  # one that some trials lack has gaps, which no integer has


def _reasons(state: State, numbers: Iterable[int]) -> list[str]:
    trials = state.trials
    return [(trials[one].reason or "").strip().split("\n", 1)[0][:_REASON] for one in numbers]


def matching(state: State, columns: Columns, text: str, tags: dict[int, list[str]]) -> Mask:
    """The trials in whose reason, site, node or tags the text stands, whatever its case; or whose number it is."""
    wanted = text.strip().casefold()
    if not wanted:
        return np.ones(len(columns), dtype=np.bool_)
    owners = np.array(
        [
            wanted in f"{said.get('site', '')}\n{said.get('host', '')}\n{said.get('user', '')}".casefold()
            for said in (state.peers.get(owner, {}) for owner in columns.owners)
        ]
        + [False]
    )
    found: Mask = owners[columns.owner]
    number = wanted.lstrip("#")
    for row, one in enumerate(columns.number.tolist()):
        reason = state.trials[one].reason
        if (
            number == str(one)
            or (reason is not None and wanted in reason.casefold())
            or any(wanted in tag.casefold() for tag in tags.get(one, ()))
        ):
            found[row] = True
    return found


def tags_by_trial(system: dict[str, Any]) -> dict[int, list[str]]:
    """Trial -> its tags, out of a study's system attributes."""
    found = {}
    for key, value in system.items():
        head, _, rest = key.partition(":")
        number, _, tail = rest.partition(":")
        if head == "hopaas" and tail == "tags" and number.isdigit() and isinstance(value, list):
            found[int(number)] = [str(one) for one in value]
    return found
