"""Adds imported trials to a study, hundreds per commit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from hopaas_p2p.artifacts import artifacts_of
from hopaas_p2p.core import codec
from hopaas_p2p.core.attributes import FIDELITY, ORIGIN, PEERS
from hopaas_p2p.core.fidelity import decode_fidelity
from hopaas_p2p.core.names import first_id
from hopaas_p2p.core.populations import Population
from hopaas_p2p.core.records import StudyControl, StudyDefine, StudySet, TrialCreate, TrialState
from hopaas_p2p.core.state import REFUSALS, Verdict
from hopaas_p2p.errors import DefinitionMismatch, Denied, InvalidInput, StudyExists
from hopaas_p2p.export.files import Fetch, copy_files
from hopaas_p2p.export.portable import Portable, PortableTrial, with_ids, with_links

if TYPE_CHECKING:
    from hopaas_p2p.core.state import State
    from hopaas_p2p.storage import Storage

T = TypeVar("T")
_RECORDS: Final = 500  # per commit, so that other peers wait for some 20 ms at most
_BYTES: Final = 1 << 20  # per commit, a quarter of what the codec allows
_TAKES_A_PLACE: Final = (TrialState.COMPLETE, TrialState.PRUNED)


class Imported(NamedTuple):
    """The result of an import."""

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
    begins: bool = False,
    there: Callable[[], Mapping[int, int]] = dict,
) -> Imported:
    """Add the trials to the study of that name, or of their own; it is created if it is not there.

    Args:
        storage: where to.
        portable: the study and its trials.
        name: of the target study.
        fetch: fetches the files that the trials name; without it the files are not copied.
        begins: whether the study must not be there yet.
        there: finds the trials that are here already, which are not added: number there -> number here. Called last of
            all, because the same command may be running elsewhere.

    Raises:
        StudyExists: it should not be there, and is.
        InvalidInput: no name, a trial too large for a commit, or more finished trials than the budget has places.
            Nothing was imported.
        DefinitionMismatch: the study is there and has other directions. Nothing was imported.
        ConfigurationError: the store keeps no files. Nothing was imported.
        Denied: the store does not let this user write here.

    """
    name = name or portable.name
    if not name:
        raise InvalidInput("this file does not name its study; give a name")
    records = [_record(trial) for trial in portable.trials]
    for trial, record in zip(portable.trials, records, strict=True):
        size = _size(record)
        if size > codec.MAX_BYTES - 4096:
            raise InvalidInput(f"trial {trial.number} has {size:,} bytes; at most {codec.MAX_BYTES:,} fit a commit")
    artifacts = None if fetch is None else artifacts_of(storage.peer.store)
    fresh = begins or name not in storage.study_names()
    study_id = _create(storage, portable, name) if fresh else storage.get_study_id_from_name(name)
    _check(storage.state(study_id), portable, records, name, fresh=fresh)
    arrival = _Arrival(storage, study_id, fresh=fresh)
    arrival.warnings += _without_pauses(portable, name)
    files = 0
    if fetch is not None and artifacts is not None:
        copied = copy_files(portable, fetch, artifacts, storage.handle(study_id).uuid)
        portable, files = copied.portable, copied.files
        arrival.warnings += copied.warnings
        records = [_record(trial) for trial in portable.trials]
    arrival.add(portable.trials, records, there())
    arrival.describe(portable)
    if fresh:
        arrival.say(StudyControl(portable.status, -1 if portable.budget is None else portable.budget))
    return Imported(name, arrival.count, arrival.warnings, files)


def _create(storage: Storage, portable: Portable, name: str) -> int:
    """The study, with a budget that has a place for each trial: if the import is interrupted, it is the study's."""
    from optuna.exceptions import DuplicatedStudyError

    directions = portable.directions or ("minimize",)
    finished = sum(trial.record.state in _TAKES_A_PLACE for trial in portable.trials)
    budget = None if portable.budget is None else max(portable.budget, finished)
    policy = msgspec.structs.replace(portable.policy, budget=budget)
    try:
        return storage.define_study(StudyDefine(name, directions, policy, portable.space, portable.info))
    except DuplicatedStudyError:
        raise StudyExists(
            f"the study {name!r} has just been created by someone else, perhaps by the same command; let that one end, "
            "and repeat this one"
        ) from None


def _check(state: State, portable: Portable, records: list[TrialCreate], name: str, *, fresh: bool) -> None:
    define = state.define
    assert define is not None
    if portable.directions is not None and define.directions != portable.directions:
        ours, theirs = ", ".join(define.directions), ", ".join(portable.directions)
        raise DefinitionMismatch(f"the study {name!r} has the directions {ours}; the import has {theirs}")
    finished = sum(record.state in _TAKES_A_PLACE for record in records)
    if not fresh and state.budget is not None and state.used() + finished > state.budget:
        raise InvalidInput(
            f"{finished} finished trials do not fit: the budget of {name!r} is {state.budget}, {state.used()} are "
            f"used. Raise it first: hopaas-p2p study resume {name} --budget {state.used() + finished}"
        )


def _without_pauses(portable: Portable, name: str) -> list[str]:
    """Say what does not continue here, because no record of an import says that a trial pauses."""
    if all(trial.record.state is TrialState.COMPLETE for trial in portable.trials):
        return []
    fidelity = decode_fidelity(portable.system.get(FIDELITY, "null"))
    if isinstance(fidelity, Population):
        return [f"the population does not continue in {name!r}: a copy has no pauses; each trial counts as a member"]
    if fidelity is not None:
        return [f"trials that paused at a rung are not continued in {name!r}: a copy has no pauses"]
    return []


def _record(trial: PortableTrial) -> TrialCreate:
    """The record that creates the trial here. One that was running has no owner here, and becomes WAITING."""
    record, origin = trial.record, dict(trial.origin)
    if record.state is TrialState.RUNNING:
        origin["was"] = "RUNNING"
        record = msgspec.structs.replace(
            record, state=TrialState.WAITING, reports={}, metrics={}, values=None, start=None, end=None
        )
    if not origin:
        return record
    text = json.dumps(origin, ensure_ascii=False, separators=(",", ":"))
    return msgspec.structs.replace(record, system={**record.system, ORIGIN: text})


def _size(record: TrialCreate) -> int:
    return len(msgspec.msgpack.encode(record))


class _Arrival:
    """One import in progress."""

    def __init__(self, storage: Storage, study_id: int, *, fresh: bool) -> None:
        self._storage = storage
        self._study_id = study_id
        self._log = storage.handle(study_id).log
        self._numbers: dict[int, int] = {}
        self._fresh = fresh
        """Whether nobody else adds trials."""
        self.count = 0
        self.warnings: list[str] = []

    def say(self, record: StudyControl) -> None:
        self._storage.say(self._study_id, record)

    def add(self, trials: list[PortableTrial], records: list[TrialCreate], there: Mapping[int, int]) -> None:
        self._numbers |= there
        new = [pair for pair in zip(trials, records, strict=True) if pair[0].number not in there]
        for batch in _batches(new, lambda pair: _size(pair[1]), bytes_=_BYTES):
            known, expected = self._log.state.dists, dict(self._numbers)
            if self._fresh:
                first = len(self._log.state.trials)
                expected |= {trial.number: first + place for place, (trial, _) in enumerate(batch)}
            lean = [
                msgspec.structs.replace(
                    record,
                    dists={k: d for k, d in record.dists.items() if known.get(k) != d},
                    system=with_links(record.system, expected.get),
                )
                for _, record in batch
            ]
            verdicts = self._storage.peer.commit(self._log, *lean)
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
        """Add the study's attributes, with the trials' new numbers and ids in those that name a trial."""
        ids = {old: first_id(self._study_id) + new for old, new in self._numbers.items()}
        system = with_ids(portable.system, ids, self._numbers)
        if portable.peers:
            there: dict[str, dict[str, str]] = json.loads(self._log.state.system.get(PEERS, "{}"))
            system[PEERS] = json.dumps(there | portable.peers, ensure_ascii=False, separators=(",", ":"))
        said = [StudySet(user={key: text}) for key, text in portable.user.items()]
        batches = _batches(system.items(), lambda item: len(item[1]), bytes_=_BYTES // 4)
        for record in said + [StudySet(system=dict(batch)) for batch in batches]:
            (verdict,) = self._storage.peer.commit(self._log, record)
            if not verdict.accepted:
                names, why = ", ".join(record.user | record.system), REFUSALS.get(verdict.refusal or "", "refused")
                self.warnings.append(f"attributes of the study were not imported ({names}): {why}")


def _batches(items: Iterable[T], size: Callable[[T], int], *, bytes_: int) -> Iterator[list[T]]:
    """The items in lists that fit one commit each."""
    batch: list[T] = []
    weight = 0
    for item in items:
        if batch and (len(batch) >= _RECORDS or weight + size(item) > bytes_):
            yield batch
            batch, weight = [], 0
        batch.append(item)
        weight += size(item)
    if batch:
        yield batch
