"""A study, and a trial, at a glance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.analysis import charts, palette
from hopaas_p2p.analysis.facts import best, budget_unit, params_of, pareto_front, shown, state_word
from hopaas_p2p.analysis.svg import key, safe
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, RUNNING, WAITING, State
from hopaas_p2p.notebook.frame import drawn, framed
from hopaas_p2p.peer.liveness import any_alive, signs_of_life
from hopaas_p2p.report.page import table, trials_table
from hopaas_p2p.study_like import StudyLike, looking_at

_ROWS: Final = 8
_COLUMNS: Final = 6
_KEYS: Final = {
    COMPLETE: ("complete", palette.COMPLETE),
    PRUNED: ("pruned", palette.PRUNED),
    FAIL: ("failed", palette.FAILED),
    RUNNING: ("running", palette.RUNNING),
    WAITING: ("waiting", palette.WAITING),
}


def study_html(study: StudyLike) -> str:
    """The study: its status, the best trial, the newest trials."""
    working = any_alive(signs_of_life(study.storage.peer, study.state).values())
    with looking_at(study) as state:
        return framed(overview(state, name=study.name, store=study.storage.url, working=working))


def overview(state: State, *, name: str, store: str, working: bool | None, chart: bool = False) -> str:
    """The content of the study's view; `working` as for `state_word`."""
    directions = state.define.directions if state.define is not None else ()
    budget = "no budget" if state.budget is None else f"{state.used():,} of {state.budget:,} {budget_unit(state)} used"
    sites = {state.peers.get(state.trials[one].owner or "", {}).get("site", "?") for one in state.running}
    running = [f"running at {', '.join(sorted(sites))}"] if sites else []
    about = " · ".join(
        safe(one, longest=120) for one in (store, *([", ".join(directions)] * bool(directions)), budget, *running)
    )
    counts = " ".join(
        key(colour, f"{state.counts[at]:,} {word}") for at, (word, colour) in _KEYS.items() if state.counts[at]
    )
    newest = _trials(state)
    history = charts.history(TrialTable.of(state)) if chart and directions else None
    if history is not None:
        newest = f'<div class="two">{drawn(history)}<div>{newest}</div></div>'
    return (
        f'<div class="head">{safe(name)} · {safe(state_word(state, working=working))}</div>'
        f'<p class="about">{about}</p><p>{counts or "No trials yet."}</p>{_best(state)}{newest}'
    )


def _best(state: State) -> str:
    if state.define is not None and len(state.define.directions) > 1:
        return f"<p>{len(pareto_front(state)):,} trials on the Pareto front</p>"
    top = best(state)
    if top is None or not top.values:
        return ""
    params = ", ".join(f"{name} = {shown(value)}" for name, value in params_of(top, state).items())
    return (
        f"<p>{key(palette.BEST, f'best: {shown(top.values[0])}')} trial {top.number}: {safe(params, longest=400)}</p>"
    )


def _trials(state: State) -> str:
    """The running trials and the newest of the others."""
    running = [state.trials[number] for number in list(state.running)[-_ROWS:]]
    others = [trial for trial in state.trials[-2 * _ROWS :] if trial.state is not RUNNING][-_ROWS:]
    rows = sorted([*running, *others], key=lambda trial: -trial.number)
    return trials_table(rows, state, most=_COLUMNS, live=True) if rows else ""


def trial_html(
    frozen: FrozenTrial,
    state: TrialState,
    *,
    attempt: int,
    lease_held: bool,
    metrics: Mapping[str, Mapping[int, float]],
) -> str:
    """A trial as its own process sees it: parameters, attributes and reports; its `state` is the log's."""
    held = "" if state.is_finished() else " · its lease is held" if lease_held else " · its lease was lost"
    parts = [f'<div class="head">Trial {frozen.number} · {safe(state.name)}</div>']
    parts.append(f'<p class="about">attempt {attempt}{held}</p>')
    params = [[name, shown(value)] for name, value in frozen.params.items()]
    attributes = [[name, json.dumps(value, default=str)] for name, value in frozen.user_attrs.items()]
    tables = [table(["parameter", "value"], params, words=("parameter",))] if params else []
    if attributes:
        tables.append(table(["attribute", "value"], attributes, words=("attribute",)))
    logged = [[name, shown(values[max(values)])] for name, values in metrics.items() if values]
    if logged:
        tables.append(table(["metric", "last value"], logged, words=("metric",)))
    curve = charts.reported("reports", frozen.intermediate_values)
    chart = "" if curve is None else drawn(curve)
    return framed(f'{"".join(parts)}<div class="two"><div>{"".join(tables)}</div>{chart}</div>')
