"""Studies to and from files and Optuna's own storages: `export_study`, `import_study`.

All formats go through a `Portable`: the definition, attributes and trials of a study, without the ids of one store.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from hopaas_p2p.artifacts import artifacts_of
from hopaas_p2p.atomic import replace_atomically
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.export.arrival import Imported, bring_in
from hopaas_p2p.export.copying import Copied, copy_study
from hopaas_p2p.export.files import from_directory, from_store, named_files, save
from hopaas_p2p.export.portable import Portable, of_study

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.study import Study

__all__ = ["FORMATS", "Copied", "Imported", "copy_study", "export_study", "import_study"]

_log: Final = logging.getLogger("hopaas_p2p")
FORMATS: Final = ("jsonl", "csv", "parquet", "optuna")
_SUFFIXES: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".journal": "optuna",
    ".log": "optuna",
}


def export_study(
    study: Study, to: str | os.PathLike[str], *, form: str | None = None, files: str | os.PathLike[str] | None = None
) -> int:
    """Write a study; returns the number of trials written. A file is written whole or not at all.

    Args:
        study: from `open_study`.
        to: a path, "-" for standard output, or the URL or journal file of an Optuna storage.
        form: "jsonl" and "parquet" keep everything, "csv" is for spreadsheets, "optuna" writes into an Optuna
            storage. By default by the suffix of the path; a URL is an Optuna storage.
        files: a directory for the files of the study and its trials, which are stored under their ids, as
            `optuna.artifacts.FileSystemArtifactStore` does; by default they are not copied.

    Raises:
        InvalidInput: an unknown format, or one that needs a package which is not installed.
        StudyExists: the Optuna storage has a study of that name already.

    """
    target = os.fspath(to)
    chosen = _format(target, form)
    portable = of_study(study)
    if files is not None:
        _save_files(study, portable, Path(files))
    if chosen == "optuna":
        from hopaas_p2p.export.optunas import dump_optuna

        dump_optuna(portable, target)
    elif chosen == "parquet":
        from hopaas_p2p.export.tables import dump_parquet

        if target == "-":
            raise InvalidInput("Parquet is written to a file, not to a terminal; use --to PATH")
        with replace_atomically(Path(target)) as draft:
            dump_parquet(portable, draft)
    else:
        _write_lines(portable, target, chosen)
    return len(portable.trials)


def _visible(found: re.Match[str]) -> str:
    """A character that moves a terminal's cursor or hides others, as JSON escapes it."""
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def _save_files(study: Study, portable: Portable, directory: Path) -> None:
    if named_files(portable):
        fetch = from_store(artifacts_of(study.storage.peer.store), study.storage.handle(study.study_id).uuid)
        saved = save(portable, fetch, directory)
        for warning in saved.warnings:
            _log.warning("%s", warning)


def _write_lines(portable: Portable, target: str, form: str) -> None:
    from hopaas_p2p.export import jsonl, tables

    lines = tables.dump_csv(portable) if form == "csv" else (line + "\n" for line in jsonl.dump(portable))
    if target == "-":
        if sys.stdout.isatty():  # as JSON escapes it; what goes elsewhere stays as it is
            lines = (re.sub(r"[^\n\t]", _visible, line) for line in lines)
        sys.stdout.writelines(lines)
        return
    with replace_atomically(Path(target)) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)


def import_study(
    storage: Storage,
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    form: str | None = None,
    source_study: str | None = None,
    files: str | os.PathLike[str] | None = None,
) -> Imported:
    """Add the trials of a file or an Optuna storage to a study, which is created if it is not there.

    RUNNING trials become WAITING. One commit holds many trials: 10,000 take seconds.

    Args:
        storage: from `open_storage`.
        source: a path, "-" for standard input, or the URL or journal file of an Optuna storage.
        name: the study to add to; by default the name in the file.
        form: as in `export_study`.
        source_study: which study of an Optuna storage; by default the only one.
        files: the directory into which `export_study` or Optuna's FileSystemArtifactStore put the files.

    Raises:
        InvalidInput: it cannot be read, or does not fit the budget. Nothing was imported.
        DefinitionMismatch: the study is there, with other directions. Nothing was imported.

    """
    origin = os.fspath(source)
    if form in (None, "optuna") and _is_sqlite(origin):
        origin = f"sqlite:///{origin}"
    chosen = _format(origin, form)
    if chosen == "optuna":
        from hopaas_p2p.export.optunas import load_optuna

        portable = load_optuna(origin, name=source_study)
    elif chosen == "parquet":
        from hopaas_p2p.export.tables import load_parquet

        portable = load_parquet(Path(origin))
    else:
        with _reading(origin) as lines:
            portable = _read_lines(lines, chosen, storage, name)
    fetch = None
    if files is not None:
        fetch = from_directory(Path(files)) if named_files(portable) else None
    return bring_in(storage, portable, name=name, fetch=fetch)


def _read_lines(lines: TextIO, form: str, storage: Storage, name: str | None) -> Portable:
    from hopaas_p2p.export import jsonl, tables

    if form == "jsonl":
        return jsonl.load(lines)
    space = {}
    if name is not None and name in storage.study_names():
        state = storage.state(storage.get_study_id_from_name(name))
        space = {**state.dists, **(state.define.space if state.define else {})}
    return tables.load_csv(lines, space=space, name=name)


@contextlib.contextmanager
def _reading(source: str) -> Iterator[TextIO]:
    if source == "-":
        yield sys.stdin
        return
    try:
        with Path(source).open(encoding="utf-8", newline="") as file:
            yield file
    except UnicodeDecodeError:
        raise InvalidInput(f"{source} is not UTF-8 text; give its --format") from None


def _is_sqlite(place: str) -> bool:
    with contextlib.suppress(OSError), Path(place).open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"
    return False


def _format(place: str, form: str | None) -> str:
    if form is not None:
        if form not in FORMATS:
            raise InvalidInput(f"{form!r} is not a format; choose from {', '.join(FORMATS)}")
        return form
    if "://" in place:
        return "optuna"
    return _SUFFIXES.get(Path(place).suffix.lower(), "jsonl")
