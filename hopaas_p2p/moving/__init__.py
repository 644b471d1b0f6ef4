"""Studies to and from other stores, files and Optuna's own storages: `copy_study`, `export_study`, `import_study`.

A whole study moves as its commits, in one file; additions to a store in which others work are records that recreate the
trials (`moving.records`), wherever they come from. CSV and Parquet are for other programs.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import definition_of
from hopaas_p2p.errors import InvalidInput, StudyExists, visible
from hopaas_p2p.files.artifacts import key_of
from hopaas_p2p.moving import backup, tables
from hopaas_p2p.moving.arrival import Arrived, bring_in
from hopaas_p2p.moving.files import Fetch, from_directory, from_store, save
from hopaas_p2p.moving.records import ORIGINAL, StudyRecords, of_study, one_of
from hopaas_p2p.runtime.atomic import is_mostly_holes, open_regular, replace_atomically
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.runtime.redaction import redacted

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.study import Study

__all__ = ["FORMATS", "Arrived", "copy_study", "export_study", "format_of", "import_study"]

FORMATS: Final = ("study", "csv", "parquet", "optuna")
_SUFFIXES: Final = (
    dict.fromkeys(("", ".study", ".backup", ".zip"), "study")
    | {".csv": "csv", ".parquet": "parquet"}
    | dict.fromkeys((".journal", ".log"), "optuna")
)
"""The format of a file, by its extension."""
_BEGINNINGS: Final = {b"SQLite format 3\0": "sqlite", b"PK\x03\x04": "study", b'{"op_code"': "optuna"}
"""The format of an existing file, by its first bytes."""


def copy_study(
    source: Study, target: Storage, *, name: str | None = None, unfinished: bool = False, with_files: bool = True
) -> Arrived:
    """Copy a study into another store, or under another name into the same one. The source stays as it is.

    A second copy adds the trials that have finished since, and the source's notes and tags as they are then. A copy
    can also be copied back: the original gets the trials that are new to it, and keeps its own notes and attributes.

    Args:
        source: from `open_study`; others may continue to work on it.
        target: from `open_storage`.
        name: the copy's name; by default the source's.
        unfinished: copy WAITING and RUNNING trials too, as WAITING. Checkpoints are not copied.
        with_files: copy the files of the study and its trials.

    Raises:
        StudyExists: there is a study of that name that is neither a copy of this one nor its original.
        InvalidInput: the study would be copied onto itself, or the new trials exceed the copy's budget.
        ConfigurationError: the target keeps no files; the message says what to do.

    """
    chosen = name or source.name
    begins = chosen not in target.study_names()
    whole = of_study(source)
    if not begins:
        study_id = target.get_study_id_from_name(chosen)
        uuid, define = target.handle(study_id).uuid, target.state(study_id).define
        if uuid == whole.uuid:
            raise InvalidInput(f"{chosen!r} would be copied onto itself; give the copy another name")
        if define is None or define.info.get(ORIGINAL, uuid) != whole.define.info[ORIGINAL]:
            raise StudyExists(
                f"the study {chosen!r} there is neither a copy of this one nor its original; choose a name with --as"
            )
    waits = () if unfinished else (TrialState.WAITING, TrialState.RUNNING)
    wanted = {number: record for number, record in whole.trials.items() if record.state not in waits}
    whole = whole._replace(trials=wanted)
    fetch = from_store(source.storage.peer.store, whole) if with_files else None
    return bring_in(target, whole, name=chosen, fetch=fetch, begins=begins)


def export_study(
    study: Study, to: str | os.PathLike[str], *, form: str | None = None, files: str | os.PathLike[str] | None = None
) -> int:
    """Write a study; returns the number of trials written.

    A file is written whole or not at all, unless the study is added to an existing Optuna storage.

    Args:
        study: from `open_study`.
        to: a path, "-" for standard output, or the URL or journal file of an Optuna storage. The path's extension
            gives the format: .study or none for the whole study, commit by commit, with its files, which `import_study`
            reads; .csv for spreadsheets; .parquet for data frames; .journal or .log for Optuna's journal. Standard
            output gets CSV.
        form: "study", "csv", "parquet" or "optuna", whatever the path's extension is.
        files: a directory for the files of the study and its trials, stored under their ids as by
            `optuna.artifacts.FileSystemArtifactStore`.

    Raises:
        InvalidInput: an unknown extension, or a format that needs a package that is not installed.
        StudyExists: the Optuna storage has a study of that name already.

    """
    target = os.fspath(to)
    chosen = form or format_of(target)
    if chosen is None:
        raise _no_format(target)
    if chosen not in FORMATS:
        raise InvalidInput(f"{form!r} is not a format; choose from {', '.join(FORMATS)}")
    if target == "-" and chosen != "csv":
        raise InvalidInput(f"{chosen} is not written to standard output; use --to PATH")
    study.storage.flush()
    source, store = of_study(study), study.storage.peer.store
    if files is not None:
        for warning in save(source, from_store(store, source), Path(files)):
            LOG.warning("%s", warning)
    if chosen == "study":
        manifest = backup.back_up(store, Path(target), only=source.uuid)
        return sum(one.trials for one in manifest.studies)
    if chosen == "optuna":
        from hopaas_p2p.moving.optunas import dump_optuna

        dump_optuna(source, target)
    elif chosen == "parquet":
        with replace_atomically(Path(target)) as draft:
            tables.dump_parquet(source, draft)
    elif target == "-":
        lines = tables.dump_csv(source)
        if sys.stdout.isatty():  # other output stays as it is
            lines = (visible(line, keep="\n\t") for line in lines)
        sys.stdout.writelines(lines)
    else:
        with replace_atomically(Path(target)) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            file.writelines(tables.dump_csv(source))
    return len(source.trials)


def import_study(
    storage: Storage,
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    source_study: str | None = None,
    files: str | os.PathLike[str] | None = None,
) -> Arrived:
    """Add the trials of a file or an Optuna storage to a study, which is created if it does not exist.

    RUNNING trials become WAITING. Trials that the study has, also its own, are not added again, except those of a CSV
    file and Optuna's WAITING trials. As one commit holds many trials, 10,000 trials take seconds.

    Args:
        storage: from `open_storage`.
        source: a path, or the URL or journal file of an Optuna storage.
        name: the study to add to; by default the name in the file.
        source_study: which study of a backup or an Optuna storage; by default the only one.
        files: the directory into which `export_study` or Optuna's FileSystemArtifactStore put the files; a .study file
            contains its own.

    Raises:
        InvalidInput: the source cannot be read, or its trials exceed the budget. Nothing was imported.
        NoSuchStudy: the source has no study of that name, or several and none was named. Nothing was imported.
        DefinitionMismatch: the study exists with other directions. Nothing was imported.
        StoreUnreachable: the source or the store does not answer; import again to add the missing trials.
        Denied: this user may not write to the study.

    """
    place = os.fspath(source)
    if is_mostly_holes(Path(os.path.realpath(place.removeprefix("sqlite:///")))):
        raise InvalidInput(f"{redacted(place)} is far larger than its contents")
    begins, chosen = b"", format_of(place)
    with contextlib.suppress(OSError), open(open_regular(place, named=True), "rb") as file:  # noqa: PTH123  # a descriptor
        begins = file.read(16)
    chosen = next((form for beginning, form in _BEGINNINGS.items() if begins.startswith(beginning)), chosen)
    if chosen is None and begins:
        raise _no_format(place)
    with contextlib.ExitStack() as stack:
        fetch: Fetch | None = None
        if chosen in ("optuna", "sqlite"):
            from hopaas_p2p.moving.optunas import load_optuna

            found = load_optuna(f"sqlite:///{place}" if chosen == "sqlite" else place, name=source_study)
        elif chosen == "csv":
            found = _read_csv(place, storage, name)
        elif chosen in ("study", None):
            opened = stack.enter_context(contextlib.closing(backup.read(Path(place))))
            there = {one.name: one for one in opened.manifest.studies}
            one = there[one_of(list(there), source_study, place)]
            found = opened.records(one)

            def fetch(artifact_id: str, path: Path) -> None:
                opened.get(key_of(artifact_id, one.uuid), path)

        else:
            raise InvalidInput("Parquet is for other programs; to move a study, export it to a .study file")
        if files is not None:
            fetch = from_directory(Path(files))
        return bring_in(storage, found, name=name or "", fetch=fetch)


def format_of(place: str) -> str | None:
    """The format of a file of this name, or at this URL, or of standard output."""
    return "csv" if place == "-" else "optuna" if "://" in place else _SUFFIXES.get(Path(place).suffix.lower())


def _no_format(place: str) -> InvalidInput:
    known = ", ".join(one for one in _SUFFIXES if one not in ("", ".backup", ".zip"))
    return InvalidInput(f"{place}: its extension names no format. Use {known}, or a URL such as sqlite:///x.db")


def _read_csv(place: str, storage: Storage, name: str | None) -> StudyRecords:
    """The trials of a CSV file, read with the definition of the study of that name."""
    try:
        with open(open_regular(place, named=True), encoding="utf-8", newline="") as lines:  # noqa: PTH123  # a descriptor
            if name is None or name not in storage.study_names():
                raise InvalidInput(
                    "a CSV file does not say whether its values are minimized or maximized. Create the study first: "
                    f"hopaas-p2p study create {shlex.quote(name or 'NAME')} --direction minimize (or maximize)"
                )
            state = storage.state(storage.get_study_id_from_name(name))
            define = definition_of(state, name)
            space = {**state.dists, **define.space}
            return tables.load_csv(lines, space=space, name=name, directions=define.directions)
    except UnicodeDecodeError:
        raise InvalidInput(f"{place} is not UTF-8 text, as a CSV file must be") from None
