"""Copies the files of a study from a store, a directory or an archive to another.

The id of our files begins with their study's uuid, so that they are removed with the study; a copy belongs to another
study, and gets a new id in all attributes that name it. A directory holds files by their ids, as
`optuna.artifacts.FileSystemArtifactStore` does.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.files.artifacts import SUM, artifacts_of, json_or_none, key_of, named_after
from hopaas_p2p.moving.records import StudyRecords
from hopaas_p2p.runtime.atomic import replace_atomically, sha256_of
from hopaas_p2p.runtime.ownership import check_link

if TYPE_CHECKING:
    from hopaas_p2p.stores.base import Artifacts, Store

Fetch = Callable[[str, Path], None]
"""Writes the file of an id to a path; raises KeyError if there is none."""

_NAMES_A_FILE: Final = re.compile(r"(?:dashboard:)?artifacts:(?:\d+:)?(?P<id>[0-9a-fA-F-]{8,100})")


def from_store(store: Store, source: StudyRecords) -> Fetch:
    """Fetches the files of this study from its store."""
    return lambda artifact_id, path: artifacts_of(store).get(key_of(artifact_id, source.uuid), path)


def from_directory(directory: Path) -> Fetch:
    """Fetches files from a directory.

    Raises:
        InvalidInput: there is no such directory.

    """
    if not directory.is_dir():
        raise InvalidInput(f"there is no directory {directory}")

    def fetch(artifact_id: str, path: Path) -> None:
        try:
            shutil.copyfile(directory / artifact_id, path)
        except FileNotFoundError:
            raise KeyError(artifact_id) from None

    return fetch


def named_files(source: StudyRecords) -> dict[str, dict[str, Any]]:
    """The ids of all files that the study and its trials name, with the size and digest that are known of each."""
    systems = [source.settings.system, *(record.system for record in source.trials.values() if record.system)]
    found: dict[str, dict[str, Any]] = {}
    removed = set()
    for system in systems:
        for key, text in system.items():
            match = _NAMES_A_FILE.fullmatch(key)
            if match is not None:
                found.setdefault(match["id"], {})
                if json_or_none(text) in (None, "null"):
                    removed.add(match["id"])
    for system in systems:
        for artifact_id in found:
            total = json_or_none(system.get(SUM + artifact_id, "null"))
            if isinstance(total, dict):
                found[artifact_id] = total
    return {artifact_id: total for artifact_id, total in found.items() if artifact_id not in removed}


def copy_files(source: StudyRecords, fetch: Fetch, files: Artifacts, uuid: str) -> tuple[StudyRecords, int, list[str]]:
    """Copy all files of the study to `files`, for the study of this uuid. Those that are there already are left out.

    Returns the study with the new ids of its files, how many were copied, and which could not be.
    """
    ids, warnings, count = {}, [], 0
    there = set(files.keys(f"{uuid}/file/"))
    for old, total in named_files(source).items():
        ids[old] = named_after(old, uuid)
        key = key_of(ids[old], uuid)
        if key in there:
            continue
        why = _send(old, key, total, fetch, files)
        count += why is None
        warnings += [] if why is None else [f"the file {old}: {why}"]
    return _with_ids(source, {old: new for old, new in ids.items() if old != new}), count, warnings


def save(source: StudyRecords, fetch: Fetch, directory: Path) -> list[str]:
    """Copy all files of the study into a directory, under their ids; says which could not be."""
    check_link(directory)
    directory.mkdir(parents=True, exist_ok=True)
    warnings = []
    for artifact_id in named_files(source):
        try:
            with replace_atomically(directory / artifact_id) as draft:
                fetch(artifact_id, draft)
        except KeyError:
            warnings.append(f"the file {artifact_id}: its bytes are no longer in the store")
    return warnings


def _send(old: str, key: str, total: dict[str, Any], fetch: Fetch, files: Artifacts) -> str | None:
    """Why the file could not be copied, or None."""
    with tempfile.TemporaryDirectory(prefix="hopaas-") as directory:
        path = Path(directory, "file")
        try:
            fetch(old, path)
        except KeyError:
            return "its bytes are missing"
        if "sha256" in total and sha256_of(path) != total["sha256"]:
            return "its bytes do not match what was stored; it was not copied"
        try:
            files.put(key, path)
        except (InvalidInput, ConfigurationError) as error:  # for example too large for this store
            return f"{error} It was not copied."
    return None


def _with_ids(source: StudyRecords, changed: Mapping[str, str]) -> StudyRecords:
    if not changed:
        return source
    pattern = re.compile("|".join(map(re.escape, changed)))

    def name(text: str) -> str:
        return pattern.sub(lambda found: changed[found[0]], text)

    def told(system: Mapping[str, str]) -> dict[str, str]:
        return {name(key): name(text) if "artifact" in key else text for key, text in system.items()}

    trials = {
        number: msgspec.structs.replace(record, system=told(record.system)) if record.system else record
        for number, record in source.trials.items()
    }
    settings = msgspec.structs.replace(source.settings, system=told(source.settings.system))
    return source._replace(trials=trials, settings=settings)
