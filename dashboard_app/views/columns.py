"""All trials of a study as columns: what every view reads, made from a State once for each lsn.

A finished trial never changes, so blocks of trials that are all finished are made once and kept: a refresh costs what
is new, also at 100,000 trials. Parameters are in the log's internal representation: a categorical is the index of its
choice, and what a trial does not have is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hopaas_p2p.core.records import Categorical, Distribution
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, RUNNING, WAITING, State, Trial

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

BLOCK: Final = 1024
STATES: Final = (RUNNING, COMPLETE, PRUNED, FAIL, WAITING)
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
class _Block:
    scalars: Floats
    """A row a trial: see `_SCALARS`."""
    values: Floats
    params: dict[str, Floats]
    over: bool


_SCALARS: Final = ("number", "state", "start", "end", "steps", "last_step", "last", "attempt", "owner", "epoch")


@dataclass(frozen=True, slots=True)
class Columns:
    """The trials as arrays of one length, or a choice of them."""

    lsn: int
    directions: tuple[str, ...]
    number: Ints
    state: Ints
    """By `TrialState`."""
    start: Floats
    """Seconds since 1970; NaN when unknown."""
    end: Floats
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
    """A row a trial, a column an objective; NaN without a value."""
    params: Mapping[str, Floats]
    parameters: Mapping[str, Parameter]
    owners: tuple[str, ...]
    sites: tuple[str, ...]
    _blocks: tuple[_Block, ...] = field(default=(), repr=False)
    _codes: dict[str, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.number)

    def where(self, mask: Mask) -> Columns:
        """Those trials only."""
        if mask.all():
            return self
        arrays = {name: getattr(self, name)[mask] for name in _ARRAYS}
        params = {name: column[mask] for name, column in self.params.items()}
        return replace(self, **arrays, params=params, _blocks=())

    def seconds(self) -> Floats:
        """How long each trial took; NaN for one that is not over or whose times are not known."""
        spent: Floats = self.end - self.start
        return np.where(spent >= 0, spent, np.nan)

    def is_(self, *states: int) -> Mask:
        """Which trials are in one of these states."""
        return np.isin(self.state, states)

    def cost(self, objective: int = 0) -> Floats:
        """The objective's values, the smaller the better."""
        sign = -1.0 if self.directions[objective] == "maximize" else 1.0
        column: Floats = sign * self.values[:, objective]
        return column

    def told(self, objective: int = 0) -> Mask:
        """COMPLETE trials with a finite value."""
        return self.is_(COMPLETE) & np.isfinite(self.values[:, objective])

    def best(self, objective: int = 0) -> int | None:
        """The row of the best COMPLETE trial, the earliest of equals."""
        told = self.told(objective)
        if not told.any():
            return None
        return int(np.argmin(np.where(told, self.cost(objective), np.inf)))


_ARRAYS: Final = (
    "number", "state", "start", "end", "steps", "last_step", "last", "attempt", "owner", "site", "values",
)  # fmt: skip


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
    whole = {name: column[name].astype(np.int64) for name in ("number", "state", "steps", "attempt", "owner")}
    owners = tuple(codes)
    sites, site = _sites(state, owners, whole["owner"])
    return Columns(
        lsn=state.lsn,
        directions=directions,
        **whole,
        start=column["start"],
        end=column["end"],
        last_step=column["last_step"],
        last=column["last"],
        site=site,
        values=values,
        params={name: _whole_column(blocks, name) for name in state.dists},
        parameters=parameters,
        owners=owners,
        sites=sites,
        _blocks=blocks,
        _codes=codes,
    )


def _blocks(
    state: State, kept: tuple[_Block, ...], objectives: int, codes: dict[str, int], parameters: dict[str, Parameter]
) -> Iterator[_Block]:
    for index in range(0, len(state.trials), BLOCK):
        block = kept[index // BLOCK] if index // BLOCK < len(kept) else None
        if block is not None and block.over and len(block.scalars) == min(BLOCK, len(state.trials) - index):
            yield block
        else:
            yield _block(state.trials[index : index + BLOCK], objectives, codes, parameters)


def _block(trials: list[Trial], objectives: int, codes: dict[str, int], parameters: dict[str, Parameter]) -> _Block:
    nan = float("nan")
    values = np.full((len(trials), objectives), nan)
    params: dict[str, Floats] = {}
    rows = []
    for row, trial in enumerate(trials):
        reports = list(trial.reports)
        last = max(reports) if reports else None
        rows.append((
            trial.number,
            trial.state,
            nan if trial.start is None else trial.start / 1e6,
            nan if trial.end is None else trial.end / 1e6,
            len(reports),
            nan if last is None else last,
            nan if last is None else trial.reports.get(last, nan),
            trial.attempt,
            -1 if trial.owner is None else codes.setdefault(trial.owner, len(codes)),
            trial.epoch,
        ))  # fmt: skip
        if trial.values is not None and len(trial.values) == objectives:
            values[row] = trial.values
        for name, value in list(trial.params.items()):
            column = params.get(name)
            if column is None:
                column = params[name] = np.full(len(trials), nan)
            other = trial.dists.get(name)
            column[row] = value if other is None else _as_first(value, other, parameters.get(name))
    return _Block(np.array(rows, dtype=np.float64), values, params, all(trial.state in _OVER for trial in trials))


def _as_first(value: float, other: Distribution, first: Parameter | None) -> float:
    """A value from another distribution than the study's first, on the axis of that one; NaN if it is not there."""
    if first is None or isinstance(other, Categorical) != (first.choices is not None):
        return float("nan")
    if not isinstance(other, Categorical) or first.choices is None:
        return value
    choice = str(other.choices[int(value)]) if 0 <= value < len(other.choices) else None
    return float(first.choices.index(choice)) if choice in first.choices else float("nan")


def _whole_column(blocks: tuple[_Block, ...], name: str) -> Floats:
    parts: list[Any] = [one.params.get(name, np.full(len(one.scalars), np.nan)) for one in blocks]
    return np.concatenate(parts) if parts else np.empty(0)


def _parameter(name: str, one: Distribution) -> Parameter:
    if isinstance(one, Categorical):
        return Parameter(name, 0, max(0, len(one.choices) - 1), choices=tuple(map(str, one.choices)))
    return Parameter(name, float(one.low), float(one.high), one.log and one.low > 0, whole=isinstance(one.low, int))


def _sites(state: State, owners: tuple[str, ...], owner: Ints) -> tuple[tuple[str, ...], Ints]:
    """The sites by name, and each trial's: what its peer said of itself; "?" when it said nothing, "-" without one."""
    said = [state.peers.get(one, {}).get("site") or "?" for one in owners]
    names = tuple(sorted({*said, *(("-",) if (owner < 0).any() else ())}))
    index = {name: position for position, name in enumerate(names)}
    of_owner = np.array([index[name] for name in said] + [index.get("-", 0)], dtype=np.int64)
    return names, of_owner[owner]  # -1 takes the last one
