"""One trial: where it stands among the others, who owned it, how it can be run again; and some beside each other."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from hopaas_p2p.analysis.chart import Chart, ChartAxis, cut, dashed, data_of, finite, number, value_axis
from hopaas_p2p.analysis.facts import duration, last_metrics, params_of, shown
from hopaas_p2p.analysis.table import Mask, TrialTable, place
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.spending import trial_seconds
from hopaas_p2p.core.state import State, Trial

MOST: Final = 5  # trials beside each other
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_POINTS: Final = 400
_LONGEST: Final = 120
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""Sequences by which a program colours a terminal, moves its cursor or sets its title."""


def standings(state: State, columns: TrialTable, number: int) -> list[tuple[str, str, float | None, str]]:
    """The trial's parameters in the order they were suggested: name, value, and how it compares with complete trials'.

    That is the share with a smaller value, ties counting half, or of a choice the share with the same; and in words.
    """
    complete = columns.is_(TrialState.COMPLETE) & (columns.number != number)
    found: list[tuple[str, str, float | None, str]] = []
    for name, value in params_of(state.trials[number], state.dists).items():
        column, one = columns.params.get(name), columns.parameters.get(name)
        others = column[complete & np.isfinite(column)] if column is not None else np.empty(0)
        if one is None or column is None or not len(others):
            found.append((name, shown(value), None, ""))
            continue
        equal = float(np.mean(others == column[number]))
        if one.choices is None:
            found.append((name, shown(value), float(np.mean(others < column[number])) + equal / 2, "are lower"))
        else:
            found.append((name, shown(value), equal, "have it too"))
    return found


def rank(columns: TrialTable, number: int) -> tuple[int, int] | None:
    """(place among the complete trials, how many there are), the best first; None if it has no value."""
    complete = columns.complete()
    if len(columns.directions) != 1 or number >= len(columns) or not complete[number]:
        return None
    cost = columns.cost()
    return int(np.count_nonzero(complete & (cost < cost[number]))) + 1, int(np.count_nonzero(complete))


class TrialLease(NamedTuple):
    """One lease of the trial. Times are microseconds since 1970."""

    epoch: int
    uuid: str
    site: str
    host: str
    start: int | None
    end: int | None
    """None while it runs."""
    how: str
    """How it ended."""
    kept_as: int | None = None


def leases(state: State, trial: Trial) -> list[TrialLease]:
    """Every lease, the first one first."""
    past = list(trial.history)
    found = [
        TrialLease(one.epoch, one.owner, *place(state, one.owner), one.start, one.end, one.why, one.kept_as)
        for one in past
    ]
    if trial.owner is not None and not (past and (past[-1].owner, past[-1].end) == (trial.owner, trial.end)):
        how = "runs" if trial.state is TrialState.RUNNING else trial.state.name.lower()
        now = TrialLease(trial.epoch, trial.owner, *place(state, trial.owner), trial.start, trial.end, how)
        found.append(now)
    return found


def family(state: State, number: int) -> list[tuple[int, str]]:
    """Trials with the same parameters: (number, its relation), attempts in order, late results last."""
    first = state.trials[number]
    while first.retry_of is not None and first.retry_of < first.number:
        first = state.trials[first.retry_of]
    chain = [first]
    while chain[-1].retried_by is not None and chain[-1].retried_by > chain[-1].number:
        chain.append(state.trials[chain[-1].retried_by])
    found = [(one.number, f"attempt {one.attempt}, {one.state.name.lower()}") for one in chain]
    for one in chain:
        late = [tenure.kept_as for tenure in one.history if tenure.kept_as is not None]
        found += [(kept, f"late result of trial {one.number}") for kept in late]
    trial = state.trials[number]
    if trial.late_of is not None and all(other != trial.late_of for other, _ in found):
        found.append((trial.late_of, "this is its late result"))
    return found


def last_values(trial: Trial) -> list[tuple[str, float, float, float, int, int]]:
    """The metrics in the order they were first logged: name, last, lowest and highest value, last step, steps."""
    found = []
    for name, values in list(trial.metrics.items()):
        if values:  # none if all its steps came after the checkpoint that the attempt resumed from
            numbers = [value for value in values.values() if np.isfinite(value)] or [float("nan")]
            last = max(values)
            found.append((name, values[last], min(numbers), max(numbers), last, len(values)))
    return found


def readable(output: bytes) -> str:
    """The output of a command as a person would have seen it end: no colours, and of a progress bar its last form."""
    text = _ESCAPES.sub("", output.decode(errors="replace")).replace("\r\n", "\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def as_python(name: str, store: str, state: State, trial: Trial) -> str:
    """A program that queues these parameters again. Every text in it is a literal."""
    body = "\n".join(f"    {key!r}: {value!r}," for key, value in params_of(trial, state.dists).items())
    return (
        "import hopaas_p2p\n\n"
        f"params = {{\n{body}\n}}  # of trial {trial.number}\n"
        f"study = hopaas_p2p.open_study({store!r}, {name!r}, create=False)\n"
        "study.enqueue_trial(params)  # or call your objective with optuna.trial.FixedTrial(params)\n"
    )


def as_shell(name: str, store: str, state: State, trial: Trial) -> str:
    """A command that queues these parameters again; every text in it is quoted."""
    words = ["hopaas-p2p", "trial", "enqueue", "--store", store, "--study", name]
    params = params_of(trial, state.dists)
    words += [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in params.items()]
    return " ".join(shlex.quote(word) for word in words)


# --- some beside each other ---


class Fact(NamedTuple):
    """One line of the table: a text per trial, empty where a trial has none."""

    kind: Literal["result", "parameter", "metric"]
    name: str
    cells: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the trials do not agree."""
        return len(set(self.cells)) > 1


def numbers_in(text: str, count: int) -> list[int]:
    """The trials that a text names, each once, the first five that exist."""
    found = dict.fromkeys(int(one) for one in _NUMBER.findall(text))
    return [one for one in found if one < count][:MOST]


def first_choice(columns: TrialTable, mask: Mask) -> list[int]:
    """Of the trials that pass the mask the three best complete ones, else the newest two."""
    best = columns.ranked(shown=mask)[:3].tolist() if len(columns.directions) == 1 else []
    return best if len(best) >= 2 else np.flatnonzero(mask)[-2:].tolist()


def side_by_side(state: State, columns: TrialTable, numbers: Sequence[int]) -> list[Fact]:
    """What there is to say of these trials: results, parameters, metrics."""
    trials = [state.trials[one] for one in numbers]
    ranks = [rank(columns, one) for one in numbers]
    lasts = [max(one.reports, default=None) for one in trials]
    results = {
        "value": [", ".join(map(number, one.values or ())) for one in trials],
        "rank": ["" if one is None else f"{one[0]:,} of {one[1]:,}" for one in ranks],
        "last report": [
            "" if last is None else f"{number(one.reports[last])} at step {last:,}"
            for one, last in zip(trials, lasts, strict=True)
        ],
        "time": ["" if seconds is None else duration(seconds) for seconds in map(trial_seconds, trials)],
        "attempt": [str(one.attempt) for one in trials],
        "site": [place(state, one.owner)[0] if one.owner else "" for one in trials],
        "reason": [(one.reason or "").split("\n", 1)[0] for one in trials],
    }
    found = [Fact("result", name, tuple(cells)) for name, cells in results.items() if any(cells)]
    params, metrics = [params_of(one, state.dists) for one in trials], [last_metrics(one) for one in trials]
    for kind, of in (("parameter", params), ("metric", metrics)):
        for name in dict.fromkeys(name for some in of for name in some):
            values = [some.get(name) for some in of]
            cells = ["" if value is None else cut(shown(value), _LONGEST) for value in values]
            if len(set(cells)) < len({repr(value) for value in values}):  # they differ in digits that are not shown
                cells = ["" if value is None else cut(str(value), _LONGEST) for value in values]
            found.append(Fact(kind, name, tuple(cells)))  # type: ignore[arg-type]
    return found


def curves(state: State, numbers: Sequence[int]) -> Chart | None:
    """The learning curves of these trials in one chart."""
    layers, words = [], []
    for at, one in enumerate(numbers):
        points = finite(state.trials[one].reports, most=_POINTS)
        if len(points) > 1:
            layers.append(dashed(f"trial {one}", at, data_of(points)))
            words.append(f"trial {one}: {number(points[-1][1])} at step {points[-1][0]:.0f}")
    if not layers:
        return None
    alt = f"Reports by step. {'; '.join(words)}."
    y, _ = value_axis("reported value", np.concatenate([layer.data["value"] for layer in layers]))
    return Chart("Learning curves", layers, ChartAxis("step"), y, alt, height=340, legend=True)
