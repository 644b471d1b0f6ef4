"""One trial: where it stands among the others, who owned it, and how it can be run again."""

from __future__ import annotations

import json
import re
import shlex
from typing import Final, NamedTuple

import numpy as np

from hopaas_p2p.analysis.facts import params_of, shown
from hopaas_p2p.analysis.table import TrialTable, place
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, Trial

_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""Sequences by which a program colours a terminal, moves its cursor or sets its title."""


class Standing(NamedTuple):
    """How a parameter's value compares with those of the complete trials."""

    name: str
    value: str
    numeric: bool = False
    share: float | None = None
    """The share of the complete trials with a smaller number, equal ones counted half; or with the same choice."""


def standings(state: State, columns: TrialTable, number: int) -> list[Standing]:
    """The trial's parameters in the order they were suggested."""
    complete = columns.is_(TrialState.COMPLETE) & (columns.number != number)
    found = []
    for name, value in params_of(state.trials[number], state).items():
        column = columns.params.get(name)
        one = columns.parameters.get(name)
        others = column[complete & np.isfinite(column)] if column is not None else np.empty(0)
        if one is None or column is None or not len(others):
            found.append(Standing(name, shown(value)))
            continue
        mine = float(column[number])
        numeric = one.choices is None
        equal = float(np.mean(others == mine))
        share = float(np.mean(others < mine)) + equal / 2 if numeric else equal
        found.append(Standing(name, shown(value), numeric, share))
    return found


def rank(columns: TrialTable, number: int) -> tuple[int, int] | None:
    """(place among the complete trials, how many there are), the best first; None if it has no value."""
    if len(columns.directions) != 1:
        return None
    complete, cost = columns.complete(), columns.cost()
    if number >= len(columns) or not complete[number]:
        return None
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
    kept_as: int | None


def leases(state: State, trial: Trial) -> list[TrialLease]:
    """Every lease, the first one first."""

    def lease(uuid: str, epoch: int, start: int | None, end: int | None, how: str, kept_as: int | None) -> TrialLease:
        return TrialLease(epoch, uuid, *place(state, uuid), start, end, how, kept_as)

    history = list(trial.history)
    found = [lease(one.owner, one.epoch, one.start, one.end, one.why, one.kept_as) for one in history]
    if trial.owner is not None and not (history and (history[-1].owner, history[-1].end) == (trial.owner, trial.end)):
        how = "runs" if trial.state is TrialState.RUNNING else trial.state.name.lower()
        found.append(lease(trial.owner, trial.epoch, trial.start, trial.end, how, None))
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


def readable(output: bytes) -> str:
    """The output of a command as a person would have seen it end: no colours, and of a progress bar its last form."""
    text = _ESCAPES.sub("", output.decode(errors="replace")).replace("\r\n", "\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def as_python(name: str, store: str, state: State, trial: Trial) -> str:
    """A program that queues these parameters again. Every text in it is a literal."""
    params = params_of(trial, state)
    lines = [f"    {key!r}: {value!r}," for key, value in params.items()]
    body = "\n".join(lines)
    return (
        "import hopaas_p2p\n\n"
        f"params = {{\n{body}\n}}  # of trial {trial.number}\n"
        f"study = hopaas_p2p.open_study({store!r}, {name!r}, create=False)\n"
        "study.enqueue(params)  # or call your objective with optuna.trial.FixedTrial(params)\n"
    )


def as_shell(name: str, store: str, state: State, trial: Trial) -> str:
    """A command that queues these parameters again; every text in it is quoted."""
    words = ["hopaas-p2p", "trial", "enqueue", "--store", store, "--study", name]
    params = params_of(trial, state)
    words += [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in params.items()]
    return " ".join(shlex.quote(word) for word in words)
