"""To and from Optuna's own storages: a database URL, or the path of a journal file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from hopaas_p2p.atomic import replace_atomically
from hopaas_p2p.core.attributes import OF_EXPORTS, ORIGIN
from hopaas_p2p.core.records import TrialCreate, TrialState
from hopaas_p2p.errors import InvalidInput, NoSuchStudy, StoreUnreachable, StudyExists
from hopaas_p2p.export import jsonl
from hopaas_p2p.export.portable import Portable, PortableTrial, json_or_text, with_ids, with_numbers
from hopaas_p2p.ownership import check_target
from hopaas_p2p.stores.url import redacted
from hopaas_p2p.translate import external, to_json, to_microseconds, to_optuna, to_record

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_DEFINITION, _REASON, _METRICS = OF_EXPORTS
"""System attributes in Optuna's storage, for what it has no place for: of a study, parts of our header; of a trial."""
_NEVER_BEGAN: Final = "never_began"
"""In the origin of a finished trial without a start, which Optuna requires: it was withdrawn while WAITING."""


@contextlib.contextmanager
def _opened(url: str, *, create: bool) -> Iterator[BaseStorage]:
    """Optuna's storage at a database URL, or in a journal file. A new file is there whole, or not at all."""
    scheme, _, rest = url.rpartition("://")
    file = rest.removeprefix("/") if scheme == "sqlite" else "" if scheme else url
    if file and not create and not Path(file).is_file():
        raise InvalidInput(f"there is no file {file}")
    with contextlib.ExitStack() as stack:
        if file and create and os.path.lexists(file):
            try:
                check_target(Path(file))
            except OSError as error:
                raise InvalidInput(f"{error}. Remove it, or name another file") from None
        elif file and create:
            url = f"{url.removesuffix(file)}{stack.enter_context(replace_atomically(Path(file)))}"
        yield stack.enter_context(_storage(url, create=create))


@contextlib.contextmanager
def _storage(url: str, *, create: bool) -> Iterator[BaseStorage]:
    from sqlalchemy.exc import SQLAlchemyError

    scheme, _, rest = url.rpartition("://")
    if not scheme:
        yield optuna.storages.JournalStorage(JournalFileBackend(url))
        return
    driver = "postgresql+psycopg2" if scheme in ("postgresql", "postgres") else scheme
    try:
        storage = optuna.storages.RDBStorage(f"{driver}://{rest}", skip_table_creation=not create)
        try:
            yield storage
        finally:
            storage.engine.dispose()
    except SQLAlchemyError as error:
        raise StoreUnreachable(f"{redacted(url)}: {str(error).splitlines()[0]}") from None
    except ImportError as error:
        raise InvalidInput(f"{redacted(url)}: its driver is not installed: {error}") from None


def dump_optuna(portable: Portable, url: str) -> None:
    """Write the study into Optuna's storage, under the same name.

    Raises:
        StudyExists: there is one already.
        StoreUnreachable: the database does not answer.

    """
    with _opened(url, create=True) as storage:
        try:
            directions = [StudyDirection[one.upper()] for one in portable.directions or ()]
            study_id = storage.create_new_study(directions, portable.name)
        except DuplicatedStudyError:
            raise StudyExists(f"{redacted(url)} already has a study {portable.name!r}") from None
        ids = {
            trial.number: storage.create_new_trial(study_id, template_trial=_frozen(trial)) for trial in portable.trials
        }
        numbers = {old: new for new, old in enumerate(sorted(ids))}
        for key, text in portable.user.items():
            storage.set_study_user_attr(study_id, key, json_or_text(text))
        for key, text in with_ids(portable.system, ids, numbers).items():
            storage.set_study_system_attr(study_id, key, json_or_text(text))
        head = jsonl.header(portable._replace(user={}, system={}))
        storage.set_study_system_attr(study_id, _DEFINITION, head)


def _frozen(trial: PortableTrial) -> FrozenTrial:
    """The trial as Optuna's; what Optuna has no field for goes into system attributes."""
    from hopaas_p2p.storage.frozen import to_datetime

    record = trial.record
    dists = {name: to_optuna(one) for name, one in record.dists.items()}
    system = {key: json_or_text(text) for key, text in record.system.items()}
    origin = trial.origin | ({_NEVER_BEGAN: True} if record.start is None and record.end is not None else {})
    if origin:
        system[ORIGIN] = origin
    if record.metrics:
        system[_METRICS] = {name: list(values.items()) for name, values in record.metrics.items()}
    if record.reason is not None:
        system[_REASON] = record.reason
    return FrozenTrial(
        number=trial.number,
        trial_id=-1,
        state=OptunaState(record.state.value),
        value=None,
        values=record.values,
        datetime_start=to_datetime(record.end if record.start is None else record.start),
        datetime_complete=to_datetime(record.end),
        params={name: external(dists[name], value) for name, value in record.params.items()},
        distributions=dists,
        user_attrs={key: json_or_text(text) for key, text in record.user.items()},
        system_attrs=system,
        intermediate_values=dict(record.reports),
    )


def load_optuna(url: str, *, name: str | None) -> Portable:
    """The study of that name in Optuna's storage; without a name, the only one.

    Raises:
        NoSuchStudy: it does not exist, or there are several and none was named.
        InvalidInput: no such file, or a parameter that the log cannot hold.
        StoreUnreachable: the database does not answer.

    """
    with _opened(url, create=False) as storage:
        names = [one.study_name for one in storage.get_all_studies()]
        if name is None and len(names) != 1:
            there = ", ".join(names[:20]) or "none"
            raise NoSuchStudy(f"{redacted(url)} holds {len(names)} studies; choose one: {there}")
        chosen = names[0] if name is None else name
        if chosen not in names:
            there = ", ".join(names[:20]) or "none"
            raise NoSuchStudy(f"{redacted(url)} has no study {chosen!r}; it has: {there}")
        return _portable(storage, storage.get_study_id_from_name(chosen), chosen)


def _portable(storage: BaseStorage, study_id: int, name: str) -> Portable:
    from hopaas_p2p.storage.optuna_internals import trial_id_of

    frozen = storage.get_all_trials(study_id, deepcopy=False)
    system = dict(storage.get_study_system_attrs(study_id))
    head = system.pop(_DEFINITION, {})
    user = storage.get_study_user_attrs(study_id)
    numbers = {str(trial_id_of(trial)): trial.number for trial in frozen}
    trials = [_trial(one) for one in frozen]
    read = jsonl.read_header(head if isinstance(head, dict) else {}, trials)
    return read._replace(
        name=name,
        directions=tuple([one.name.lower() for one in storage.get_study_directions(study_id)]),
        user={key: to_json(key, value) for key, value in user.items()},
        system=with_numbers({key: to_json(key, value) for key, value in system.items()}, numbers),
    )


def _trial(frozen: FrozenTrial) -> PortableTrial:
    system = dict(frozen.system_attrs)
    found = system.pop(ORIGIN, {})
    origin: dict[str, Any] = found if isinstance(found, dict) else {}
    never_began = origin.pop(_NEVER_BEGAN, False)
    reason = system.pop(_REASON, None)
    metrics = system.pop(_METRICS, {})
    values = frozen.values
    try:
        record = TrialCreate(
            state=TrialState(frozen.state.value),
            params={
                name: float(frozen.distributions[name].to_internal_repr(value)) for name, value in frozen.params.items()
            },
            dists={name: to_record(one) for name, one in frozen.distributions.items()},
            reports=dict(frozen.intermediate_values),
            user={key: to_json(key, value) for key, value in frozen.user_attrs.items()},
            system={key: to_json(key, value) for key, value in system.items()},
            values=None if values is None else tuple(values),
            reason=reason,
            start=None if never_began else to_microseconds(frozen.datetime_start),
            end=to_microseconds(frozen.datetime_complete),
            metrics={
                name: {int(step): float(value) for step, value in values} for name, values in dict(metrics).items()
            },
        )
    except InvalidInput as error:
        raise InvalidInput(f"trial {frozen.number}: {error}") from None
    return PortableTrial(frozen.number, record, origin)
