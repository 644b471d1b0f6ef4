"""All trials of a study as columns: what every view reads, made from a State once per lsn.

A finished trial never changes, so blocks of trials that are all finished are made once and kept: a refresh costs what
is new, also with 100,000 trials. Parameters are in the log's internal representation: a categorical is the index of its
choice, and what a trial does not have is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hopaas_p2p.core.records import Categorical, Distribution, Int
from hopaas_p2p.core.spending import earlier_seconds
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, State, Trial

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

BLOCK: Final = 1024
_OVER: Final = frozenset({COMPLETE, PRUNED, FAIL})


class Parameter(NamedTuple):
    """One parameter as an axis."""

    name: str
    low: float
    high: float
    log: bool = False
    choices: tuple[str, ...] | None = None
    """The choices as text, by index; None for a number."""
    whole: bool = False


@dataclass(frozen=True, slots=True)
class _ColumnBlock:
    scalars: Floats
    """A row per trial: see `_SCALARS`."""
    values: Floats
    params: dict[str, Floats]
    over: bool

    def column(self, name: str) -> Floats:
        return self.params.get(name, np.full(len(self.scalars), np.nan))


_SCALARS: Final = ("state", "start", "end", "earlier", "steps", "last_step", "last", "attempt", "owner")


@dataclass(frozen=True, slots=True)
class Columns:
    """The trials as arrays of one length, by number."""

    lsn: int
    directions: tuple[str, ...]
    state: Ints
    """By `TrialState`."""
    start: Floats
    """Seconds since 1970; NaN when unknown."""
    end: Floats
    earlier: Floats
    """Seconds that a trial ran before its last lease."""
    steps: Ints
    """How many values were reported."""
    last_step: Floats
    last: Floats
    """The value reported last; NaN without reports."""
    attempt: Ints
    owner: Ints
    """Index into `owners`; -1 for a trial that nobody ran."""
    site: Ints
    """Index into `sites`."""
    values: Floats
    """A row per trial, a column per objective; NaN without a value."""
    params: Mapping[str, Floats]
    parameters: Mapping[str, Parameter]
    owners: tuple[str, ...]
    sites: tuple[str, ...]
    _blocks: tuple[_ColumnBlock, ...] = field(default=(), repr=False)
    _codes: dict[str, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.state)

    @property
    def number(self) -> Ints:
        """The trials' numbers: a trial's row is its number."""
        return np.arange(len(self))

    def seconds(self) -> Floats:
        """How long each trial took, over all its leases; NaN for one that is not over or whose times are not known."""
        spent: Floats = self.end - self.start
        return np.where(spent >= 0, spent + self.earlier, np.nan)

    def is_(self, *states: int) -> Mask:
        """Which trials are in one of these states."""
        return np.isin(self.state, states)

    def cost(self, objective: int = 0) -> Floats:
        """The objective's values, the smaller the better."""
        sign = -1.0 if self.directions[objective] == "maximize" else 1.0
        column: Floats = sign * self.values[:, objective]
        return column

    def complete(self, objective: int = 0) -> Mask:
        """COMPLETE trials with a finite value."""
        return self.is_(COMPLETE) & np.isfinite(self.values[:, objective])

    def best(self, objective: int = 0) -> int | None:
        """The row of the best COMPLETE trial, the earliest of equals."""
        complete = self.complete(objective)
        if not complete.any():
            return None
        return int(np.argmin(np.where(complete, self.cost(objective), np.inf)))


def columns(state: State, before: Columns | None = None) -> Columns:
    """The columns of this State; `before` are those of an earlier one of the same study, and make it quick."""
    directions = state.define.directions if state.define else ("minimize",)
    codes = before._codes if before is not None else {}
    parameters = {name: _parameter(name, one) for name, one in state.dists.items()}
    kept = before._blocks if before is not None and len(before.directions) == len(directions) else ()
    blocks = tuple(_blocks(state, kept, len(directions), codes, parameters))
    scalars = np.concatenate([one.scalars for one in blocks]) if blocks else np.empty((0, len(_SCALARS)))
    values = np.concatenate([one.values for one in blocks]) if blocks else np.empty((0, len(directions)))
    column = dict(zip(_SCALARS, scalars.T, strict=True))
    whole = {name: column[name].astype(np.int64) for name in ("state", "steps", "attempt", "owner")}
    owners = tuple(codes)
    sites, site = _sites(state, owners, whole["owner"])
    return Columns(
        lsn=state.lsn,
        directions=directions,
        **(column | whole),
        site=site,
        values=values,
        params={name: np.concatenate([np.empty(0), *(one.column(name) for one in blocks)]) for name in state.dists},
        parameters=parameters,
        owners=owners,
        sites=sites,
        _blocks=blocks,
        _codes=codes,
    )


def _blocks(
    state: State,
    kept: tuple[_ColumnBlock, ...],
    objectives: int,
    codes: dict[str, int],
    parameters: dict[str, Parameter],
) -> Iterator[_ColumnBlock]:
    for index in range(0, len(state.trials), BLOCK):
        block = kept[index // BLOCK] if index // BLOCK < len(kept) else None
        if block is not None and block.over and len(block.scalars) == min(BLOCK, len(state.trials) - index):
            yield block
        else:
            yield _block(state.trials[index : index + BLOCK], objectives, codes, parameters)


def _block(
    trials: list[Trial], objectives: int, codes: dict[str, int], parameters: dict[str, Parameter]
) -> _ColumnBlock:
    nan = float("nan")
    values = np.full((len(trials), objectives), nan)
    params: dict[str, Floats] = {}
    rows = []
    for row, trial in enumerate(trials):
        reports = list(trial.reports)
        last = max(reports) if reports else None
        rows.append((
            trial.state,
            nan if trial.start is None else trial.start / 1e6,
            nan if trial.end is None else trial.end / 1e6,
            earlier_seconds(trial) if trial.history else 0.0,
            len(reports),
            nan if last is None else last,
            nan if last is None else trial.reports.get(last, nan),
            trial.attempt,
            -1 if trial.owner is None else codes.setdefault(trial.owner, len(codes)),
        ))  # fmt: skip
        if trial.values is not None and len(trial.values) == objectives:
            values[row] = trial.values
        for name, value in list(trial.params.items()):
            column = params.get(name)
            if column is None:
                column = params[name] = np.full(len(trials), nan)
            other = trial.dists.get(name)
            column[row] = value if other is None else _as_first(value, other, parameters.get(name))
    return _ColumnBlock(np.array(rows, dtype=np.float64), values, params, all(trial.state in _OVER for trial in trials))


def _as_first(value: float, other: Distribution, first: Parameter | None) -> float:
    """A value from another distribution than the study's first, on the first one's axis; NaN if it does not fit."""
    if first is None or isinstance(other, Categorical) != (first.choices is not None):
        return float("nan")
    if not isinstance(other, Categorical) or first.choices is None:
        return value
    choice = str(other.choices[int(value)]) if 0 <= value < len(other.choices) else None
    return float(first.choices.index(choice)) if choice in first.choices else float("nan")


def _parameter(name: str, one: Distribution) -> Parameter:
    if isinstance(one, Categorical):
        return Parameter(name, 0, max(0, len(one.choices) - 1), choices=tuple(map(str, one.choices)))
    return Parameter(name, float(one.low), float(one.high), one.log and one.low > 0, whole=isinstance(one, Int))


def place(state: State, owner: str | None) -> tuple[str, str]:
    """Site and node of a peer, as it reported them; "?" where it did not."""
    info = state.peers.get(owner or "", {})
    return info.get("site") or "?", info.get("host") or "?"


def _sites(state: State, owners: tuple[str, ...], owner: Ints) -> tuple[tuple[str, ...], Ints]:
    """The sites by name, and each trial's: that of its peer, "-" without one."""
    sites = [place(state, one)[0] for one in owners]
    names = tuple(sorted({*sites, *(("-",) if (owner < 0).any() else ())}))
    index = {name: position for position, name in enumerate(names)}
    of_owner = np.array([index[name] for name in sites] + [index.get("-", 0)], dtype=np.int64)
    return names, of_owner[owner]  # -1 takes the last one
