"""Studies as metrics, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Final

from hopaas_p2p.analysis.spending import spending
from hopaas_p2p.analysis.table import TrialTable, place
from hopaas_p2p.core.admission import next_start
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.spending import past_leases
from hopaas_p2p.core.state import State
from hopaas_p2p.peer.liveness import owners_of

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def exposition(studies: Iterable[tuple[str, str, State, TrialTable, float]]) -> str:
    """All metrics of all studies, each with its store, its name and the age of the data; deterministic."""
    samples: dict[str, list[str]] = {}
    for store, study, state, columns, age in studies:
        for name, labels, value in _of(state, columns, age):
            parts = {"store": store, "study": study, **labels}
            said = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in parts.items())
            number = f"{value:.10g}" if math.isfinite(value) else {"inf": "+Inf", "-inf": "-Inf"}.get(str(value), "NaN")
            samples.setdefault(name, []).append(f"{name}{{{said}}} {number}\n")
    return "".join(line for lines in samples.values() for line in lines)


def _of(state: State, columns: TrialTable, age: float) -> Iterable[tuple[str, dict[str, str], float]]:
    for one in TrialState:
        yield "hopaas_trials", {"state": one.name.lower()}, int(columns.is_(one).sum())
    for objective, direction in enumerate(columns.directions):
        best = columns.best(objective)
        if best is not None:
            labels = {"objective": str(objective), "direction": direction}
            yield "hopaas_best_value", labels, float(columns.values[best, objective])
    if state.budget is not None:
        yield "hopaas_budget_trials", {}, state.budget
    for site, count in sorted(Counter(place(state, owner)[0] for owner in owners_of(state)).items()):
        yield "hopaas_running_peers", {"site": site}, count
    for reason, count in sorted(dict(state.refusals).items()):
        yield "hopaas_records_refused_total", {"reason": reason}, count
    yield "hopaas_budget_used_trials", {}, state.used()
    yield "hopaas_accepting", {}, float(next_start(state).why is None)
    yield "hopaas_compute_seconds_total", {}, spending(state).total["seconds"]
    ends = Counter(how for trial in list(state.trials) for _, how in past_leases(trial))
    yield "hopaas_leases_lost_total", {}, ends["taken over"]
    yield "hopaas_leases_returned_total", {}, ends["returned"]
    yield "hopaas_log_commits_total", {}, columns.lsn
    yield "hopaas_read_age_seconds", {}, round(age, 3)
