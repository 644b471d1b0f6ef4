"""Trials that come from elsewhere: into a study of ours, hundreds in one commit."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import StudyControl, StudyDefine, StudySet, TrialCreate, TrialState
from hopaas_p2p.core.state import REFUSALS, Verdict
from hopaas_p2p.errors import DefinitionMismatch, Denied, InvalidInput
from hopaas_p2p.export.files import Fetch, carry
from hopaas_p2p.export.portable import ORIGIN, PEERS, Portable, PortableTrial, with_ids

if TYPE_CHECKING:
    from hopaas_p2p.core.state import State
    from hopaas_p2p.storage import Storage

_RECORDS: Final = 500  # of one commit: other peers are not held up for longer than some 20 ms
_BYTES: Final = 1 << 20  # of one commit, a quarter of what the codec allows
_TAKES_A_PLACE: Final = (TrialState.COMPLETE, TrialState.PRUNED)


class Imported(NamedTuple):
    """What came of an import."""

    study: str
    trials: int
    warnings: list[str]
    files: int = 0


def bring_in(
    storage: Storage,
    portable: Portable,
    *,
    name: str | None,
    fetch: Fetch | None = None,
    known: Mapping[int, int] | None = None,
) -> Imported:
    """Add the trials to the study of that name, or of their own; it is created if it is not there.

    Args:
        storage: where to.
        portable: the study and its trials.
        name: of the study that they go to.
        fetch: where the files that they speak of are to be had; without it the files stay where they are.
        known: trials that came earlier: their number there -> their number here.

    Raises:
        InvalidInput: no name, a trial too large for a commit, or more finished trials than the budget has places.
            Nothing was imported.
        DefinitionMismatch: the study is there and has other directions. Nothing was imported.
        ConfigurationError: the store keeps no files. Nothing was imported.
        Denied: the store does not let this user write here.

    """
    name = name or portable.name
    if not name:
        raise InvalidInput("the study's name is not in this file; say which study")
    records = [_record(trial) for trial in portable.trials]
    for trial, record in zip(portable.trials, records, strict=True):
        size = _size(record)
        if size > codec.MAX_BYTES - 4096:
            raise InvalidInput(f"trial {trial.number} has {size:,} bytes; at most {codec.MAX_BYTES:,} fit a commit")
    artifacts = None if fetch is None else storage.courier.store.artifacts()
    fresh = name not in storage.study_names()
    study_id = _create(storage, portable, name) if fresh else storage.get_study_id_from_name(name)
    _check(storage.state(study_id), portable, records, name, fresh=fresh)
    arrival = _Arrival(storage, study_id, known or {})
    files = 0
    if fetch is not None and artifacts is not None:
        carried = carry(portable, fetch, artifacts, storage.part(study_id).membership.uuid)
        portable, files = carried.portable, carried.files
        arrival.warnings += carried.warnings
        records = [_record(trial) for trial in portable.trials]
    if fresh and portable.policy.budget is not None:
        arrival.say(StudyControl(budget=-1))  # it may have been moved below what is there; set at the end
    arrival.add(portable.trials, records)
    arrival.describe(portable)
    if fresh:
        arrival.say(StudyControl(portable.status, -1 if portable.budget is None else portable.budget))
    return Imported(name, arrival.count, arrival.warnings, files)


def _create(storage: Storage, portable: Portable, name: str) -> int:
    directions = portable.directions or ("minimize",)
    return storage.define_study(StudyDefine(name, directions, portable.policy, portable.space, portable.info))


def _check(state: State, portable: Portable, records: list[TrialCreate], name: str, *, fresh: bool) -> None:
    define = state.define
    assert define is not None
    if portable.directions is not None and define.directions != portable.directions:
        ours, theirs = ", ".join(define.directions), ", ".join(portable.directions)
        raise DefinitionMismatch(f"the study {name!r} has the directions {ours}; the import has {theirs}")
    finished = sum(record.state in _TAKES_A_PLACE for record in records)
    if not fresh and state.budget is not None and state.used() + finished > state.budget:
        raise InvalidInput(
            f"{finished} finished trials do not fit: the budget of {name!r} is {state.budget}, {state.used()} are used."
            f" Move it first: hopaas-p2p study resume {name} --budget {state.used() + finished}"
        )


def _record(trial: PortableTrial) -> TrialCreate:
    """The record that makes the trial here. One that was running has no owner here: it waits for one."""
    record, origin = trial.record, dict(trial.origin)
    if record.state is TrialState.RUNNING:
        origin["was"] = "RUNNING"
        record = msgspec.structs.replace(
            record, state=TrialState.WAITING, reports={}, values=None, start=None, end=None
        )
    if not origin:
        return record
    text = json.dumps(origin, ensure_ascii=False, separators=(",", ":"))
    return msgspec.structs.replace(record, system={**record.system, ORIGIN: text})


def _size(record: TrialCreate) -> int:
    return len(msgspec.msgpack.encode(record))


class _Arrival:
    """One import under way."""

    def __init__(self, storage: Storage, study_id: int, known: Mapping[int, int]) -> None:
        self._storage = storage
        self._study_id = study_id
        self._membership = storage.part(study_id).membership
        self._numbers = dict(known)
        self.count = 0
        self.warnings: list[str] = []

    def say(self, record: StudyControl) -> None:
        self._storage.say(self._study_id, record)

    def add(self, trials: list[PortableTrial], records: list[TrialCreate]) -> None:
        for batch in _batches(list(zip(trials, records, strict=True))):
            known = self._membership.replica.state.dists
            lean = [
                msgspec.structs.replace(record, dists={k: d for k, d in record.dists.items() if known.get(k) != d})
                for _, record in batch
            ]
            verdicts = self._storage.courier.commit(self._membership, *lean)
            for (trial, _), verdict in zip(batch, verdicts, strict=True):
                self._note(trial, verdict)

    def _note(self, trial: PortableTrial, verdict: Verdict) -> None:
        if verdict.refusal == "role":
            raise Denied
        if not verdict.accepted or verdict.number is None:
            why = REFUSALS.get(verdict.refusal or "", verdict.refusal)
            self.warnings.append(f"trial {trial.number} was not imported: {why}")
            return
        self._numbers[trial.number] = verdict.number
        self.count += 1

    def describe(self, portable: Portable) -> None:
        """Bring the study's attributes; those that name a trial name it as it is called here."""
        ids = {old: (self._study_id << 32) + new for old, new in self._numbers.items()}
        system = with_ids(portable.system, ids, self._numbers)
        if portable.peers:
            there: dict[str, dict[str, str]] = {}
            with contextlib.suppress(ValueError):
                there = json.loads(self._membership.replica.state.system.get(PEERS, "{}"))
            system[PEERS] = json.dumps(there | portable.peers, ensure_ascii=False, separators=(",", ":"))
        for key, text in portable.user.items():
            self._storage.courier.commit(self._membership, StudySet(user={key: text}))
        for part in _parts(system):
            self._storage.courier.commit(self._membership, StudySet(system=part))


def _batches(
    pairs: list[tuple[PortableTrial, TrialCreate]],
) -> Iterator[list[tuple[PortableTrial, TrialCreate]]]:
    batch: list[tuple[PortableTrial, TrialCreate]] = []
    weight = 0
    for pair in pairs:
        size = _size(pair[1])
        if batch and (len(batch) >= _RECORDS or weight + size > _BYTES):
            yield batch
            batch, weight = [], 0
        batch.append(pair)
        weight += size
    if batch:
        yield batch


def _parts(attributes: dict[str, str]) -> Iterator[dict[str, str]]:
    """The attributes in parts that fit a commit."""
    part: dict[str, str] = {}
    for key, text in attributes.items():
        if part and sum(map(len, part.values())) + len(text) > _BYTES // 4:
            yield part
            part = {}
        part[key] = text
    if part:
        yield part
