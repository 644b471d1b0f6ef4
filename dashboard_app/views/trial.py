"""The content of a trial's page: its rank and its owners, or several trials side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from hopaas_p2p.analysis.chart import Chart, cut, dashed, number
from hopaas_p2p.analysis.charts import by_step, reported
from hopaas_p2p.analysis.facts import duration, last_metrics, last_report, row_of, shown, trial_word, why_not
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.records import PastLease, TrialState
from hopaas_p2p.core.spending import is_last_lease
from hopaas_p2p.core.state import State, Trial

MOST: Final = 5  # trials side by side
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_LONGEST: Final = 120


def rank(columns: TrialTable, number: int) -> tuple[int, int] | None:
    """A trial's rank among the complete and feasible trials, from 1 for the best, and the number of these trials.

    None if it is not among them, or the study has several objectives.
    """
    complete = columns.complete() & ~columns.infeasible
    if len(columns.directions) != 1 or number >= len(columns) or not complete[number]:
        return None
    cost = columns.cost()
    return int(np.count_nonzero(complete & (cost < cost[number]))) + 1, int(np.count_nonzero(complete))


def leases(trial: Trial) -> list[PastLease]:
    """Every lease and how it ended, oldest first."""
    past = list(trial.history)
    if trial.owner is not None and not is_last_lease(trial):
        how = "runs" if trial.state is TrialState.RUNNING else trial_word(trial).lower()
        past.append(PastLease(trial.owner, trial.epoch, trial.start, trial.end or 0, how))
    return past


def numbers_in(text: str, count: int) -> list[int]:
    """The first five existing trials that a string names, each once."""
    return [one for one in dict.fromkeys(map(int, _NUMBER.findall(text))) if one < count][:MOST]


def side_by_side(state: State, columns: TrialTable, numbers: Sequence[int]) -> list[tuple[str, str, list[str]]]:
    """The facts about these trials, one row each. A row has a kind ("result", "parameter" or "metric"), a name, and one
    text per trial, which is empty for a trial without that fact.
    """
    trials, rows = [state.trials[one] for one in numbers], [row_of(state, one) for one in numbers]
    ranks = [rank(columns, one) for one in numbers]
    results = {
        "value": [", ".join(map(number, row["values"] or ())) for row in rows],
        "rank": ["" if one is None else f"{one[0]:,} of {one[1]:,}" for one in ranks],
        "last report": [last_report(one) for one in trials],
        "time": ["" if row["seconds"] is None else duration(row["seconds"]) for row in rows],
        "attempt": [str(row["attempt"]) for row in rows],
        "site": [row["site"] or "" for row in rows],
        "reason": [why_not(one) for one in trials],
    }
    found = [("result", name, cells) for name, cells in results.items() if any(cells)]
    params, metrics = [row["params"] for row in rows], [last_metrics(one) for one in trials]
    for kind, of in (("parameter", params), ("metric", metrics)):
        for name in dict.fromkeys(name for some in of for name in some):
            values = [some.get(name) for some in of]
            cells = ["" if value is None else cut(shown(value), _LONGEST) for value in values]
            if len(set(cells)) < len({repr(value) for value in values}):  # they differ in digits that are not shown
                cells = ["" if value is None else cut(str(value), _LONGEST) for value in values]
            found.append((kind, name, cells))
    return found


def curves(state: State, numbers: Sequence[int]) -> Chart | None:
    """The learning curves of these trials in one chart."""
    own = [reported(f"trial {one}", state.trials[one].reports) for one in numbers]
    return by_step("Learning curves", [dashed(one.name, at, one.data) for at, one in enumerate(own) if one.drawn > 1])
