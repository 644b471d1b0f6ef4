"""A study as the records that would recreate it, which are the basis of every copy, export and import.

A finished trial becomes the `TrialCreate` that creates it with its result. Its attribute `COPIED` has its origin, which
is the study and the number under which it ran, and the site and host that ran it. However often a trial is copied, its
origin stays, so that a study recognizes its own trials and those it already has. Numbers and ids of trials are those of
the study that the records come from. Code that adds the records to a study with other trials maps them with `linked`
and `renamed`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from hopaas_p2p.core.attributes import AGAIN, CONTINUES, COPIED, COPIES, REPLICATE, REUSED
from hopaas_p2p.core.names import study_and_number
from hopaas_p2p.core.records import StudyControl, StudyDefine, StudySet, TrialCreate
from hopaas_p2p.core.spending import earlier_seconds
from hopaas_p2p.core.state import TAKES_A_PLACE
from hopaas_p2p.errors import NoSuchStudy
from hopaas_p2p.files.artifacts import json_or_none

if TYPE_CHECKING:
    from hopaas_p2p.core.state import State, Trial
    from hopaas_p2p.study import Study

ORIGINAL: Final = "copied_from"
"""In the definition of a copy, also of a copy's copy: the uuid of the study that was copied first."""
_LINKS: Final = (CONTINUES, COPIES, REUSED, AGAIN, REPLICATE, "late_of", "failed_trial", "retry_history")
"""System attributes of a trial that name other trials."""
_BY_ID: Final = re.compile(r"(dashboard:(?:artifacts:)?)([0-9]{1,20})(:.*)", re.DOTALL)
_BY_NUMBER: Final = re.compile(r"(hopaas:)([0-9]{1,20})(:tag:.*)", re.DOTALL)

Renumber = Callable[[int], int | None]
"""Maps a trial's number, or id, to the one it has in another study; None if that study lacks the trial."""


class StudyRecords(NamedTuple):
    """A study; attributes are JSON texts, as in the log, but name its trials by numbers, not by ids."""

    define: StudyDefine
    trials: dict[int, TrialCreate]
    """Trials by number. Each has the distribution of every parameter."""
    settings: StudySet = StudySet()
    control: StudyControl = StudyControl()
    """The study's control. Its budget counts trials; if trials pause, each continuation counts."""
    uuid: str = ""
    """The uuid of the source study; empty if it has none, like Optuna's."""


def of_study(study: Study) -> StudyRecords:
    """The study as it is now."""
    state, part = study.state, study.handle
    with part.lock:
        return of_state(state, uuid=part.uuid)


def of_state(state: State, *, uuid: str = "") -> StudyRecords:
    """The records of this State's study. Hold its lock, so that nothing is applied meanwhile."""
    define = state.define
    assert define is not None
    policy = msgspec.structs.replace(define.policy, limits=state.ledger.limits)
    info = {ORIGINAL: uuid, **define.info} if uuid else define.info
    define = msgspec.structs.replace(define, policy=policy, info=info)
    budget = state.budget
    if budget is not None:  # if trials pause, some do not count against the budget
        taking = [trial.number for trial in state.trials if trial.state in TAKES_A_PLACE]
        budget += len(taking) - len({state.configurations.root(number) for number in taking})
    by_number = renamed(state.system, lambda one: study_and_number(one)[1], lambda number: number)
    return StudyRecords(
        define=define,
        trials={trial.number: record_of(trial, state, uuid) for trial in state.trials},
        settings=StudySet(dict(state.user), by_number),
        control=StudyControl(state.status, -1 if budget is None else budget),
        uuid=uuid,
    )


def record_of(trial: Trial, state: State, uuid: str = "") -> TrialCreate:
    """The record that would create this trial of this State, whose lock is held."""
    copied: dict[str, Any] = {"study": uuid, "trial": trial.number} if uuid else {}
    copied |= {} if trial.epoch and trial.end else origin(trial)  # one that came waiting, and ran here, is our own
    peer = state.peers.get(trial.owner or "", {})
    copied |= {key: peer[key] for key in ("site", "host") if key in peer}
    copied |= {"earlier": earlier_seconds(trial)} if trial.history else {}
    return TrialCreate(
        state=trial.state,
        params=dict(trial.params),
        dists={name: trial.distribution(name, state) for name in trial.params},
        reports=dict(trial.reports),
        user=dict(trial.user),
        system={**trial.system, COPIED: json.dumps(copied, ensure_ascii=False)} if copied else dict(trial.system),
        values=trial.values,
        reason=trial.reason,
        start=trial.start,
        end=trial.end,
        metrics={name: dict(values) for name, values in trial.metrics.items()},
    )


def origin(trial: Trial | TrialCreate) -> dict[str, Any]:
    """The `trial` and the `study` that this was copied from, as far as known.

    The result also has the `site` and `host` that ran it, and `earlier`, the seconds that it ran before its last lease.
    """
    found = json_or_none(trial.system.get(COPIED, ""))  # of a foreign file, anything
    return found if isinstance(found, dict) else {}


def one_of(names: list[str], name: str | None, place: str) -> str:
    """The given name, or by default the only one of these names.

    Raises:
        NoSuchStudy: the name is not among them, or none was given and there is not exactly one.

    """
    there = ", ".join(names[:20]) or "none"
    if name is None and len(names) != 1:
        cure = f"; choose one with --source-study: {there}" * bool(names)
        raise NoSuchStudy(f"{place} holds {len(names)} studies{cure}")
    if name is not None and name not in names:
        raise NoSuchStudy(f"{place} has no study {name!r}; it has: {there}")
    return names[0] if name is None else name


def renamed(system: Mapping[str, str], ids: Renumber, numbers: Renumber) -> dict[str, str]:
    """A study's attributes with new ids and numbers, without those about trials that are not there."""
    there = {}
    for key, text in system.items():
        found, to = (
            (_BY_ID.fullmatch(key), ids) if key.startswith("dashboard:") else (_BY_NUMBER.fullmatch(key), numbers)
        )
        new = None if found is None else to(int(found[2]))
        if found is None or new is not None:
            there[key if found is None else f"{found[1]}{new}{found[3]}"] = text
    return there


def linked(system: Mapping[str, str], to: Renumber) -> dict[str, str]:
    """A trial's attributes with the new numbers of the trials that they name, as far as these are there."""
    found = {key: _link(text, to) if key in _LINKS else text for key, text in system.items()}
    return {key: text for key, text in found.items() if text is not None}


def _link(text: str, to: Renumber) -> str | None:
    value = json_or_none(text)
    if type(value) is int:
        value = to(value)
    elif isinstance(value, list):
        value = [one for one in map(to, value) if one is not None] if all(type(one) is int for one in value) else None
    elif isinstance(value, dict) and type(value.get("of")) is int:
        of = to(value["of"])
        value = None if of is None else {**value, "of": of}
    else:
        return text
    return None if value is None else json.dumps(value, separators=(",", ":"))
