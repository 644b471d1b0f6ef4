"""State -> the page of a report. Everything from the store is escaped where it is written."""

from __future__ import annotations

import datetime
import importlib.resources
import math
import string
from collections.abc import Sequence
from typing import Final

from hopaas_p2p.analysis import charts
from hopaas_p2p.analysis.chart import Chart
from hopaas_p2p.analysis.facts import (
    best,
    duration,
    params_of,
    pareto_front,
    peer_labels,
    phrase,
    reason_line,
    shown,
    took,
    value_cells,
)
from hopaas_p2p.analysis.importance import importance
from hopaas_p2p.analysis.savings import savings
from hopaas_p2p.analysis.spending import budget_lines, cells, spending
from hopaas_p2p.analysis.svg import legend, safe, svg
from hopaas_p2p.analysis.table import Selection, TrialTable
from hopaas_p2p.analysis.timeline import timeline
from hopaas_p2p.core.attributes import REPLICATE, REUSED
from hopaas_p2p.core.replicates import means
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, RUNNING, WAITING, State, Trial
from hopaas_p2p.search.priors import learned_of

_TOP: Final = 10
_FRONT: Final = 30
_OBJECTIVES: Final = 4
_SLICES: Final = 8
_COLUMNS: Final = 10
_INTERRUPTED: Final = 20
_METRICS: Final = 12
_DOTS: Final = 3000


def render(state: State, *, name: str, store: str, now: datetime.datetime) -> str:
    """The whole page. Pure: the same State and time give the same text."""
    return string.Template(part("page.html")).substitute(
        title=safe(f"{name} · hopaas-p2p", longest=120),
        style=part("charts.css") + part("style.css"),
        name=safe(name),
        about=_about(state),
        tiles=_tiles(state),
        sections=_sections(state) if state.define is not None else _nothing("This study has no definition yet."),
        footer=f"{safe(store)} · log position {state.lsn:,} · {now:%Y-%m-%d %H:%M:%S} UTC",
    )


def part(name: str) -> str:
    """A file beside this one: the page, or its styles."""
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _about(state: State) -> str:
    define = state.define
    if define is None:
        return ""
    facts = [", ".join(define.directions), *(define.info[key] for key in ("sampler", "pruner") if key in define.info)]
    if state.budget is not None:
        facts.append(f"budget {state.budget:,}")
    if state.status != "running":
        facts.append(state.status)
    facts += map(str, learned_of(state, TrialTable.of(state)))
    return " · ".join(safe(one, longest=100) for one in facts)


def _tiles(state: State) -> str:
    counts, top, saved = state.counts, best(state), savings(TrialTable.of(state))
    tiles = []
    if top is not None and top.values:
        tiles.append(_tile(shown(top.values[0]), "best value", f"trial {top.number}", css="top"))
    elif state.define is not None and len(state.define.directions) > 1:
        tiles.append(_tile(f"{len(pareto_front(state)):,}", "on the Pareto front", css="top"))
    rest = [(counts[FAIL], "failed"), (counts[RUNNING], "running"), (counts[WAITING], "waiting")]
    also = ", ".join(f"{count:,} {what}" for count, what in rest if count)
    tiles.append(_tile(f"{counts[COMPLETE]:,}", "complete trials", also))
    tiles.append(_tile(f"{counts[PRUNED]:,}", "pruned trials"))
    if saved.pruned:
        more = f"about {shown(round(saved.steps))} steps that pruned trials did not run, or {saved.in_words()[0]}"
        tiles.append(_tile(f"≈ {saved.share:.0%}", "of the steps saved by pruning", more))
    owners = {trial.owner for trial in state.trials} | {t.owner for trial in state.trials for t in trial.history}
    tiles.append(_tile(f"{len(owners - {None}):,}", "peers took part"))
    spans = [(t.start, t.end) for t in state.trials if t.start is not None and t.end is not None and t.end >= t.start]
    if spans:
        wall = (max(end for _, end in spans) - min(start for start, _ in spans)) / 1e6
        spent = f"{duration(spending(state).total.cost.time / 1e6)} of training"
        tiles.append(_tile(duration(wall), "from the first trial to the last", spent))
    return "".join(tiles)


def _tile(number: str, what: str, more: str = "", *, css: str = "") -> str:
    extra = f"<i>{safe(more)}</i>" if more else ""
    return f'<div class="tile {css}"><b>{safe(number)}</b><span>{safe(what)}</span>{extra}</div>'


def _sections(state: State) -> str:
    assert state.define is not None
    if not state.trials:
        return _nothing("No trial has been started yet.")
    trials = TrialTable.of(state)
    objectives = range(min(len(state.define.directions), _OBJECTIVES))
    drawn = [charts.history(trials, Selection(index), most=_DOTS) for index in objectives]
    gantt, *figures = (
        "" if chart is None else _card(chart.title, figure(chart))
        for chart in (timeline(state), *drawn, charts.curves(state, trials, median=True))
    )
    parts = [gantt, f'<div class="grid">{"".join(figures)}</div>' if any(figures) else ""]
    parts += [_parameters(state, trials), _best_means(state), _best_trials(state), _metrics(state)]
    parts += [_spent(state), _interrupted(state), _failures(state)]
    return "\n".join(part for part in parts if part)


def _nothing(text: str) -> str:
    return _card("Nothing to show yet", f'<p class="none">{safe(text)}</p>')


def figure(chart: Chart, *, small: bool = False) -> str:
    """A chart and its caption."""
    if small:
        return svg(chart, width=250.0, height=170.0)
    drawing = f'<div class="scroll" tabindex="0">{svg(chart)}</div>' if chart.wide or chart.axes else svg(chart)
    return f"<figure>{drawing}<figcaption>{legend(chart)}</figcaption></figure>"


def _card(title: str, body: str) -> str:
    return f'<section class="card"><h2>{safe(title)}</h2>{body}</section>'


def _parameters(state: State, trials: TrialTable) -> str:
    """The importance of the parameters, and where in their ranges the good values are."""
    found = importance(state, trials)
    bars = charts.importance(found._replace(shares=found.shares[:12]))
    part = f'<p class="none">{safe(found.note)}</p>' if bars is None else figure(bars)
    names = list(dict.fromkeys([*(name for name, _ in found.shares), *state.dists]))[:_SLICES]
    slices = [charts.slice_(trials, name, most=400) for name in names]
    drawings = "".join(figure(one, small=True) for one in slices if one is not None)
    note = "Value over each parameter, complete trials. The large mark is the best one."
    more = f'<figure><div class="slices">{drawings}</div><figcaption>{note}</figcaption></figure>' if drawings else ""
    return _card("Which parameters matter", f'<div class="split">{part}{more}</div>')


def _best_trials(state: State) -> str:
    """The table of the best trials, or of the Pareto front."""
    assert state.define is not None
    if len(state.define.directions) > 1:
        front = pareto_front(state)
        title = "Pareto front" if len(front) <= _FRONT else f"Pareto front, {_FRONT} of {len(front):,}"
        return _card(title, trials_table(front[:_FRONT], state, most=_COLUMNS)) if front else ""
    sign = -1.0 if state.define.directions[0] == "maximize" else 1.0
    complete = [t for t in state.trials if t.state is COMPLETE and t.values]
    ordered = sorted(complete, key=lambda t: (sign * t.values[0] if t.values else math.inf, t.number))
    return _card("Best trials", trials_table(ordered[:_TOP], state, most=_COLUMNS, first=True)) if ordered else ""


def _best_means(state: State) -> str:
    """The configurations with the best means, where each is tried several times."""
    assert state.define is not None
    if len(state.define.directions) > 1 or not any(REPLICATE in trial.system for trial in state.trials):
        return ""
    measured = [
        (trial.number, tuple(sorted(trial.params.items())), trial.values[0])
        for trial in state.trials
        if trial.state is COMPLETE and trial.values and REUSED not in trial.system
    ]
    best_ones = means(measured, maximize=state.define.directions[0] == "maximize")[:_TOP]
    if not best_ones:
        return ""
    found = [params_of(state.trials[one.numbers[0]], state) for one in best_ones]
    names = list(dict.fromkeys(name for params in found for name in params))[:_COLUMNS]
    rows = []
    for one, params in zip(best_ones, found, strict=True):
        error = "-" if math.isnan(one.standard_error) else shown(one.standard_error)
        cells = [shown(params[name]) if name in params else "" for name in names]
        rows.append([shown(one.mean), error, str(len(one.numbers)), *cells])
    heads = ["mean", "standard error", "trials", *names]
    return _card("Best means over replicates", table(heads, rows, words=(), first=True, names=names))


def _metrics(state: State) -> str:
    """What the best trial logged beside its reports."""
    top = best(state)
    drawings = [figure(one, small=True) for one in charts.metrics(top)[:_METRICS]] if top is not None else []
    if top is None or not drawings:
        return ""
    hidden = len(top.metrics) - len(drawings)
    note = f"By step. {hidden} more metrics are not shown." if hidden else "By step."
    body = f'<figure><div class="slices">{"".join(drawings)}</div><figcaption>{note}</figcaption></figure>'
    return _card(f"Metrics of the best trial, {top.number}", body)


def trials_table(trials: Sequence[Trial], state: State, *, most: int, live: bool = False, first: bool = False) -> str:
    """These trials, with at most so many parameters each; `live` ones with their states and what they reported last."""
    labels = peer_labels(state)
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    columns = names[:most]
    rows = []
    for trial, value in zip(trials, value_cells([trial.values for trial in trials]), strict=True):
        params, last = params_of(trial, state), max(trial.reports, default=None)
        said = (
            f"{shown(trial.reports[last])} at step {last}" if live and not trial.values and last is not None else value
        )
        cells = [str(trial.number), *([trial.state.name] if live else []), said]
        cells += [shown(params[name]) if name in params else "" for name in columns]
        retry = f"retry of {trial.retry_of}" if trial.retry_of is not None else ""
        rows.append([*cells, labels.get(trial.owner or "", trial.owner or ""), took(trial), retry])
    heads = ["trial", *(["state"] if live else []), "value", *columns, "peer", "took", ""]
    hidden = len(names) - len(columns)
    note = f'<p class="none">{hidden} more parameters are not shown.</p>' if hidden else ""
    return table(heads, rows, words=("state", "peer", ""), first=first, names=columns) + note


def _spent(state: State) -> str:
    """What the trials cost, by site, person and state, and what is left of the budget."""
    found = spending(state)
    if not found.rows:
        return ""
    heads, rows = cells(found)
    lines = "".join(f'<p class="none">{safe(line)}</p>' for line in budget_lines(found))
    return _card("What it cost", lines + table(heads, rows, words=("site", "person", "state")))


def _interrupted(state: State) -> str:
    """Trials that were taken from a peer, and what became of them."""
    labels = peer_labels(state)
    hit = [trial for trial in state.trials if trial.history]
    if not hit:
        return ""
    rows = []
    for trial in hit[:_INTERRUPTED]:
        retry = state.trials[trial.retried_by] if trial.retried_by is not None else trial
        result = f" with {shown(retry.values[0])}" if retry.values and retry.state is COMPLETE else ""
        kept = retry is trial and trial.state is FAIL
        outcome = "kept as FAIL" if kept else f"#{retry.number}: {retry.state.name}{result}"
        for past in trial.history:
            moved = retry.owner != past.owner or retry is not trial
            then = labels.get(retry.owner or "", retry.owner or "") if moved else ""
            rows.append([str(trial.number), labels.get(past.owner, past.owner), past.why, outcome, then])
    title = "Interrupted trials" if len(hit) <= _INTERRUPTED else f"Interrupted trials, {_INTERRUPTED} of {len(hit):,}"
    heads = ["trial", "was run by", "why it ended", "outcome", "run by"]
    return _card(title, table(heads, rows, words=heads[1:], long="why it ended"))


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[str], long: str = "", first: bool = False,
    names: Sequence[str] = (),
) -> str:  # fmt: skip
    """A table of texts, which are escaped here. Columns are numbers but for `words`; `long` may wrap.

    Heads begin with a capital letter, except `names`, which come from the study.
    """

    def cells(tag: str, texts: Sequence[str]) -> str:
        parts = []
        for head, text in zip(heads, texts, strict=True):
            css = ' class="long"' if head == long else "" if head in words else ' class="number"'
            parts.append(f"<{tag}{css}>{safe(text, longest=160 if head == long else 60)}</{tag}>")
        return "".join(parts)

    body = [f"<tr>{cells('td', row)}</tr>" for row in rows]
    if first:
        body[0] = body[0].replace("<tr", '<tr class="first"', 1)
    shown_heads = cells("th", [one if one in names else phrase(one) for one in heads])
    head = f"<thead><tr>{shown_heads}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table>{head}<tbody>{"".join(body)}</tbody></table></div>'


def _failures(state: State) -> str:
    """Why trials failed, the most frequent reasons first."""
    reasons: dict[str, list[int]] = {}
    for trial in state.trials:
        if trial.state is FAIL and not trial.history:
            reasons.setdefault((reason_line(trial.reason) or "no reason given")[:200], []).append(trial.number)
    if not reasons:
        return ""
    frequent = sorted(reasons.items(), key=lambda one: (-len(one[1]), one[0]))[:10]
    rows = [
        [f"{len(numbers):,}", reason, ", ".join(f"#{one}" for one in numbers[:5]) + (", …" if len(numbers) > 5 else "")]
        for reason, numbers in frequent
    ]
    return _card("Failures", table(["times", "reason", "trials"], rows, words=("trials",), long="reason"))
