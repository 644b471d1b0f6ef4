"""Moves studies to and from Optuna's own storages, at a database URL or the path of a journal file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from hopaas_p2p.analysis.facts import params_of
from hopaas_p2p.core.attributes import COPIED, OF_EXPORTS
from hopaas_p2p.core.records import StudyControl, StudyDefine, StudySet, TrialCreate
from hopaas_p2p.errors import HopaasError, InvalidInput, StoreUnreachable, StudyExists
from hopaas_p2p.moving.records import StudyRecords, one_of, renamed
from hopaas_p2p.open import redacted
from hopaas_p2p.runtime.arguments import shown
from hopaas_p2p.runtime.atomic import is_mostly_holes, replace_atomically, scratch
from hopaas_p2p.runtime.ownership import unmovable
from hopaas_p2p.translate import attributes, created, to_json, to_optuna

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

R = TypeVar("R", StudyDefine, StudySet, TrialCreate)

_COMPUTED: Final = """
SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND rootpage = 0
UNION SELECT m.name FROM sqlite_master m, pragma_table_xinfo(m.name) c WHERE m.type = 'table' AND c.hidden
LIMIT 1
"""
_STEPS: Final = 2_000_000
_STEPS_PER_BYTE: Final = 10
"""The most steps of SQLite's virtual machine to read a database. Optuna's databases need a fifth of a step per byte."""
_STEPS_AT_A_TIME: Final = 100_000
_LONGEST_VALUE: Final = 1_000_000  # enough for SQLite's own statements
_LONGEST_LINE: Final = 64 << 20
_DEFINITION, _REST = OF_EXPORTS
"""Attributes in Optuna's storage for data without a field there: a study's definition, and the rest of a trial."""


class _Rest(msgspec.Struct, omit_defaults=True):
    reason: str | None = None
    metrics: dict[str, list[tuple[int, float]]] = {}
    never_began: bool = False
    """Whether the trial was withdrawn while it waited. Optuna requires a start time for a finished trial."""


@contextlib.contextmanager
def _opened(url: str, *, create: bool) -> Iterator[BaseStorage]:
    """Optuna's storage at a database URL, or in a journal file. A new file is written whole, or not at all."""
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    scheme, _, rest = url.rpartition("://")
    is_sqlite = scheme.partition("+")[0] == "sqlite"
    file = rest.removeprefix("/") if is_sqlite else "" if scheme else url
    if file and not create and not Path(file).is_file():
        raise InvalidInput(f"there is no file {file}")
    try:
        with contextlib.ExitStack() as stack:
            if is_sqlite and not create:
                _check_tables(file)
            if file and create and os.path.lexists(file):
                try:
                    file = str(unmovable(Path(file)))
                    if is_mostly_holes(Path(file)):
                        raise OSError(f"{file} is far larger than its contents")
                except OSError as error:
                    raise InvalidInput(f"{error}. Remove it, or name another file") from None
                if not scheme:
                    _check_lines(Path(file))
            elif file and create:
                draft = stack.enter_context(replace_atomically(Path(file)))
                file = str(stack.enter_context(scratch()))  # SQLite would open the draft by its folder's name
                stack.push(lambda error, *_: bool(error is None and shutil.copyfile(file, draft)))
            rest = f"/{file}" if is_sqlite and file and create else rest
            if not scheme:
                yield optuna.storages.JournalStorage(JournalFileBackend(file))
                return
            driver = "postgresql+psycopg2" if scheme in ("postgresql", "postgres") else scheme
            connecting = {"connect_args": {"factory": _bounded} if is_sqlite and not create else {}}
            storage = optuna.storages.RDBStorage(f"{driver}://{rest}", connecting, skip_table_creation=not create)
            stack.callback(storage.engine.dispose)
            yield storage
    except (HopaasError, OSError):
        raise
    except ImportError as error:
        raise InvalidInput(f"{redacted(url)}: its driver is not installed: {error}") from None
    except Exception as error:  # whatever Optuna's storages raise on foreign data
        cause = error.__cause__ if isinstance(error, StorageInternalError) and not is_sqlite else error
        if isinstance(error, SQLAlchemyError) or isinstance(cause, OperationalError):
            raise StoreUnreachable(f"{redacted(url)}: {str(cause).splitlines()[0]}") from None
        what = f"{type(error).__name__}: {shown(str(error))}"
        raise InvalidInput(f"{redacted(url)} is damaged, or not written by Optuna ({what})") from error


def _check_lines(file: Path) -> None:
    """Raises ValueError if a journal's last line is incomplete, which Optuna would pass over."""
    with file.open("rb") as read:
        read.seek(max(0, file.stat().st_size - _LONGEST_LINE))
        *_, last, rest = [b"{}", *read.read().split(b"\n")]
    json.loads(b"" if rest else last)


def _bounded(file: str, *args: Any, **kwargs: Any) -> sqlite3.Connection:
    """A connection whose reading is limited by the file's size, because a damaged file's pages may form cycles."""
    size = Path(file).stat().st_size
    left = _STEPS + size * _STEPS_PER_BYTE

    def count() -> bool:
        nonlocal left
        left -= _STEPS_AT_A_TIME
        return left < 0

    connection = sqlite3.Connection(file, *args, **kwargs)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(size, _LONGEST_VALUE))
    connection.set_progress_handler(count, _STEPS_AT_A_TIME)
    return connection


def _check_tables(file: str) -> None:
    """Raises InvalidInput if a table of this database is a view or has computed columns, which may be endless."""
    try:
        with contextlib.closing(_bounded(file)) as connection:
            computed = connection.execute(_COMPUTED).fetchone()
    except sqlite3.Error as error:
        raise StoreUnreachable(f"{file}: {error}") from None
    if computed is not None:
        raise InvalidInput(f"{file}: {computed[0]!r} is not one of Optuna's tables, because its contents are computed")


def dump_optuna(source: StudyRecords, url: str) -> None:
    """Write the study into Optuna's storage, under the same name.

    Raises:
        StudyExists: Optuna's storage already has a study of that name.
        InvalidInput: an existing file is damaged, or the database's driver is not installed.
        StoreUnreachable: the database does not answer.

    """
    with _opened(url, create=True) as storage:
        try:
            directions = [StudyDirection[one.upper()] for one in source.define.directions]
            study_id = storage.create_new_study(directions, source.define.name)
        except DuplicatedStudyError:
            raise StudyExists(f"{redacted(url)} already has a study {source.define.name!r}") from None
        ids = {
            number: storage.create_new_trial(study_id, template_trial=_frozen(number, record))
            for number, record in source.trials.items()
        }
        for key, value in attributes(source.settings.user).items():
            storage.set_study_user_attr(study_id, key, value)
        for key, value in attributes(renamed(source.settings.system, ids.get, lambda number: number)).items():
            storage.set_study_system_attr(study_id, key, value)
        storage.set_study_system_attr(study_id, _DEFINITION, msgspec.to_builtins([source.define, source.control]))


def _frozen(number: int, record: TrialCreate) -> FrozenTrial:
    """The trial in Optuna's form; data without a field there go into system attributes."""
    from hopaas_p2p.storage.optuna_internals import to_datetime

    metrics = {name: list(values.items()) for name, values in record.metrics.items()}
    rest = msgspec.to_builtins(_Rest(record.reason, metrics, record.start is None and record.end is not None))
    return FrozenTrial(
        number=number,
        trial_id=-1,
        state=OptunaState(record.state.value),
        value=None,
        values=record.values,
        datetime_start=to_datetime(record.end if record.start is None else record.start),
        datetime_complete=to_datetime(record.end),
        params=params_of(record),
        distributions={name: to_optuna(one) for name, one in record.dists.items()},
        user_attrs=attributes(record.user),
        system_attrs=attributes(record.system) | ({_REST: rest} if rest else {}),
        intermediate_values=dict(record.reports),
    )


def load_optuna(url: str, *, name: str | None) -> StudyRecords:
    """The study of that name in Optuna's storage; without a name, the only one.

    Raises:
        NoSuchStudy: the study does not exist, or no name was given and there is not exactly one.
        InvalidInput: there is no such file, it is damaged, or it has a parameter that the log cannot hold.
        StoreUnreachable: the database does not answer.

    """
    from hopaas_p2p.storage.optuna_internals import trial_id_of

    with _opened(url, create=False) as storage:
        names = [one.study_name for one in storage.get_all_studies()]
        chosen = one_of(names, name, redacted(url))
        study_id = storage.get_study_id_from_name(chosen)
        frozen = storage.get_all_trials(study_id, deepcopy=False)
        system = dict(storage.get_study_system_attrs(study_id))
        directions = tuple([one.name.lower() for one in storage.get_study_directions(study_id)])
        define, control = StudyDefine(chosen, directions), StudyControl("running", -1)
        with contextlib.suppress(msgspec.ValidationError):
            there, control = msgspec.convert(system.pop(_DEFINITION, None), tuple[StudyDefine, StudyControl])
            define = msgspec.structs.replace(there, name=chosen, directions=directions)
        said = {key: to_json(key, value) for key, value in system.items()}
        numbers = {trial_id_of(trial): trial.number for trial in frozen}
        user = {key: to_json(key, value) for key, value in storage.get_study_user_attrs(study_id).items()}
        settings = _as_logged(StudySet(user, renamed(said, numbers.get, lambda number: number)))
        records = {one.number: _record(one, chosen) for one in frozen}
        return StudyRecords(_as_logged(define), records, settings, control)


def _record(frozen: FrozenTrial, study: str) -> TrialCreate:
    system, rest = dict(frozen.system_attrs), _Rest()
    if frozen.datetime_start is not None and COPIED not in system:
        # Optuna's studies have no uuid, and other databases may have studies of that name
        began = f"{study} {frozen.datetime_start.isoformat()}"
        system[COPIED] = {"study": f"optuna-{hashlib.sha256(began.encode()).hexdigest()[:24]}", "trial": frozen.number}
    with contextlib.suppress(msgspec.ValidationError):
        rest = msgspec.convert(system.pop(_REST, {}), _Rest)
    try:
        record = created(frozen, {key: to_json(key, value) for key, value in system.items()})
    except InvalidInput as error:
        raise InvalidInput(f"trial {frozen.number}: {error}") from None
    return _as_logged(
        msgspec.structs.replace(
            record,
            reason=rest.reason,
            start=None if rest.never_began else record.start,
            metrics={name: dict(values) for name, values in rest.metrics.items()},
        )
    )


def _as_logged(record: R) -> R:
    """The record after a round trip through a log. Raises a msgspec or Unicode error if a log cannot hold it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=type(record))
