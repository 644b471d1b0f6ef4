"""Facts about a study and its trials, computed from the State alone, without I/O or a clock."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.analysis.objectives import objectives
from hopaas_p2p.core.admission import next_start
from hopaas_p2p.core.attributes import AGAIN, COPIED
from hopaas_p2p.core.records import Distribution, TrialCreate, TrialState
from hopaas_p2p.core.spending import trial_seconds
from hopaas_p2p.core.state import FAIL, NEVER_PAUSING, RUNNING, WAITING, State, Trial
from hopaas_p2p.runtime.times import to_iso

if TYPE_CHECKING:
    from hopaas_p2p.peer.liveness import SignOfLife

_LONGEST_LABEL: Final = 40
_GUEST: Final = re.compile(r"^(guest-[0-9a-f]{6})[0-9a-f]{26}")
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


def state_word(state: State, *, working: bool | None = True) -> str:
    """The study's state in one word, which is open (no trial yet), running, idle, paused, stopped, failing or done.

    Args:
        state: the study.
        working: whether a live peer runs one of its trials. False gives "idle" instead of "running", whatever the log
            records. None means that this is not known yet, and gives "unknown".

    """
    closed = next_start(state).why
    if closed not in (None, "budget"):
        return closed
    if state.counts[RUNNING]:
        return {True: "running", False: "idle", None: "unknown"}[working]
    if closed == "budget":
        return "done"
    return "idle" if state.trials else "open"


def glance(state: State, signs: Mapping[str, SignOfLife]) -> dict[str, Any]:
    """A study's summary for people and programs, with its state, its peers, and its best trial or front.

    `signs` holds the signs of life of the peers that run its trials. With several objectives, the best is the front.
    """
    from hopaas_p2p.peer.liveness import any_alive

    directions = state.define.directions if state.define else ()
    heard = Counter(
        state.peers.get(owner, {}).get("site", "?") for owner, sign in signs.items() if sign.alive is not False
    )
    tops = [best(state)] if len(directions) < 2 else pareto_front(state)
    rows = [trial_row(top.number, top, state.dists) for top in tops if top is not None]
    found = [{name: one[name] for name in ("number", "values", "params")} for one in rows]
    return {
        "state": state_word(state, working=any_alive(signs.values())),
        "directions": list(directions),
        "objectives": list(objectives(state)),
        "trials": len(state.trials),
        "counts": counts(state),
        "retried": retried(state),
        "budget": state.budget,
        "used": state.used(),
        "best": found if len(directions) > 1 else next(iter(found), None),
        "peers": dict(sorted(heard.items())),
        "silent": {owner: sign.ago for owner, sign in sorted(signs.items()) if sign.alive is False},
    }


def trial_word(trial: Trial) -> str:
    """The trial's state in one word, which is that of Optuna, or PAUSED at a rung or in a population."""
    return "PAUSED" if trial.paused else trial.state.name


def counts(state: State) -> dict[str, int]:
    """The number of trials for each `trial_word`."""
    paused = state.configurations is not NEVER_PAUSING and sum(trial.paused for trial in list(state.trials))
    found = {one.name: state.counts[one] for one in TrialState}
    return found | {"PRUNED": found["PRUNED"] - paused, "PAUSED": int(paused)}


def retried(state: State) -> int:
    """The number of FAIL trials that were queued again, after a lost lease, a return or a requeue."""
    if not state.counts[FAIL]:
        return 0
    trials = list(state.trials)
    again = queued_again(state)
    return sum(trial.state is FAIL and (trial.retried_by is not None or trial.number in again) for trial in trials)


def queued_again(state: State) -> frozenset[int]:
    """The numbers of trials that somebody requeued by hand."""
    return frozenset(int(trial.system[AGAIN]) for trial in list(state.trials) if AGAIN in trial.system)


def best(state: State) -> Trial | None:
    """The best COMPLETE trial that satisfies its constraints, the earliest of equals, in a study with one objective."""
    if state.define is None or len(state.define.directions) != 1:
        return None
    sign = -1.0 if state.define.directions[0] == "maximize" else 1.0
    found = min(state.trials.results(), key=lambda one: (sign * one[1], one[0]), default=None)
    return None if found is None else state.trials[found[0]]


def pareto_front(state: State) -> list[Trial]:
    """The COMPLETE trials that satisfy their constraints and are not dominated by another, in order of their
    numbers.
    """
    from hopaas_p2p.analysis.table import TrialTable  # imported here, so that other commands start without numpy

    return [state.trials[number] for number in TrialTable.of(state).front().tolist()]


def params_of(trial: Trial | TrialCreate, dists: Mapping[str, Distribution] = _NOTHING) -> dict[str, Any]:
    """The parameters as the objective saw them. `dists` has the study's distributions, for parameters for which the
    trial has none.
    """
    from hopaas_p2p.translate import told

    return {name: told(trial.dists.get(name) or dists[name], value) for name, value in trial.params.items()}


def trial_row(
    number: int,
    trial: Trial | TrialCreate,
    dists: Mapping[str, Distribution] = _NOTHING,
    peer: Mapping[str, str] = _NOTHING,
) -> dict[str, Any]:
    """A trial's data for people and programs. Lists, JSON, files and widgets each format the data in their own way.

    Args:
        number: the trial's number.
        trial: the trial, or the record that creates it elsewhere.
        dists: the study's distributions.
        peer: what the trial's owner announced about itself.

    """
    about = {**json.loads(trial.system.get(COPIED, "{}")), **peer}
    return {
        "number": number,
        "state": trial.state.name,
        "values": None if trial.values is None else list(trial.values),
        "params": params_of(trial, dists),
        "start": to_iso(trial.start),
        "end": to_iso(trial.end),
        "seconds": trial_seconds(trial),
        "site": about.get("site"),
        "host": about.get("host"),
        "reason": trial.reason,
    }


def row_of(state: State, number: int) -> dict[str, Any]:
    """The row of a trial of this study, with its attempt, and its state as `trial_word`. The parameters of a waiting
    trial are the fixed ones.
    """
    trial = state.trials[number]
    found = trial_row(number, trial, state.dists, state.peers.get(trial.owner or "", _NOTHING))
    if trial.state is WAITING:
        found["params"] = found["params"] or json.loads(trial.system.get("fixed_params", "{}"))
    return found | {"state": trial_word(trial), "attempt": trial.attempt}


def peer_labels(state: State) -> dict[str, str]:
    """A short, distinct name for every peer, from its site or host and its pid."""
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for owner, info in list(state.peers.items()):
        where = info.get("site") or info.get("host") or "peer"
        label = f"{where} · {info.get('pid', owner[:6])}"[:_LONGEST_LABEL]
        labels[owner] = f"{label} · {owner[:6]}" if label in taken else label
        taken.add(label)
    return labels


def count(number: int, what: str) -> str:
    """A number of things in words, such as "1 trial" or "1,200 trials"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def shown(value: object) -> str:
    """A value for display. A number has four significant digits, and a whole number has no decimals."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (abs(value) < 1e6 and value == int(value)):
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    return f"{value:.4g}"


def reason_line(reason: str | None) -> str:
    """Why a trial failed, in one line. For a command, this is its exit status and the last line of its output."""
    lines = (reason or "").strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("the command"):
        return f"{lines[0]}: {lines[-1].strip()}"
    return lines[0] if lines else ""


def person(user: str) -> str:
    """A user's name for display, without the long hash of the study in the name of a guest."""
    return _GUEST.sub(r"\1…", user)


def why_not(trial: Trial) -> str:
    """Why a trial failed, in one line, or that it violates its constraints; empty if it can be the best trial."""
    return reason_line(trial.reason) or ("" if trial.feasible else "violates its constraints")


def phrase(label: str) -> str:
    """A label with an initial capital, unless its first word has a special form, such as kWh."""
    return label[:1].upper() + label[1:] if label.partition(" ")[0].islower() else label


def last_report(trial: Trial) -> str:
    """The trial's last report, in words; empty without a report."""
    step = max(trial.reports, default=None)
    return "" if step is None else f"{shown(trial.reports[step])} at step {step:,}"


def last_metrics(trial: Trial | TrialCreate) -> dict[str, float]:
    """The value of each metric at its last step."""
    return {name: values[max(values)] for name, values in trial.metrics.items() if values}


def json_number(value: Any) -> Any:
    """The value in strict JSON: NaN and the infinities become the strings "NaN", "Infinity" and "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[repr(value)]
    return value


def value_columns(state: State, values: Sequence[Sequence[float] | None]) -> dict[str, list[str]]:
    """The values of some trials as strings, as objective -> one cell per trial."""
    names = enumerate(objectives(state))
    return {name: value_cells([one and one[at : at + 1] for one in values]) for at, name in names}


def value_cells(cells: Sequence[Sequence[float] | None]) -> list[str]:
    """The values of a column, with the same number of decimals in each cell, so that the points align.

    A typical value gets four significant digits; far larger or smaller values are written with an exponent.
    """
    sizes = sorted(abs(one) for cell in cells for one in cell or () if math.isfinite(one) and one != 0)
    if not sizes or all(one == int(one) for one in sizes):
        return [", ".join(f"{one:.6g}" for one in cell) if cell else "-" for cell in cells]
    typical = sizes[len(sizes) // 2]
    places = max(0, min(8, 3 - math.floor(math.log10(typical))))

    def text(value: float) -> str:
        size = abs(value)
        plain = not math.isfinite(value) or size == 0 or typical / 1000 <= size < max(1e6, typical * 1000)
        return f"{value:.{places}f}" if plain and places < 8 else f"{value:.3e}"

    return [", ".join(map(text, cell)) if cell else "-" for cell in cells]


def whole_seconds(seconds: float) -> str:
    """A duration in whole seconds, in the format in which the monitor's pages continue to count."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


def ago(seconds: float) -> str:
    """How long ago something happened."""
    return "just now" if seconds < 2 else f"{whole_seconds(seconds)} ago"


def duration(seconds: float) -> str:
    """Seconds in words, with at most two units, such as <0.01 s, 4.2 s, 42 s, 3 min 20 s, 2 h or 3 d 4 h."""
    if 0.0 < seconds < 0.005:
        return "<0.01 s"
    if seconds < 9.95:
        return f"{seconds:.2f} s" if 0.0 < seconds < 0.095 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, unit, smaller, word in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {word}" if rest else "")
    raise AssertionError(seconds)
