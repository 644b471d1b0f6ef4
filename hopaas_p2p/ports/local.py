"""One peer that runs trials for clients that send JSON, for the local HTTP server and the MCP server."""

from __future__ import annotations

import contextlib
import inspect
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from optuna.exceptions import UpdateFinishedTrialError

from hopaas_p2p import notes
from hopaas_p2p.analysis.facts import glance, json_number, last_metrics, row_of, why_not
from hopaas_p2p.analysis.importance import importance
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import Denied, HopaasError, InvalidInput, NoSuchStudy, NoSuchTrial, NotYourTrial
from hopaas_p2p.peer.liveness import signs_of_life
from hopaas_p2p.ports.verbs import VERBS, Reply, TrialVerbs
from hopaas_p2p.spec.space import spec

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.study import Study

SILENCE: Final = 3600.0
"""A trial is returned after this many seconds without a request about it."""
LARGEST_ANSWER: Final = 3800
"""The maximum length of an answer in characters, because an agent reads all of them."""
_LARGEST_ROW: Final = 2600  # characters of a trial among others
_LONGEST_TEXT: Final = 400
_MOST: Final = 50  # rows of a list
_FIELDS: Final = ("state", "values", "params", "start", "end", "reason")


READS: Final = ("studies", "show", "trials", "trial", "importances")
ACTS: Final = ("ask", "enqueue", "note", "stop")
"""Methods of LocalPeer that clients call by these names, besides the `VERBS` about their trials."""
TRIAL_TOOLS: Final = ("report", "log", "tell", "release")
"""Methods of LocalPeer for the verbs that an agent uses; their docstrings describe them to the agent."""


class LocalPeer:
    """Answers requests about the studies of one store, and runs trials for clients. Thread-safe.

    The leases belong to this process, not to clients. A trial is returned after `silence` seconds without a
    request about it, and all trials are returned when the process ends.

    Args:
        storage: the open store.
        actions: whether requests that change something are allowed.
        silence: the seconds without a request after which a trial is returned.
        clock: monotonic seconds; a test passes its own.

    """

    def __init__(
        self, storage: Storage, *, actions: bool, silence: float = SILENCE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.storage = storage
        self.actions, self._silence, self._clock = actions, silence, clock
        self._studies: dict[str, Study] = {}
        self._open: dict[tuple[str, int], TrialVerbs] = {}
        """Trials by study and number. Threads use only single, atomic operations on it."""
        self._tables: dict[str, tuple[Study, TrialTable]] = {}
        """The latest tables, from which the next ones are built."""

    def answer(self, verb: str, body: dict[str, Any]) -> Reply:
        """Carry out a request: one of READS, ACTS or VERBS by name, and its arguments.

        Raises InvalidInput for an unknown name or argument, KeyError for a missing argument, and like `request`.
        """
        if verb in VERBS:
            return self.request(body.pop("study"), body.pop("trial"), verb, **body)
        if verb not in (*READS, *ACTS):
            raise InvalidInput(f"POST /v1/VERB; choose from {', '.join((*READS, *ACTS, *VERBS))}")
        method: Callable[..., Reply] = getattr(self, verb)
        takes = inspect.signature(method).parameters
        for name in [*body, *(name for name, one in takes.items() if one.default is one.empty)]:
            if name not in takes:
                raise InvalidInput(f"{verb} takes {', '.join(takes)}, not {name!r}")
            if name not in body:
                raise KeyError(name)
        return method(**body)

    # --- reading: agents see these docstrings ---

    def studies(self) -> Reply:
        """List the names of the studies."""
        return fitted({"studies": self.storage.study_names()}, "studies")

    def show(self, study: str) -> Reply:
        """Show a study: state, counts, budget, best trial, search space."""
        opened = self._study(study)
        state = opened.state
        found = glance(state, signs_of_life(self.storage.peer, state))
        return fitted(
            {
                "study": study,
                **{name: found[name] for name in ("state", "directions", "counts", "budget")},
                "left": None if state.budget is None else max(0, state.budget - state.used()),
                "best": _row(state, found["best"]["number"]) if isinstance(found["best"], dict) else None,
                "note": notes.note_of(opened)[:_LONGEST_TEXT],
                "space": [f"{key}={spec(one)}"[:_LONGEST_TEXT] for key, one in opened.space.items()],
            },
            *("space", "note"),
        )

    def trials(
        self, study: str, state: str | None = None, order: str = "number", limit: int = 20, offset: int = 0
    ) -> Reply:
        """List trials.

        state is one of running, complete, pruned, fail, waiting. order is number, newest or best; best lists complete
        trials only, whatever state is. limit is at most 50.
        """
        opened = self._study(study)
        whole = opened.state
        first, last = max(0, offset), max(0, offset) + max(1, min(limit, _MOST))
        numbers: Sequence[int]
        if order == "best":
            if len(opened.directions) != 1:
                raise InvalidInput("order=best is for studies with one objective")
            numbers = self._table(opened, whole).ranked().tolist()
        elif order in ("number", "newest"):
            wanted = None if state is None else TrialState.__members__.get(state.upper())
            if wanted is None and state is not None:
                raise InvalidInput(f"{state!r} is not a state; choose from running, complete, pruned, fail, waiting")
            among = None if wanted is None else self._table(opened, whole).is_(wanted).nonzero()[0].tolist()
            numbers = range(len(whole.trials)) if among is None else among
            numbers = numbers[::-1] if order == "newest" else numbers
        else:
            raise InvalidInput(f"order must be number, newest or best, got {order!r}")
        found = [_row(whole, number) for number in numbers[first:last]]
        return fitted({"study": study, "matching": len(numbers), "trials": found}, "trials")

    def trial(self, study: str, trial: int) -> Reply:
        """Show one trial with its last 50 reports, as [step, value]."""
        opened = self._study(study)
        found = opened.handle.existing(trial)
        state = opened.handle.state
        reports = [[step, json_number(value)] for step, value in sorted(found.reports.items())]
        metrics = {key: json_number(value) for key, value in last_metrics(found).items()}
        return fitted(
            {
                **_row(state, trial, most=LARGEST_ANSWER),
                "attempt": found.attempt,
                "site": state.peers.get(found.owner or "", {}).get("site"),
                "note": notes.note_of(opened, trial)[:_LONGEST_TEXT],
                **({"metrics": metrics} if metrics else {}),
                "reports": reports[-_MOST:],
            },
            *("reports", "metrics", "note", "params"),
        )

    def importances(self, study: str) -> Reply:
        """Show how much each parameter matters, as shares that add up to 1."""
        opened = self._study(study)
        state = opened.state
        found = importance(state, self._table(opened, state))
        shares = [[key, round(share, 4)] for key, share in found.shares]
        return fitted({"importances": shares, "note": found.note}, "importances")

    # --- trials of clients ---

    def ask(self, study: str) -> Reply:
        """Start a trial, and get its number and parameters. If you are silent for an hour, it is returned."""
        return self.start(self._study(study, changes=True))

    def start(self, study: Study, user_attrs: Mapping[str, Any] = MappingProxyType({})) -> Reply:
        """Start a trial of this study. Later requests about its name use this object."""
        self._check_allowed()
        self._studies[study.name] = study
        trial = study.ask()
        for attribute, value in user_attrs.items():
            trial.set_user_attr(attribute, value)
        resumed = trial.resume  # if this raises, no client knows of the trial, and it is returned
        checkpoint = {} if resumed is None else {"resume": {"step": resumed[0], "path": str(resumed[1])}}
        verbs = TrialVerbs(study, trial)
        verbs.heard_at = self._clock()  # first, because `expire` looks at all entries
        self._open[study.name, trial.number] = verbs
        return {"study": study.name, "trial": trial.number, "params": dict(trial.params), **checkpoint}

    def request(self, study: str, trial: int, verb: str, /, **said: Any) -> Reply:
        """Carry out one of VERBS about a trial that was started here.

        Raises:
            NotYourTrial: the trial was not started here, was returned meanwhile, or is over.
            HopaasError: the store refused the request, or this server is read-only.
            KeyError, TypeError, ValueError: the request is malformed.

        """
        self._check_allowed()
        key = (study, trial)
        verbs = self._open.get(key)
        if verbs is None:
            trials = self._study(study).state.trials
            if 0 <= trial < len(trials) and trials[trial].end is not None:  # the client missed the answer to its `tell`
                told = trials[trial].state.name
                raise NotYourTrial(f"trial {trial} has already finished ({told}), and stays as it is")
            raise NotYourTrial(f"trial {trial} of {study!r} is not run by this process; ask for one first")
        verbs.heard_at = self._clock()
        try:
            reply = verbs.do(verb, **said)
        finally:
            if verbs.told is not None:
                self._open.pop(key, None)
        if verbs.released is not None:
            self._return(key, verbs, verbs.released)
        return reply

    def report(self, study: str, trial: int, value: float, step: int) -> Reply:
        """Report an intermediate value. If prune is true, end the trial: tell it with state=pruned."""
        return self.request(study, trial, "report", value=value, step=step)

    def log(self, study: str, trial: int, metrics: dict[str, float], step: int) -> Reply:
        """Log other metrics of a step, such as {"auc": 0.9}, which are shown, but do not affect pruning."""
        return self.request(study, trial, "log", metrics=metrics, step=step)

    def tell(
        self,
        study: str,
        trial: int,
        values: list[float] | None = None,
        state: str | None = None,
        reason: str | None = None,
    ) -> Reply:
        """End a trial that you asked for: with a value per objective, or state=pruned, or state=fail and a reason."""
        return self.request(study, trial, "tell", values=values, state=state, reason=reason)

    def release(self, study: str, trial: int, reason: str | None = None) -> Reply:
        """Return a trial that you asked for and cannot finish, so that another peer runs it."""
        return self.request(study, trial, "release", reason=reason)

    def expire(self) -> list[int]:
        """Release the trials whose clients were silent for too long; returns their numbers."""
        now = self._clock()
        silent = [(key, one) for key, one in list(self._open.items()) if now - one.heard_at > self._silence]
        for key, verbs in silent:
            self._return(key, verbs, f"its client was silent for {self._silence:.0f} s")
        return [key[1] for key, _ in silent]

    def close(self) -> None:
        """Return the trials of all clients, send queued records, and close the store."""
        try:
            for key, verbs in list(self._open.items()):
                self._return(key, verbs, "the local server ended")
        finally:
            self.storage.close()

    def _return(self, key: tuple[str, int], verbs: TrialVerbs, reason: str) -> None:
        verbs.close()
        self._open.pop(key, None)
        gone = (UpdateFinishedTrialError, NotYourTrial, NoSuchStudy, NoSuchTrial)
        with contextlib.suppress(*gone):  # taken over meanwhile, or its study was deleted
            verbs.trial.handle.release(verbs.trial.number, reason=reason)

    # --- other changes ---

    def enqueue(self, study: str, params: dict[str, Any]) -> Reply:
        """Queue a trial with these parameters; the sampler chooses those that you leave out."""
        return {"study": study, "trial": self._study(study, changes=True).enqueue_trial(params)}

    def note(self, study: str, text: str, trial: int | None = None) -> Reply:
        """Replace the note (Markdown) of a study, or of a trial."""
        notes.save_note(self._study(study, changes=True), text, trial)
        return {"study": study, **({} if trial is None else {"trial": trial})}

    def stop(self, study: str, trial: int, reason: str | None = None) -> Reply:
        """Ask the peer that runs a trial to end it."""
        self._study(study, changes=True).stop_trial(trial, reason=reason)
        return {"study": study, "trial": trial, "requested": "stop"}

    def _check_allowed(self) -> None:
        if not self.actions:
            raise Denied("this server is read-only: start `hopaas-p2p serve mcp` with --allow-actions")

    def _table(self, study: Study, state: State) -> TrialTable:
        """The trials of a study with this state, as a table."""
        kept, before = self._tables.get(study.name, (None, None))
        table = TrialTable.of(state, before if kept is study else None)
        self._tables[study.name] = study, table
        return table

    def _study(self, name: str, *, changes: bool = False) -> Study:
        """The study that currently has this name."""
        from hopaas_p2p.study import open_study

        if changes:
            self._check_allowed()
        found = self._studies.get(name)
        if found is None or is_gone(found):
            found = self._studies[name] = open_study(self.storage, name, create=False)
        return found


def is_gone(study: Study) -> bool:
    """Whether the study was deleted; another one may have its name by now."""
    with contextlib.suppress(NoSuchStudy):
        study.state  # noqa: B018  # a property that reads
        return False
    return True


def fitted(answer: dict[str, Any], *names: str, most: int = LARGEST_ANSWER) -> dict[str, Any]:
    """The answer, with these lists, dictionaries and texts shortened until it has at most `most` characters.

    They are shortened in this order, at their ends. `left_out` counts the entries, or characters, that are missing.
    The other fields are kept whole, even if they alone are longer.
    """
    for name in names:
        while len(json.dumps(answer)) > most and (there := answer.get(name)):
            drop = max(1, len(there) // 4)
            kept = dict(list(there.items())[:-drop]) if isinstance(there, dict) else there[:-drop]
            answer = {**answer, name: kept, "left_out": answer.get("left_out", 0) + drop}
    return answer


def _row(state: State, number: int, *, most: int = _LARGEST_ROW) -> dict[str, Any]:
    """A trial for an agent: the known facts, in strict JSON, with long texts shortened."""
    row = row_of(state, number)
    row["reason"] = row["reason"] or why_not(state.trials[number]) or None
    said = {"trial": number} | {key: row[key] for key in _FIELDS if row[key] is not None}
    return fitted({key: _short(value) for key, value in said.items()}, "params", "reason", most=most)


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(one) for one in value]
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    return value[:_LONGEST_TEXT] if isinstance(value, str) else json_number(value)


def watch_silence(peer: LocalPeer, stopped: threading.Event, *, every: float = 10.0) -> None:
    """Return silent clients' trials until `stopped` is set. Runs in a thread of its own."""
    while not stopped.wait(every):
        with contextlib.suppress(HopaasError):  # the store is unreachable; the next look tries again
            peer.expire()
