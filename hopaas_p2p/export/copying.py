"""Copies a study from one store to another: trials, notes, tags, files. A second copy adds only what is new."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from hopaas_p2p.artifacts import artifacts_of
from hopaas_p2p.core.attributes import ORIGIN
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.errors import InvalidInput, StudyExists
from hopaas_p2p.export import files
from hopaas_p2p.export.arrival import bring_in
from hopaas_p2p.export.portable import of_study

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.study import Study

_FROM: Final = "copied_from"
"""In the definition of a copy: the source's uuid; in a trial's origin: that, and the trial's number there."""


class Copied(NamedTuple):
    """The result of a copy."""

    study: str
    trials: int
    already_there: int
    files: int
    warnings: list[str]


def copy_study(
    source: Study, target: Storage, *, name: str | None = None, unfinished: bool = False, with_files: bool = True
) -> Copied:
    """Copy a study into another store, or under another name into the same one. The source stays as it is.

    A second copy adds what was finished since, and the notes and tags as they are in the source by then.

    Args:
        source: from `open_study`; others may go on working on it.
        target: from `open_storage`.
        name: its name there; by default its own.
        unfinished: copy WAITING and RUNNING trials too; they are WAITING there. Checkpoints are not copied.
        with_files: copy the files of the study and its trials.

    Raises:
        StudyExists: there is a study of that name which is no copy of this one.
        InvalidInput: copying a study onto itself; or the new trials exceed the copy's budget.
        ConfigurationError: the target keeps no files; the message says what to do.

    """
    uuid = source.storage.handle(source.study_id).uuid
    chosen = name or source.name
    begins = chosen not in target.study_names()

    def there() -> dict[int, int]:
        return {} if begins else _already_there(target, uuid, chosen)

    known = there()
    portable = of_study(source)
    wanted = [
        trial._replace(origin={**trial.origin, _FROM: [uuid, trial.number]})
        for trial in portable.trials
        if trial.number not in known
        and (unfinished or trial.record.state not in (TrialState.WAITING, TrialState.RUNNING))
    ]
    portable = portable._replace(trials=wanted, info={**portable.info, _FROM: uuid})
    fetch = None
    if with_files and files.named_files(portable):
        fetch = files.from_store(artifacts_of(source.storage.peer.store), uuid)
    result = bring_in(target, portable, name=chosen, fetch=fetch, begins=begins, there=there)
    return Copied(chosen, result.trials, len(known), result.files, result.warnings)


def _already_there(target: Storage, uuid: str, name: str) -> dict[int, int]:
    """Number in the source -> number in the copy.

    Raises:
        StudyExists: the study is no copy of the one with this uuid.
        InvalidInput: it is that one.

    """
    study_id = target.get_study_id_from_name(name)
    if target.handle(study_id).uuid == uuid:
        raise InvalidInput(f"{name!r} would be copied onto itself; give the copy another name")
    state = target.state(study_id)
    if state.define is None or state.define.info.get(_FROM) != uuid:
        raise StudyExists(
            f"there is a study {name!r} which is not a copy of this one; give the copy another name with --as"
        )
    known = {}
    for trial in state.trials:
        copied, number = json.loads(trial.system.get(ORIGIN, "{}")).get(_FROM, ("", 0))
        if copied == uuid:
            known[number] = trial.number
    return known
