"""Numbers about a study, computed from its State. Pure: no I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from hopaas_p2p.core.admission import next_start
from hopaas_p2p.core.attributes import AGAIN
from hopaas_p2p.core.records import TrialCreate
from hopaas_p2p.core.spending import trial_seconds
from hopaas_p2p.core.state import FAIL, RUNNING, State, Trial

_LONGEST_LABEL: Final = 40


def state_word(state: State, *, working: bool | None = True) -> str:
    """One word for people: open (no trial yet), running, idle, paused, stopped, failing or done.

    Args:
        state: the study.
        working: whether a live peer runs one of its trials. False: idle, whatever the log says of running trials.
            None: nobody knows yet, which is a word too: unknown.

    """
    closed = next_start(state).why
    if closed not in (None, "budget"):
        return closed
    if state.counts[RUNNING]:
        return {True: "running", False: "idle", None: "unknown"}[working]
    if closed == "budget":
        return "done"
    return "idle" if state.trials else "open"


def retried(state: State) -> int:
    """How many of the FAIL trials were run again: leases that were lost, and what was given back or queued again."""
    if not state.counts[FAIL]:
        return 0
    trials = list(state.trials)
    again = queued_again(state)
    return sum(trial.state is FAIL and (trial.retried_by is not None or trial.number in again) for trial in trials)


def queued_again(state: State) -> frozenset[int]:
    """The numbers of trials that somebody queued again by hand."""
    return frozenset(int(trial.system[AGAIN]) for trial in list(state.trials) if AGAIN in trial.system)


def last_ended(state: State) -> dict[str, float]:
    """Peer -> when the last of its trials began or ended, in seconds since 1970 by its own clock."""
    found: dict[str, float] = {}
    for trial in list(state.trials):
        times = [(trial.owner, trial.start), (trial.owner, trial.end)]
        for owner, at in [*times, *((past.owner, past.start) for past in trial.history)]:
            if owner is not None and at is not None:
                found[owner] = max(found.get(owner, 0.0), at / 1e6)
    return found


def budget_unit(state: State) -> str:
    """What a study's budget counts, in words: trials; with rungs, configurations; in a population, members."""
    return state.configurations.unit


def is_better(value: float, than: float, direction: str) -> bool:
    """Whether `value` is better than `than` in this direction."""
    return value > than if direction == "maximize" else value < than


def best(state: State) -> Trial | None:
    """The best COMPLETE trial of a study with one objective, the earliest of equals; None if there is none."""
    if state.define is None or len(state.define.directions) != 1:
        return None
    results = state.trials.results()
    if state.define.directions[0] == "maximize":
        found = max(results, key=lambda one: (one[1], -one[0]), default=None)
    else:
        found = min(results, key=lambda one: (one[1], one[0]), default=None)
    return None if found is None else state.trials[found[0]]


def pareto_front(state: State) -> list[Trial]:
    """The COMPLETE trials that are not dominated by another, by number."""
    from hopaas_p2p.analysis.table import TrialTable  # commands that need no table start without numpy

    return [state.trials[number] for number in TrialTable.of(state).front().tolist()]


def params_of(trial: Trial, state: State) -> dict[str, object]:
    """The parameters as the objective saw them."""
    from hopaas_p2p.translate import told

    return {name: told(trial.distribution(name, state), value) for name, value in trial.params.items()}


def peer_labels(state: State) -> dict[str, str]:
    """A short, distinct name for every peer: its site, or host, and pid."""
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for owner, info in list(state.peers.items()):
        where = info.get("site") or info.get("host") or "peer"
        label = f"{where} · {info.get('pid', owner[:6])}"[:_LONGEST_LABEL]
        labels[owner] = f"{label} · {owner[:6]}" if label in taken else label
        taken.add(label)
    return labels


def shown(value: object) -> str:
    """A number with four significant digits; whole numbers without decimals."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (abs(value) < 1e6 and value == int(value)):
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    return f"{value:.4g}"


def reason_line(reason: str | None) -> str:
    """Why a trial failed, in one line: of a command, how it ended and the last line of what it wrote."""
    lines = (reason or "").strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("the command"):
        return f"{lines[0]}: {lines[-1].strip()}"
    return lines[0] if lines else ""


def phrase(label: str) -> str:
    """A label with a capital letter, unless its first word has a form of its own, such as kWh."""
    return label[:1].upper() + label[1:] if label.partition(" ")[0].islower() else label


def took(trial: Trial) -> str:
    """How long the trial took over all its leases, in words; empty if that is not known."""
    seconds = trial_seconds(trial)
    return "" if seconds is None else duration(seconds)


def last_metrics(trial: Trial | TrialCreate) -> dict[str, float]:
    """The value of each metric at its last step."""
    return {name: values[max(values)] for name, values in trial.metrics.items() if values}


def json_number(value: Any) -> Any:
    """The value in strict JSON: NaN and the infinities become the texts "NaN", "Infinity" and "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[repr(value)]
    return value


def value_cells(cells: Sequence[Sequence[float] | None]) -> list[str]:
    """Values of a column, with as many decimals in each cell, so that the points stand below each other.

    Four significant digits of a typical value; what is far larger or smaller is written with an exponent.
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


def duration(seconds: float) -> str:
    """Seconds in words, two units at most: 0.03 s, 4.2 s, 42 s, 3 min 20 s, 2 h, 3 d 4 h."""
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
