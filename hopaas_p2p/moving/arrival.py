"""Adds the trials of one study to another, hundreds per commit, and merges the source's attributes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.core.attributes import EXPORTER, FIDELITY
from hopaas_p2p.core.fidelity import decode_fidelity
from hopaas_p2p.core.names import first_id
from hopaas_p2p.core.records import StudyControl, StudySet, TrialCreate, TrialState
from hopaas_p2p.core.state import REFUSALS, TAKES_A_PLACE, State, definition_of
from hopaas_p2p.core.validity import widened_distributions
from hopaas_p2p.errors import DefinitionMismatch, Denied, InvalidInput, StudyExists
from hopaas_p2p.files.artifacts import artifacts_of, json_or_none
from hopaas_p2p.moving.files import Fetch, copy_files, named_files
from hopaas_p2p.moving.records import ORIGINAL, StudyRecords, linked, origin, renamed
from hopaas_p2p.open import store_option
from hopaas_p2p.spec.space import spec

if TYPE_CHECKING:
    from hopaas_p2p.core.state import Trial
    from hopaas_p2p.storage import Storage

T = TypeVar("T")
_RECORDS: Final = 500  # per commit, so that other peers wait for some 20 ms at most
_BYTES: Final = 1 << 20  # per commit, a quarter of the codec's limit


class Arrived(NamedTuple):
    """The result of a copy or an import."""

    study: str
    trials: int
    already_there: int
    files: int
    warnings: list[str]


def bring_in(
    storage: Storage, source: StudyRecords, *, name: str = "", fetch: Fetch | None = None, begins: bool = False
) -> Arrived:
    """Add the trials to the study of that name (by default the source's), which is created if it does not exist.

    A trial of this source that is already there is not added again. A running trial becomes WAITING.

    Args:
        storage: the target.
        source: the study and its trials.
        name: the name of the target study.
        fetch: fetches the files that the trials name; without it the files are not copied.
        begins: whether the study must not exist yet.

    Raises:
        StudyExists: the study must not exist yet, but does.
        InvalidInput: no name, a trial too large for a commit, or more finished trials than the budget allows.
            Nothing was imported.
        DefinitionMismatch: the study exists and has other directions. Nothing was imported.
        ConfigurationError: the store keeps no files. Nothing was imported.
        Denied: the store does not let this user write here.

    """
    name = name or source.define.name
    if not name:
        raise InvalidInput("this file does not name its study; give a name")
    fresh = begins or name not in storage.study_names()
    whole = source
    known = {} if fresh else already_there(storage, name, whole)
    new = {number: _waiting(one) for number, one in source.trials.items() if number not in known}
    source = source._replace(trials=new)
    finished = sum(record.state in TAKES_A_PLACE for record in new.values())
    for number, record in new.items():
        try:
            size = _size(record)
        except (OverflowError, ValueError) as error:  # a number of 70 bits, half a surrogate pair
            raise InvalidInput(f"trial {number} cannot be written to a log: {error}") from None
        if size > codec.MAX_BYTES - 4096:
            raise InvalidInput(f"trial {number} has {size:,} bytes; at most {codec.MAX_BYTES:,} fit a commit")
    artifacts = artifacts_of(storage.peer.store) if fetch is not None and named_files(source) else None
    study_id = _create(storage, source, name, finished) if fresh else storage.get_study_id_from_name(name)
    if not fresh:
        _check_fit(storage, study_id, source, name, finished)
    warnings, files = list(_outside(storage.state(study_id), source)), 0
    if any(record.state is not TrialState.COMPLETE for record in source.trials.values()) and (
        decode_fidelity(source.settings.system.get(FIDELITY, "null")) is not None
    ):
        warnings.append(
            f"trials that paused at a rung or in a population are not continued in {name!r}: a copy has no pauses"
        )
    if fetch is not None and artifacts is not None:
        source, files, failed = copy_files(source, fetch, artifacts, storage.handle(study_id).uuid)
        warnings += failed
        if not fresh:  # the same command may have run elsewhere meanwhile
            known = already_there(storage, name, whole)

    numbers, refused = _add(storage, study_id, source, known, fresh=fresh)
    warnings += refused
    warnings += _describe(storage, study_id, source, numbers)
    if fresh:
        storage.handle(study_id).say(source.control)
    return Arrived(name, len(numbers) - len(known), len(known), files, warnings)


def _add(
    storage: Storage, study_id: int, source: StudyRecords, known: dict[int, int], *, fresh: bool
) -> tuple[dict[int, int], list[str]]:
    """Add the trials that are not there yet. Returns the number of each one here, and which were refused."""
    log, numbers, warnings = storage.handle(study_id).log, dict(known), []
    new = [(number, record) for number, record in source.trials.items() if number not in known]
    for batch in _batches(new, lambda pair: _size(pair[1])):
        dists, expected = log.state.dists, dict(numbers)
        if fresh:  # no other peer adds trials
            expected |= {number: len(log.state.trials) + place for place, (number, _) in enumerate(batch)}
        lean = [
            msgspec.structs.replace(
                record,
                dists={name: one for name, one in record.dists.items() if dists.get(name) != one},
                system=linked(record.system, expected.get),
            )
            for _, record in batch
        ]
        for (number, _), verdict in zip(batch, storage.peer.commit(log, *lean), strict=True):
            if verdict.refusal == "role":
                raise Denied
            if not verdict.accepted or verdict.number is None:
                warnings.append(f"trial {number} was not imported: {_why(verdict.refusal)}")
            else:
                numbers[number] = verdict.number
    return numbers, warnings


def already_there(storage: Storage, name: str, source: StudyRecords) -> dict[int, int]:
    """Number in the source -> number of the same trial in the study of this name, which may have run it itself."""
    study_id = storage.get_study_id_from_name(name)
    trials, uuid = storage.state(study_id).trials, storage.handle(study_id).uuid
    there = {_key(trial, uuid, trial.number): trial.number for trial in trials}
    there |= {f"{uuid}:{number}": number for number in range(len(trials))}  # also if it came as a waiting trial
    keys = {number: _key(record, "", number) for number, record in source.trials.items()}
    return {number: there[key] for number, key in keys.items() if key in there}


def _key(trial: Trial | TrialCreate, uuid: str, number: int) -> str:
    """The trial's origin, which by default is the trial of this number in the study of this uuid."""
    found = origin(trial)
    return f"{found.get('study', uuid)}:{found.get('trial', number)}"


def _create(storage: Storage, source: StudyRecords, name: str, finished: int) -> int:
    """The study, with a budget that has room for all trials; an interrupted import leaves this budget."""
    from optuna.exceptions import DuplicatedStudyError

    budget = source.control.budget
    if budget is not None:
        budget = None if budget < 0 else max(budget, finished)
    policy = msgspec.structs.replace(source.define.policy, budget=budget)
    try:
        study_id = storage.define_study(msgspec.structs.replace(source.define, name=name, policy=policy))
    except DuplicatedStudyError:
        raise StudyExists(
            f"the study {name!r} has just been created by another process, perhaps by the same command; wait until "
            "that process has ended, and try again"
        ) from None
    storage.handle(study_id).say(StudyControl(source.control.status))  # at once, lest an interrupted import omits it
    return study_id


def _check_fit(storage: Storage, study_id: int, source: StudyRecords, name: str, finished: int) -> None:
    state = storage.state(study_id)
    directions = definition_of(state, name).directions
    if directions != source.define.directions:
        ours, theirs = ", ".join(directions), ", ".join(source.define.directions)
        raise DefinitionMismatch(f"the study {name!r} has the directions {ours}; the import has {theirs}")
    if finished and state.budget is not None and state.used() + finished > state.budget:
        raise InvalidInput(
            f"the finished trials ({finished}) do not fit: the budget of {name!r} is {state.budget}, with "
            f"{state.used()} used; run: hopaas-p2p study set {shlex.quote(name)} --budget {state.used() + finished}"
            f"{store_option(storage.url)}"
        )


def _outside(state: State, source: StudyRecords) -> Iterator[str]:
    """A warning about each parameter with values outside the study's search space."""
    for name, one in state.define.space.items() if state.define is not None else ():
        values = [record.params[name] for record in source.trials.values() if name in record.params]
        outside = sum(bool(widened_distributions({name: value}, {}, {name: one})) for value in values)
        if outside:  # values too far outside are refused later
            yield f"values of {name!r} outside the search space, {spec(one)}: {outside} of {len(values)}"


def _describe(storage: Storage, study_id: int, source: StudyRecords, numbers: dict[int, int]) -> Iterator[str]:
    """Add the study's attributes; yields a warning about those that were refused. An original keeps its own."""
    first, handle = first_id(study_id), storage.handle(study_id)
    state = handle.state if source.define.info.get(ORIGINAL) == handle.uuid else State()
    system = renamed(source.settings.system, {old: first + new for old, new in numbers.items()}.get, numbers.get)
    system = {key: text for key, text in system.items() if key not in state.system and not _names_exporter(key, text)}
    said = [StudySet(user={key: text}) for key, text in source.settings.user.items() if key not in state.user]
    said += [StudySet(system={key: text}) for key, text in system.items()]
    for batch in _batches(said, _size):
        for record, verdict in zip(batch, storage.peer.commit(handle.log, *batch), strict=True):
            if not verdict.accepted:
                (name,) = record.user | record.system
                yield f"the study's attribute {name!r} was not imported: {_why(verdict.refusal)}"


def _names_exporter(key: str, text: str) -> bool:
    """Whether this attribute names the peer that exports the source to a tracker; no peer exports the copy yet."""
    said = json_or_none(text) if key.startswith(EXPORTER) else None
    return isinstance(said, dict) and said.get("peer") is not None


def _why(refusal: str | None) -> str:
    return REFUSALS.get(refusal or "", refusal or "refused")


def _waiting(record: TrialCreate) -> TrialCreate:
    """A trial that was running has no owner here, so it waits."""
    if record.state is not TrialState.RUNNING:
        return record
    return msgspec.structs.replace(
        record, state=TrialState.WAITING, reports={}, metrics={}, values=None, start=None, end=None
    )


def _size(record: TrialCreate | StudySet) -> int:
    return len(msgspec.msgpack.encode(record))


def _batches(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """The items in lists that fit one commit each."""
    batch: list[T] = []
    weight = 0
    for item in items:
        if batch and (len(batch) >= _RECORDS or weight + size(item) > _BYTES):
            yield batch
            batch, weight = [], 0
        batch.append(item)
        weight += size(item)
    if batch:
        yield batch
