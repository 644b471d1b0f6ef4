"""Renders a State as the page of a report. Everything from the store is escaped where it is written."""

from __future__ import annotations

import datetime
import importlib.resources
import json
import string
from collections.abc import Iterator, Sequence
from typing import Final

from hopaas_p2p.analysis import charts, html, tiles
from hopaas_p2p.analysis.chart import Chart
from hopaas_p2p.analysis.facts import (
    best,
    count,
    counts,
    duration,
    last_report,
    peer_labels,
    row_of,
    shown,
    value_columns,
)
from hopaas_p2p.analysis.failures import HEADS, failures
from hopaas_p2p.analysis.failures import cells as failure_cells
from hopaas_p2p.analysis.html import Html, safe
from hopaas_p2p.analysis.importance import importance
from hopaas_p2p.analysis.replicates import replicates
from hopaas_p2p.analysis.savings import savings
from hopaas_p2p.analysis.spending import budget_lines, cells, spending
from hopaas_p2p.analysis.svg import legend, svg
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.analysis.timeline import timeline
from hopaas_p2p.core.attributes import PRUNER, REPLICATE, SAMPLER
from hopaas_p2p.core.state import State
from hopaas_p2p.search import registry
from hopaas_p2p.search.priors import Learned, learned_of

_TOP: Final = 10
_FRONT: Final = 30
_OBJECTIVES: Final = 4
_SLICES: Final = 8
_COLUMNS: Final = 10
_GROUPS: Final = 20
_METRICS: Final = 12
_DOTS: Final = 3000


def render(state: State, *, name: str, store: str, now: datetime.datetime) -> str:
    """The whole page as HTML. The same State and time give the same text."""
    trials = TrialTable.of(state)
    empty = "No trial has been started yet." if state.define is not None else "This study has no definition yet."
    learned = learned_of(state, trials)
    sections = _sections(state, trials, learned) if state.trials else [("Nothing to show yet", _line(empty))]
    return string.Template(part("page.html")).substitute(
        title=safe(f"{name} · hopaas-p2p", longest=120),
        style=part("charts.css") + part("tables.css") + part("style.css"),
        name=safe(name),
        about=_about(state, learned),
        tiles=_tiles(state, trials),
        sections="\n".join(
            f'<section class="card"><h2>{safe(title)}</h2>{body}</section>' for title, body in sections if body
        ),
        footer=f"{safe(store, longest=2000)} · log position {state.lsn:,} · {now:%Y-%m-%d %H:%M:%S} UTC",
    )


def part(name: str) -> str:
    """The text of a file next to this one, which is the page or one of its style sheets."""
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _line(text: str) -> str:
    return f'<p class="none">{safe(text, longest=2000)}</p>'


def _about(state: State, learned: list[Learned]) -> str:
    define = state.define
    if define is None:
        return ""
    facts = [", ".join(define.directions)]
    facts += [registry.in_words(json.loads(state.system[key])) for key in (SAMPLER, PRUNER) if key in state.system]
    facts += [f"budget {state.budget:,}"] if state.budget is not None else []
    facts += [state.status] if state.status != "running" else []
    return " · ".join(safe(one, longest=100) for one in [*facts, *map(str, learned)])


def _tiles(state: State, trials: TrialTable) -> Html:
    counted, saved = counts(state), savings(state, trials)
    also = ", ".join(f"{counted[one]:,} {one.lower()}" for one in ("RUNNING", "WAITING", "PAUSED") if counted[one])
    owners = {trial.owner for trial in state.trials} | {t.owner for trial in state.trials for t in trial.history}
    found = [
        tiles.best(trials),
        ("complete", f"{counted['COMPLETE']:,}", also or "trials"),
        ("pruned", f"{counted['PRUNED']:,}", "trials"),
        tiles.failed(state),
        ("peers", f"{len(owners - {None}):,}", "took part"),
    ]
    if saved.pruned:
        more = f"of the steps; pruning saved about {shown(round(saved.steps))} of them, or {saved.time}"
        found.append(("saved by pruning", f"≈ {saved.share:.0%}", more))
    spans = [(t.start, t.end) for t in state.trials if t.start is not None and t.end is not None and t.end >= t.start]
    if spans:
        wall = (max(end for _, end in spans) - min(start for start, _ in spans)) / 1e6
        spent = f"{duration(spending(state).total['seconds'])} of training"
        found.append(("from the first trial to the last", duration(wall), spent))
    return html.tiles(found)


def _sections(state: State, trials: TrialTable, learned: list[Learned]) -> Iterator[tuple[str, str]]:
    """Title and content of each section; empty sections are left out."""
    gantt = timeline(state)
    if gantt is not None:
        yield gantt.title, figure(gantt)
    objectives = range(min(len(trials.directions), _OBJECTIVES))
    ignored = [(one.name, one.until) for one in learned if one.until is not None]
    histories = [charts.history(trials, at, most=_DOTS, ignored=ignored) for at in objectives]
    for chart in (charts.pareto(trials), *histories, charts.curves(state, trials)):
        if chart is not None:
            yield chart.title, figure(chart)
    yield "Which parameters matter", _parameters(state, trials)
    if len(trials.directions) == 1:
        yield "Best means over replicates", _best_means(state)
        ranked = trials.ranked(shown=~trials.infeasible)
        yield "Best trials", trials_table(ranked[:_TOP].tolist(), state, most=_COLUMNS, first=True)
    else:
        front = trials.front().tolist()
        title = "Pareto front" if len(front) <= _FRONT else f"Pareto front, {_FRONT} of {len(front):,}"
        yield title, trials_table(front[:_FRONT], state, most=_COLUMNS)
    top = best(state)
    if top is not None:
        drawn = charts.metrics(top)[:_METRICS]
        hidden = len(top.metrics) - len(drawn)
        note = f"By step. {count(hidden, 'more metric')} not shown." if hidden else "By step."
        yield f"Metrics of the best trial, {top.number}", _small(drawn, note)
    spent = spending(state)
    if spent.rows:
        title = "What it cost"
        yield title, "".join(map(_line, budget_lines(spent))) + html.table(*cells(spent), label=title)
    rows = failure_cells(failures(state), "#{}".format)
    title = "Failures" if len(rows) <= _GROUPS else f"Failures, {_GROUPS} of {len(rows):,} groups"
    yield title, html.table(HEADS, rows[:_GROUPS], label=title, long="reason")


def figure(chart: Chart) -> str:
    """A chart and its caption."""
    drawing = f'<div class="hp-scroll" tabindex="0">{svg(chart)}</div>' if chart.wide else svg(chart)
    return f"<figure>{drawing}<figcaption>{legend(chart)}</figcaption></figure>"


def _small(drawn: Sequence[Chart], note: str) -> Html:
    """Small charts side by side, or a single one in full size, with a note; empty without a chart."""
    drawings = "".join(svg(one, width=250.0, height=170.0) for one in drawn)
    drawings = svg(drawn[0]) if len(drawn) == 1 else f'<div class="slices">{drawings}</div>'
    return Html(f"<figure>{drawings}<figcaption>{note}</figcaption></figure>" if drawn else "")


def slices(trials: TrialTable, names: Sequence[str]) -> Html:
    """One small chart per parameter, with the value over it."""
    drawn = [charts.slice_(trials, name, most=400) for name in names]
    found, note = [one for one in drawn if one is not None], "Value over each parameter, complete trials."
    marked = any(layer.name == "best" for one in found for layer in one.series)
    return _small(found, f"{note} The large mark is the best one." if marked else note)


def _parameters(state: State, trials: TrialTable) -> str:
    """The importance of the parameters, and where in their ranges the good values are."""
    found = importance(state, trials)
    bars = charts.importance(found._replace(shares=found.shares[:12]))
    names = list(dict.fromkeys([*(name for name, _ in found.shares), *state.dists]))[:_SLICES]
    return f'<div class="split">{_line(found.note) if bars is None else figure(bars)}{slices(trials, names)}</div>'


def _best_means(state: State) -> str:
    """The configurations with the best means over their replicates."""
    if not any(REPLICATE in trial.system for trial in state.trials):
        return ""
    rows = [
        [str(one), ", ".join(f"{name} = {shown(value)}" for name, value in one.params.items())]
        for one in replicates(state)[:_TOP]
    ]
    return html.table(["Mean", "Parameters"], rows, label="Best means", long="Parameters", first=True)


def trials_table(numbers: Sequence[int], state: State, *, most: int, live: bool = False, first: bool = False) -> str:
    """A table of these trials, with at most `most` parameters each. `live` adds their states and last reports."""
    labels, rows = peer_labels(state), [row_of(state, number) for number in numbers]
    trials = [state.trials[number] for number in numbers]
    names = list(dict.fromkeys(name for row in rows for name in row["params"]))
    columns, values = [("Trial", list(map(str, numbers)))], value_columns(state, [row["values"] for row in rows])
    if live:
        columns.append(("State", [row["state"] for row in rows]))
        last = list(values)[-1]
        both = zip(trials, values[last], strict=True)
        values[last] = [(not trial.values and last_report(trial)) or cell for trial, cell in both]
    columns += values.items()
    columns += [(safe(name, longest=60), [shown(row["params"].get(name, "")) for row in rows]) for name in names[:most]]
    columns += [
        ("Peer", [labels.get(trial.owner or "", trial.owner or "") for trial in trials]),
        ("Took", ["" if row["seconds"] is None else duration(row["seconds"]) for row in rows]),
        ("", [f"retry of {trial.retry_of}" if trial.retry_of is not None else "" for trial in trials]),
    ]
    hidden = _line(f"{count(len(names) - most, 'more parameter')} not shown.") if len(names) > most else ""
    heads, cells_ = zip(*columns, strict=True)
    return html.table(heads, list(zip(*cells_, strict=True)), label="Trials", first=first) + hidden
