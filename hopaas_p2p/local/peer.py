"""One peer that runs trials for clients which speak JSON: what the local HTTP server and the MCP server both offer."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from optuna.exceptions import UpdateFinishedTrialError

from hopaas_p2p import notes
from hopaas_p2p.analysis.facts import best, json_number, last_metrics, params_of, state_word
from hopaas_p2p.analysis.importance import Importance, importance
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State
from hopaas_p2p.core.state import Trial as CoreTrial
from hopaas_p2p.errors import (
    Denied,
    HopaasError,
    InvalidInput,
    NoSuchStudy,
    NoSuchTrial,
    NotYourTrial,
    StudyDeleted,
)
from hopaas_p2p.peer.liveness import any_alive, signs_of_life
from hopaas_p2p.space import spec
from hopaas_p2p.times import to_iso
from hopaas_p2p.trial_requests import TrialRequests

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.study import Study
    from hopaas_p2p.trial import Trial

SILENCE: Final = 3600.0
"""Seconds without a request about a trial after which it is returned."""
LARGEST_ANSWER: Final = 3800
"""Characters of an answer; an agent reads each of them."""
_LONGEST_TEXT: Final = 400
_MOST: Final = 50  # rows of a list
_KEPT_ROWS: Final = 2000
_ONE_PERCENT_MORE: Final = 1.01


class _OpenTrial(NamedTuple):
    trial: Trial
    requests: TrialRequests


class _KeptImportance(NamedTuple):
    study: Study
    complete: int
    found: Importance


class LocalPeer:
    """Answers requests about the studies of one store, and runs trials for clients. Thread-safe.

    A client owns nothing: the leases are this process's. A trial about which no request has come for `silence` seconds
    is returned, and so are all others when the process ends.

    Args:
        storage: the open store.
        actions: whether requests that change something are allowed.
        silence: seconds.
        clock: monotonic seconds; a test passes its own.

    """

    def __init__(
        self,
        storage: Storage,
        *,
        actions: bool,
        silence: float = SILENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.storage = storage
        self._actions = actions
        self._silence = silence
        self._clock = clock
        self._lock = threading.Lock()
        self._studies: dict[str, Study] = {}
        self._open: dict[tuple[str, int], _OpenTrial] = {}
        self._heard_at: dict[tuple[str, int], float] = {}
        self._rows: dict[tuple[Study, int], dict[str, Any]] = {}
        self._importances: dict[str, _KeptImportance] = {}

    # --- reading ---

    def studies(self) -> dict[str, Any]:
        """The names of the studies of this store."""
        return fitted({"studies": self.storage.study_names()}, "studies")

    def show(self, name: str) -> dict[str, Any]:
        """A study at a glance: state, counts, budget, best trial, search space."""
        study = self._study(name)
        state = study.state
        define = state.define
        assert define is not None
        top = best(state)
        return fitted(
            {
                "study": name,
                "state": state_word(state, working=any_alive(signs_of_life(self.storage.peer, state).values())),
                "directions": list(define.directions),
                "counts": {one.name: state.counts[one] for one in TrialState},
                "budget": state.budget,
                "left": None if state.budget is None else max(0, state.budget - state.used()),
                "best": None if top is None else _row(top, state),
                "note": notes.note_of(study)[:_LONGEST_TEXT],
                "space": [f"{key}={spec(one)}"[:_LONGEST_TEXT] for key, one in study.space.items()],
            },
            "space",
        )

    def trials(
        self, name: str, *, state: str | None = None, order: str = "number", limit: int = 20, offset: int = 0
    ) -> dict[str, Any]:
        """Some trials of a study.

        Args:
            name: the study.
            state: running, complete, pruned, fail or waiting; None for all.
            order: "number", "newest" or "best".
            limit: at most 50.
            offset: how many to skip.

        """
        study = self._study(name)
        whole = study.state
        first, last = max(0, offset), max(0, offset) + max(1, min(limit, _MOST))
        if order == "best":
            matching, numbers = _best(whole, first, last)
        elif order in ("number", "newest"):
            rows = range(len(whole.trials)) if state is None else list(whole.trials.numbers_of(_state_named(state)))
            matching, numbers = len(rows), (rows[::-1] if order == "newest" else rows)[first:last]
        else:
            raise InvalidInput(f"order must be number, newest or best, got {order!r}")
        found = [self._row(study, whole, number) for number in numbers]
        return fitted({"study": name, "matching": matching, "trials": found}, "trials")

    def _row(self, study: Study, state: State, number: int) -> dict[str, Any]:
        """What `trials` says of one; of a complete one it is kept, since making its trial may open a whole block."""
        with self._lock:
            kept = self._rows.get((study, number))
        if kept is None:
            trial = state.trials[number]
            kept = _row(trial, state)
            if trial.state is TrialState.COMPLETE:
                with self._lock:
                    if len(self._rows) >= _KEPT_ROWS:
                        self._rows.clear()
                    self._rows[study, number] = kept
        return kept

    def trial(self, name: str, number: int) -> dict[str, Any]:
        """One trial, with its reports, and the last value of each metric."""
        study = self._study(name)
        state = study.state
        trial = _existing(state, number, name)
        reports = [[step, json_number(value)] for step, value in sorted(trial.reports.items())]
        metrics = {key: json_number(value) for key, value in last_metrics(trial).items()}
        return fitted(
            {
                **_row(trial, state),
                "attempt": trial.attempt,
                "site": state.peers.get(trial.owner or "", {}).get("site"),
                "note": notes.note_of(study, number)[:_LONGEST_TEXT],
                **({"metrics": metrics} if metrics else {}),
                "reports": reports[-_MOST:],
            },
            "reports",
        )

    def compare(self, name: str, numbers: Iterable[int]) -> dict[str, Any]:
        """Trials side by side, and the parameters in which they differ."""
        state = self._study(name).state
        rows = [_row(_existing(state, number, name), state) for number in list(numbers)[:_MOST]]
        names = dict.fromkeys(key for row in rows for key in row["params"])
        differing = [key for key in names if len({json.dumps(row["params"].get(key)) for row in rows}) > 1]
        return fitted({"differ": differing, "trials": rows}, "trials")

    def importances(self, name: str) -> dict[str, Any]:
        """Which parameters matter, as shares that add up to 1 (PED-ANOVA); worked out anew for 1 % more trials."""
        study = self._study(name)
        complete = study.state.counts[TrialState.COMPLETE]
        with self._lock:
            kept = self._importances.get(name)
        if kept is None or kept.study is not study or not kept.complete <= complete < kept.complete * _ONE_PERCENT_MORE:
            kept = _KeptImportance(study, complete, importance(study.state, TrialTable.of(study.state)))
            with self._lock:
                self._importances[name] = kept
        found = kept.found
        shares = [[key, round(share, 4)] for key, share in found.shares]
        return fitted({"importances": shares, "note": found.note}, "importances")

    # --- trials of clients ---

    def adopt(self, study: Study) -> None:
        """Use this object, with its sampler and pruner, for requests about the study of its name."""
        with self._lock:
            self._studies[study.name] = study

    def ask(self, name: str, *, user_attrs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Start a trial for a client: its number and parameters."""
        study = self._study(name, changes=True)
        trial = study.ask()
        for attribute, value in (user_attrs or {}).items():
            trial.set_user_attr(attribute, value)
        resumed = trial.resume  # if this raises, nobody knows of the trial, and it is returned
        checkpoint = {} if resumed is None else {"resume": {"step": resumed[0], "path": str(resumed[1])}}
        key = (name, trial.number)
        with self._lock:
            self._open[key] = _OpenTrial(trial, TrialRequests(study, trial))
            self._heard_at[key] = self._clock()
        return {"study": name, "trial": trial.number, "params": dict(trial.params), **checkpoint}

    def request(self, name: str, number: int, do: str, **more: Any) -> dict[str, Any]:
        """A request about a trial that was asked for here, see `trial_requests`.

        Raises:
            NotYourTrial: it was not requested here, or was returned meanwhile.
            HopaasError: the store refused it.

        """
        self._check_allowed()
        key = (name, number)
        with self._lock:
            found = self._open.get(key)
            if found is not None:
                self._heard_at[key] = self._clock()
        if found is None:
            trials = self._study(name).state.trials
            if 0 <= number < len(trials) and trials[number].end is not None:  # it did not get the answer to its `tell`
                told = trials[number].state.name
                raise NotYourTrial(f"trial {number} has already finished ({told}), and stays as it is")
            raise NotYourTrial(f"trial {number} of {name!r} is not run by this process; ask for one first")
        try:
            reply = found.requests.carry_out({"do": do, **more})
        finally:
            if found.requests.told is not None:
                self._forget(key)
        if found.requests.released is not None:
            self._return(key, found, found.requests.released)
        return reply

    def expire(self) -> list[int]:
        """Return the trials about which no client has said anything for too long; their numbers."""
        now = self._clock()
        with self._lock:
            silent = [(key, self._open[key]) for key, at in self._heard_at.items() if now - at > self._silence]
        for key, found in silent:
            self._return(key, found, f"its client was silent for {self._silence:.0f} s")
        return [key[1] for key, _ in silent]

    def close(self) -> None:
        """Return the trials of all clients, send what is queued, and close the store."""
        with self._lock:
            remaining = list(self._open.items())
        try:
            for key, found in remaining:
                self._return(key, found, "the local server ended")
        finally:
            self.storage.close()

    def _return(self, key: tuple[str, int], found: _OpenTrial, reason: str) -> None:
        found.requests.close()
        self._forget(key)
        gone = (UpdateFinishedTrialError, NotYourTrial, NoSuchStudy, NoSuchTrial, StudyDeleted)
        with contextlib.suppress(*gone):  # others took it over meanwhile, or deleted its study
            self.storage.release(found.trial.id, reason=reason)

    def _forget(self, key: tuple[str, int]) -> None:
        with self._lock:
            self._open.pop(key, None)
            self._heard_at.pop(key, None)

    # --- other changes ---

    def enqueue(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a trial with these parameters; the sampler chooses the others."""
        return {"study": name, "trial": self._study(name, changes=True).enqueue(dict(params))}

    def annotate(self, name: str, text: str, number: int | None = None) -> dict[str, Any]:
        """Put a note (Markdown) in place of the study's or trial's present one."""
        notes.save_note(self._study(name, changes=True), text, number)
        return {"study": name, **({} if number is None else {"trial": number})}

    def stop_trial(self, name: str, number: int, reason: str | None = None) -> dict[str, Any]:
        """Ask the owner of a running trial to end it."""
        self._study(name, changes=True).stop_trial(number, reason=reason)
        return {"study": name, "trial": number, "requested": "stop"}

    def _check_allowed(self) -> None:
        if not self._actions:
            raise Denied(
                "this server is read-only; to let clients run and change trials, start `local` without --read-only, or "
                "`mcp` with --allow-actions"
            )

    def _study(self, name: str, *, changes: bool = False) -> Study:
        """The study that has this name now."""
        if changes:
            self._check_allowed()
        with self._lock:
            found = self._studies.get(name)
        if found is None or is_gone(found):
            from hopaas_p2p.study import open_study

            found = open_study(self.storage, name, create=False)
            self.adopt(found)
        return found


def is_gone(study: Study) -> bool:
    """Whether the study was deleted; another one may have its name by now."""
    try:
        study.state  # noqa: B018  # a property that reads
    except NoSuchStudy:
        return True
    return False


def fitted(answer: dict[str, Any], rows: str) -> dict[str, Any]:
    """The answer with as many of its rows as fit into LARGEST_ANSWER; `left_out` says how many do not."""
    left_out = 0
    while len(json.dumps(answer)) > LARGEST_ANSWER and answer[rows]:
        drop = max(1, len(answer[rows]) // 4)
        answer = {**answer, rows: answer[rows][:-drop]}
        left_out += drop
        answer["left_out"] = left_out
    return answer


def _row(trial: CoreTrial, state: State) -> dict[str, Any]:
    row = {
        "trial": trial.number,
        "state": trial.state.name,
        "values": None if trial.values is None else [json_number(value) for value in trial.values],
        "params": {key: _short(value) for key, value in params_of(trial, state).items()},
        "started": to_iso(trial.start),
        "ended": to_iso(trial.end),
        "reason": (trial.reason or "")[:_LONGEST_TEXT] or None,
    }
    return {key: value for key, value in row.items() if value is not None}


def _short(value: object) -> object:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else json_number(value)


def _best(state: State, first: int, last: int) -> tuple[int, Sequence[int]]:
    """How many trials have a value, and the numbers at these places, the best first, of equals the earliest."""
    assert state.define is not None
    if len(state.define.directions) != 1:
        raise InvalidInput("order=best is for studies with one objective")
    table = TrialTable.of(state)
    rows = np.flatnonzero(table.complete())
    ordered = rows[np.argsort(table.cost()[rows], kind="stable")]
    return len(rows), ordered[first:last].tolist()


def _existing(state: State, number: int, name: str) -> CoreTrial:
    if not 0 <= number < len(state.trials):
        raise NoSuchTrial(f"the study {name!r} has no trial {number}")
    return state.trials[number]


def _state_named(word: str) -> TrialState:
    try:
        return TrialState[word.upper()]
    except KeyError:
        raise InvalidInput(f"{word!r} is not a state; choose from running, complete, pruned, fail, waiting") from None


def watch_silence(peer: LocalPeer, stopped: threading.Event, *, every: float = 10.0) -> None:
    """Return silent clients' trials until `stopped` is set. Runs in a thread of its own."""
    while not stopped.wait(every):
        try:
            peer.expire()
        except HopaasError:
            continue  # the store is away; the next look tries again
