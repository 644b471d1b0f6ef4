"""The charts of a report: State -> SVG. Large data is sampled, and the caption says so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from hopaas_p2p.analysis import svg
from hopaas_p2p.analysis.facts import is_better, scored, shown
from hopaas_p2p.analysis.svg import Point, Scale
from hopaas_p2p.core.records import Categorical, Float, Int
from hopaas_p2p.core.state import COMPLETE, PRUNED, State, Trial

_W: Final = 500.0
_H: Final = 290.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 26.0, 40.0
_DOTS: Final = 3000
_CURVES: Final = 40
_STEPS: Final = 150


class Figure(NamedTuple):
    """A chart with its title and caption."""

    title: str
    drawing: str
    caption: str
    wide: bool = False


def robust(values: Sequence[float], direction: str, *, without: float = 0.05) -> list[float]:
    """The values without this share of the worst ones, so that a few bad trials do not flatten the rest."""
    ordered = sorted(value for value in values if math.isfinite(value))
    cut = int(len(ordered) * without)
    return ordered[cut:] if direction == "maximize" else ordered[: len(ordered) - cut]


def history(state: State, objective: int = 0) -> Figure | None:
    """The value of every trial, and the best so far."""
    assert state.define is not None
    direction = state.define.directions[objective]
    complete = [
        Point(trial.number, value, f"trial {trial.number}: {shown(value)}") for value, trial in scored(state, objective)
    ]
    if not complete:
        return None
    pruned = [
        Point(t.number, last, f"trial {t.number}: pruned at step {max(t.reports)} with {shown(last)}")
        for t in state.trials
        if len(state.define.directions) == 1
        and t.state is PRUNED
        and t.reports
        and math.isfinite(last := t.reports[max(t.reports)])
    ]
    records: list[Point] = []
    for point in complete:
        if not records or is_better(point.y, records[-1].y, direction):
            records.append(point)
    x = svg.scale_of([0, max(1, len(state.trials) - 1)], _LEFT, _W - _RIGHT, log=False, pad=0.02)
    y = svg.scale_of(robust([p.y for p in complete], direction), _H - _BOTTOM, _TOP)
    body = (
        svg.frame(x, y, x_title="trial", y_title="value")
        + svg.dots(svg.sample(pruned, _DOTS), x, y, "pruned", radius=2.2)
        + svg.dots(svg.sample(complete, _DOTS), x, y, "complete")
        + svg.steps([(p.x, p.y) for p in records], x, y, "record", until=len(state.trials) - 1)
        + svg.dots(records[-200:], x, y, "best", radius=3.6)
    )
    outside = sum(not y.low <= p.y <= y.high for p in (*complete, *pruned))
    caption = (
        f"{key('complete', 'complete')} {key('pruned', 'pruned, at its last report') if pruned else ''} "
        f"{key('best', 'best so far')}"
    )
    if outside:
        caption += f" · {outside:,} outside the chart, drawn at its edge"
    many = "" if len(state.define.directions) == 1 else f" of objective {objective + 1} ({direction})"
    best = records[-1]
    about = f"{len(complete)} complete trials; the best is trial {best.x:.0f} with {shown(best.y)}"
    drawing = svg.svg(body, width=_W, height=_H, title=f"History{many}", description=about)
    return Figure(f"History{many}", drawing, caption)


def key(css: str, text: str) -> str:
    """An entry of a legend."""
    return f'<span class="pair"><span class="key {css}"></span>{text}</span>'


def importance(shares: Sequence[tuple[str, float]], *, note: str) -> Figure:
    """One bar per parameter."""
    row, left = 26.0, 130.0
    height = 12 + row * len(shares)
    parts = []
    for index, (name, share) in enumerate(shares):
        top = 6 + index * row
        width = max(1.0, share * (_W - left - 60))
        parts.append(
            f'<text class="tick end" x="{svg.px(left - 8)}" y="{svg.px(top + 15)}">{svg.safe(name, longest=19)}</text>'
            f'<rect class="complete" x="{svg.px(left)}" y="{svg.px(top + 3)}" width="{svg.px(width)}" height="16" '
            f'rx="2"><title>{svg.safe(name)}: {share:.1%}</title></rect>'
            f'<text class="tick" x="{svg.px(left + width + 6)}" y="{svg.px(top + 15)}">{share:.0%}</text>'
        )
    about = ", ".join(f"{name} {share:.0%}" for name, share in shares)
    drawing = svg.svg("".join(parts), width=_W, height=height, title="Parameter importance", description=about)
    return Figure("Which parameters matter", drawing, note)


def curves(state: State) -> Figure | None:
    """Reports by step: the best trial, the median, and a sample of the others."""
    assert state.define is not None
    if len(state.define.directions) != 1:
        return None
    direction = state.define.directions[0]
    whole = [t for t in state.trials if t.state is COMPLETE and len(t.reports) > 1 and t.values]
    if not whole:
        return None
    cut = [t for t in state.trials if t.state is PRUNED and len(t.reports) > 1]
    pick = min if direction == "minimize" else max
    best = pick(whole, key=lambda t: t.values[0] if t.values else 0.0)
    median = _median_curve(whole)
    sampled_cut, sampled_whole = svg.sample(cut, _CURVES), svg.sample(whole, _CURVES // 2)
    drawn = [_points(t.reports) for t in (*sampled_cut, *sampled_whole)]
    everything = [value for curve in (*drawn, _points(best.reports)) for _, value in curve]
    x = svg.scale_of(
        [step for t in (*whole, *cut) for step in (min(t.reports), max(t.reports))],
        _LEFT,
        _W - _RIGHT,
        log=False,
        pad=0.02,
    )
    y = svg.scale_of(robust(everything, direction, without=0.2), _H - _BOTTOM, _TOP)
    body = svg.frame(x, y, x_title="step", y_title="reported value")
    for t in sampled_cut:
        body += svg.line(_points(t.reports), x, y, "curve pruned", title=f"trial {t.number}, pruned")
        end = _points(t.reports)[-1:]
        body += svg.dots([Point(*end[0], f"trial {t.number}, pruned")] if end else [], x, y, "pruned", radius=1.8)
    for t in sampled_whole:
        body += svg.line(_points(t.reports), x, y, "curve complete", title=f"trial {t.number}, complete")
    body += svg.line(median, x, y, "curve median", title="median of the complete trials")
    body += svg.line(_points(best.reports), x, y, "curve best", title=f"trial {best.number}, the best")
    caption = (
        f"{key('best', f'best, #{best.number}')} {key('median', 'median of the complete ones')} "
        f"{key('complete', f'{len(sampled_whole)} of {len(whole):,} complete')} "
        + (key("pruned", f"{len(sampled_cut)} of {len(cut):,} pruned") if cut else "")
    )
    about = f"the best trial, the median, {len(sampled_cut)} pruned and {len(sampled_whole)} complete trials"
    return Figure(
        "Learning curves", svg.svg(body, width=_W, height=_H, title="Learning curves", description=about), caption
    )


def reported(reports: Mapping[int, float]) -> Figure | None:
    """The reports of one trial by step; None with fewer than two."""
    points = _points(reports)
    if len(points) < 2:
        return None
    x = svg.scale_of([step for step, _ in points], _LEFT, _W - _RIGHT, log=False, pad=0.02)
    y = svg.scale_of([value for _, value in points], _H - _BOTTOM, _TOP)
    body = svg.frame(x, y, x_title="step", y_title="reported value") + svg.line(points, x, y, "curve best")
    about = f"{len(reports)} reports; the last is {shown(points[-1][1])} at step {points[-1][0]:.0f}"
    drawing = svg.svg(body, width=_W, height=_H, title="Reports", description=about)
    return Figure("Reports", drawing, f"{len(reports):,} reports")


def metrics(trial: Trial) -> list[str]:
    """One small chart per metric with two values or more, by step."""
    wide, high = 250.0, 170.0
    drawings = []
    for name, values in trial.metrics.items():
        points = _points(values)
        if len(points) < 2:
            continue
        x = svg.scale_of([step for step, _ in points], 46.0, wide - 10, log=False, pad=0.02)
        y = svg.scale_of([value for _, value in points], high - _BOTTOM, _TOP)
        body = svg.frame(x, y, x_title=name, y_title="") + svg.line(points, x, y, "curve best")
        about = f"{len(values)} values; the last is {shown(points[-1][1])} at step {points[-1][0]:.0f}"
        drawings.append(svg.svg(body, width=wide, height=high, title=name, description=about))
    return drawings


def _points(reports: Mapping[int, float]) -> list[tuple[float, float]]:
    points = [(float(step), value) for step, value in sorted(reports.items()) if math.isfinite(value)]
    return svg.sample(points, _STEPS) + (points[-1:] if len(points) > _STEPS else [])


def _median_curve(trials: Sequence[Trial]) -> list[tuple[float, float]]:
    by_step: dict[int, list[float]] = {}
    for trial in svg.sample(trials, 1000):
        for step, value in trial.reports.items():
            if math.isfinite(value):
                by_step.setdefault(step, []).append(value)
    most = max(map(len, by_step.values()), default=0)
    points = [(float(s), statistics.median(v)) for s, v in sorted(by_step.items()) if len(v) * 2 >= most]
    return svg.sample(points, _STEPS)


def slices(state: State, names: Sequence[str]) -> list[str]:
    """One small chart per parameter: where in its range the good values are."""
    assert state.define is not None
    direction = state.define.directions[0]
    trials = scored(state)
    if not trials:
        return []
    wide, high = 250.0, 170.0
    y = svg.scale_of(robust([value for value, _ in trials], direction), high - _BOTTOM, _TOP)
    best_value, top = (max if direction == "maximize" else min)(trials, key=lambda one: one[0])
    drawings = []
    for name in names:
        x, labels = parameter_scale(state, name, 46.0, wide - 10)
        points = [
            Point(_place(trial, name, state), value, f"trial {trial.number}: {shown(value)}")
            for value, trial in trials
            if name in trial.params
        ]
        body = svg.frame(x, y, x_title=name, y_title="", x_labels=labels)
        body += svg.dots(svg.sample(points, 400), x, y, "complete faint", radius=2.4)
        if name in top.params:
            mark = Point(_place(top, name, state), best_value, f"the best, trial {top.number}")
            body += svg.dots([mark], x, y, "best", radius=4)
        about = f"values of {len(points)} trials over {name}"
        drawings.append(svg.svg(body, width=wide, height=high, title=f"Value over {name}", description=about))
    return drawings


def _place(trial: Trial, name: str, state: State) -> float:
    value = trial.params[name]
    if isinstance(trial.distribution(name, state), Categorical):
        return value + (trial.number * 0.618 % 1 - 0.5) * 0.5  # spread, so that equal values can be counted
    return value


def parameter_scale(state: State, name: str, start: float, stop: float) -> tuple[Scale, list[tuple[float, str]]]:
    """A scale over the range of a parameter, and its labels with their places."""
    one = state.dists[name]
    if isinstance(one, Categorical):
        last = max(1, len(one.choices)) - 1
        x = Scale(-0.5, last + 0.5, start, stop)
        return x, [(x(index), str(choice)[:8]) for index, choice in enumerate(one.choices[:6])]
    assert isinstance(one, Float | Int)
    x = svg.scale_of([one.low, one.high], start, stop, log=one.log and one.low > 0, pad=0.02)
    return x, [(x(tick), svg.label(tick)) for tick in x.ticks(4)]
