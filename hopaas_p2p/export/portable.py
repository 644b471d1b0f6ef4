"""A study without the ids of its store: every format is written from this, and every import gives it.

A trial is the `TrialCreate` that would create it again. What such a record cannot hold (the peer that ran it, earlier
owners, the trial it retried) is its *origin*, which an import keeps in the system attribute `hopaas:origin`, so that a
second export gives the same file as the first. Attributes that name a trial by its id in the store (optuna-dashboard's
notes) name it by its number here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from hopaas_p2p.core.attributes import AGAIN, CONTINUES, COPIES, ORIGIN, PEERS, REPLICATE, REUSED
from hopaas_p2p.core.names import first_id
from hopaas_p2p.core.records import Distribution, Policy, TrialCreate, TrialState

if TYPE_CHECKING:
    from hopaas_p2p.core.state import State, Trial
    from hopaas_p2p.study import Study

_BY_ID: Final = re.compile(r"(dashboard:(?:artifacts:)?)([0-9]{1,20}):(.*)", re.DOTALL)
_BY_NUMBER: Final = re.compile(r"(dashboard:(?:artifacts:)?)#([0-9]{1,20}):(.*)", re.DOTALL)
_LINKS: Final = (CONTINUES, COPIES, REUSED, AGAIN, REPLICATE, "late_of", "failed_trial", "retry_history")
"""System attributes of a trial that name other trials."""
_TAGS: Final = re.compile(r"hopaas:([0-9]{1,20}):(tags|tag:.*)", re.DOTALL)


class PortableTrial(NamedTuple):
    """One trial. Its record names the distribution of every parameter."""

    number: int
    record: TrialCreate
    origin: dict[str, Any]


class Portable(NamedTuple):
    """A study and its trials, by number. Attributes are JSON texts, as in the log."""

    name: str | None
    directions: tuple[str, ...] | None
    """None if the format does not say."""
    trials: list[PortableTrial]
    policy: Policy = Policy()
    space: dict[str, Distribution] = {}
    info: dict[str, str] = {}
    status: str = "running"
    budget: int | None = None
    """Counted in trials: where trials pause, each that was continued needs a place more than in the study itself."""
    user: dict[str, str] = {}
    system: dict[str, str] = {}
    peers: dict[str, dict[str, str]] = {}


def of_study(study: Study) -> Portable:
    """The study as it is now."""
    part = study.storage.handle(study.study_id)
    state = study.state
    with part.lock:
        return of_state(study.name, state, study.study_id)


def of_state(name: str, state: State, study_id: int) -> Portable:
    """The study of this State. Hold its lock: nothing may be applied meanwhile."""
    define = state.define
    assert define is not None
    system = dict(state.system)
    peers: dict[str, dict[str, str]] = json.loads(system.pop(PEERS, "{}"))
    owners = {trial.owner for trial in state.trials} | {one.owner for trial in state.trials for one in trial.history}
    peers |= {uuid: info for uuid, info in state.peers.items() if uuid in owners}
    numbers = {str(first_id(study_id) + trial.number): trial.number for trial in state.trials}
    return Portable(
        name=name,
        directions=define.directions,
        trials=[of_trial(trial, state) for trial in state.trials],
        policy=msgspec.structs.replace(define.policy, limits=state.ledger.limits),
        space=define.space,
        info=define.info,
        status=state.status,
        budget=None if state.budget is None else state.budget + _continued(state),
        user=dict(state.user),
        system=with_numbers(system, numbers),
        peers=peers,
    )


def _continued(state: State) -> int:
    """How many of the trials that take a place take none in this study, which counts configurations."""
    taking = [trial.number for trial in state.trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    return len(taking) - len({state.configurations.root(number) for number in taking})


def of_trial(trial: Trial, state: State) -> PortableTrial:
    """One trial of this State. Hold its lock."""
    system = dict(trial.system)
    carried = system.pop(ORIGIN, None)
    record = TrialCreate(
        state=trial.state,
        params=dict(trial.params),
        dists={name: trial.distribution(name, state) for name in trial.params},
        reports=dict(trial.reports),
        user=dict(trial.user),
        system=system,
        values=trial.values,
        reason=trial.reason,
        start=trial.start,
        end=trial.end,
        metrics={name: dict(values) for name, values in trial.metrics.items()},
    )
    return PortableTrial(trial.number, record, _origin(trial) if carried is None else json.loads(carried))


def _origin(trial: Trial) -> dict[str, Any]:
    facts = {
        "owner": trial.owner,
        "epoch": trial.epoch,
        "attempt": trial.attempt if trial.attempt > 1 else None,
        "retry_of": trial.retry_of,
        "retried_by": trial.retried_by,
        "late_of": trial.late_of,
        "history": msgspec.to_builtins(trial.history),
    }
    return {name: fact for name, fact in facts.items() if fact}


def with_numbers(system: Mapping[str, str], numbers: Mapping[str, int]) -> dict[str, str]:
    """A study's attributes, with trials named by number instead of by id."""

    def renamed(key: str) -> str:
        match = _BY_ID.fullmatch(key)
        if match is None or match[2] not in numbers:
            return key
        return f"{match[1]}#{numbers[match[2]]}:{match[3]}"

    return {renamed(key): text for key, text in system.items()}


def with_ids(system: Mapping[str, str], ids: Mapping[int, int], numbers: Mapping[int, int]) -> dict[str, str]:
    """The reverse, after an import: `ids` and `numbers` map each number to the new id and number."""

    def renamed(key: str) -> str:
        match = _BY_NUMBER.fullmatch(key)
        if match is not None and int(match[2]) in ids:
            return f"{match[1]}{ids[int(match[2])]}:{match[3]}"
        match = _TAGS.fullmatch(key)
        if match is not None and int(match[1]) in numbers:
            return f"hopaas:{numbers[int(match[1])]}:{match[2]}"
        return key

    return {renamed(key): text for key, text in system.items()}


def with_links(system: Mapping[str, str], to: Callable[[int], int | None]) -> dict[str, str]:
    """A trial's attributes with the new numbers of the trials that they name; without those whose trials are not there.

    Args:
        system: the attributes.
        to: the new number of a trial, or None.

    """
    found = {key: _link(text, to) if key in _LINKS else text for key, text in system.items()}
    return {key: text for key, text in found.items() if text is not None}


def _link(text: str, to: Callable[[int], int | None]) -> str | None:
    value = json_or_text(text)
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


def externals(record: TrialCreate) -> Iterator[tuple[str, Any]]:
    """The parameters' names and values, as the objective saw them."""
    from hopaas_p2p.translate import external, to_optuna

    for name, value in record.params.items():
        yield name, external(to_optuna(record.dists[name]), value)


def json_or_text(text: str) -> Any:
    """The value of JSON text; text that is not JSON stays as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
