"""Parallel coordinates: one line per trial over one axis per parameter, the better trials in front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hopaas_p2p.analysis import svg
from hopaas_p2p.analysis.charts import Figure, key, parameter_scale, robust
from hopaas_p2p.analysis.facts import is_better, scored, shown
from hopaas_p2p.core.state import State, Trial

_W: Final = 1040.0
_H: Final = 320.0
_TOP, _BOTTOM = 40.0, 290.0
_LEFT, _RIGHT = 60.0, 980.0
_LINES: Final = 400
_BEST: Final = 10
_AXES: Final = 12


def parallel(state: State, names: Sequence[str], objective: int = 0) -> Figure | None:
    """The chart; None if no complete trial has all of these parameters."""
    assert state.define is not None
    direction = state.define.directions[objective]
    axes = list(names)[:_AXES]
    trials = [(value, trial) for value, trial in scored(state, objective) if all(name in trial.params for name in axes)]
    if not trials or not axes:
        return None
    trials.sort(key=lambda one: one[0], reverse=is_better(1.0, 0.0, direction))  # the best come first
    scales = [parameter_scale(state, name, _BOTTOM, _TOP) for name in axes]
    values = svg.scale_of(robust([value for value, _ in trials], direction), _BOTTOM, _TOP)
    places = [_LEFT + (_RIGHT - _LEFT) * index / len(axes) for index in range(len(axes) + 1)]

    def line(value: float, trial: Trial) -> str:
        heights = [scale(trial.params[name]) for name, (scale, _) in zip(axes, scales, strict=True)]
        points = zip(places, [*heights, values(value)], strict=True)
        return "M" + "L".join(f"{svg.px(x)} {svg.px(y)}" for x, y in points)

    best, others = trials[:_BEST], trials[_BEST:]
    drawn = svg.sample(others, _LINES)
    tenth = max(1, len(drawn) // 10)
    body = f'<path class="curve pruned" d="{"".join(line(*one) for one in drawn[tenth:])}"/>'
    body += f'<path class="curve complete" d="{"".join(line(*one) for one in drawn[:tenth])}"/>'
    for value, trial in reversed(best):
        css = "best" if trial is best[0][1] else "median"
        said = f"trial {trial.number}: {shown(value)}"
        body += f'<path class="curve {css}" d="{line(value, trial)}"><title>{svg.safe(said)}</title></path>'
    for place, name, (scale, labels) in zip(places, [*axes, "value"], [*scales, (values, None)], strict=True):
        marks = labels or [(scale(tick), svg.label(tick)) for tick in scale.ticks(5)]
        body += _axis(place, name, marks)
    of = f"{len(drawn) + len(best):,} of " if len(drawn) < len(others) else ""
    caption = (
        f"{key('best', f'best, #{best[0][1].number}')} {key('median', f'the {len(best)} best')} "
        f"{key('complete', 'the better tenth')} {key('pruned', 'the others')} {of}{len(trials):,} complete trials"
    )
    about = f"{len(trials)} complete trials over {len(axes)} parameters; the best is trial {best[0][1].number}"
    drawing = svg.svg(body, width=_W, height=_H, title="Parallel coordinates", description=about, css="wide")
    return Figure("Parallel coordinates", drawing, caption, wide=True)


def _axis(place: float, name: str, marks: Sequence[tuple[float, str]]) -> str:
    at = svg.px(place)
    parts = [f'<path class="axis" d="M{at} {svg.px(_TOP)}V{svg.px(_BOTTOM)}"/>']
    parts.append(f'<text class="name mid" x="{at}" y="22">{svg.safe(name, longest=16)}</text>')
    for height, text in marks:
        parts.append(
            f'<text class="tick" x="{svg.px(place + 5)}" y="{svg.px(height + 4)}">{svg.safe(text, longest=10)}</text>'
        )
    return "".join(parts)
