"""Copies the files of a study from a store, a directory or an archive to another one.

The ids of our files begin with their study's uuid, so that they are removed with the study. A copy belongs to another
study, so it gets a new id, also in all attributes that name the file. A directory holds files by their ids, as
`optuna.artifacts.FileSystemArtifactStore` does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hopaas_p2p.errors import ConfigurationError, InvalidInput, waits_for
from hopaas_p2p.files.artifacts import OWN_ID, Artifact, artifacts_of, described, key_of, named_after
from hopaas_p2p.moving.records import StudyRecords
from hopaas_p2p.runtime.atomic import open_regular, replace_atomically, scratch, sha256_of
from hopaas_p2p.runtime.ownership import named_folder

if TYPE_CHECKING:
    from hopaas_p2p.stores.base import Artifacts, Store

Fetch = Callable[[str, Path], None]
"""Writes the file with this id to a path; raises KeyError if there is none."""


def from_store(store: Store, source: StudyRecords) -> Fetch:
    """Fetches the files of this study from its store."""
    return lambda artifact_id, path: artifacts_of(store).get(key_of(artifact_id, source.uuid), path)


def from_directory(directory: Path) -> Fetch:
    """Fetches files from a directory; a file that cannot be read at the moment does not count as missing.

    Raises:
        InvalidInput: there is no such directory.

    """
    if not directory.is_dir():
        raise InvalidInput(f"there is no directory {directory}")

    def fetch(artifact_id: str, path: Path) -> None:
        try:
            with waits_for(str(directory / artifact_id)):
                descriptor = open_regular(directory / artifact_id)
        except OSError:  # also a link, which may have come with the directory, and may lead to a private file
            raise KeyError(artifact_id) from None
        with open(descriptor, "rb") as found, path.open("wb") as copy:  # noqa: PTH123  # a descriptor
            shutil.copyfileobj(found, copy)

    return fetch


def named_files(source: StudyRecords) -> list[Artifact]:
    """All files that the study and its trials name."""
    return described(source.settings.system, ((number, record.system) for number, record in source.trials.items()))


def copy_files(source: StudyRecords, fetch: Fetch, files: Artifacts, uuid: str) -> tuple[StudyRecords, int, list[str]]:
    """Copy all files of the study to `files`, for the study of this uuid. Files that are already there are skipped.

    Returns the study with the new ids of its files, how many were copied, and warnings about the others.
    """
    changed, warnings, count = dict[str, str](), list[str](), 0
    there = set(files.keys(f"{uuid}/file/"))
    with scratch() as path:
        for one in named_files(source):
            new = named_after(one.id, uuid)
            if new != one.id:
                changed[one.id] = new
            key = key_of(new, uuid)
            if key in there:
                continue
            try:
                fetch(one.id, path)
            except KeyError:
                warnings.append(f"the file {one.id}: its bytes are missing")
                continue
            if one.sha256 not in (None, sha256_of(path)):
                warnings.append(f"the file {one.id}: its bytes differ from those that were stored; it was not copied")
                continue
            try:
                files.put(key, path)
                count += 1
            except (InvalidInput, ConfigurationError) as error:  # for example too large for this store
                warnings.append(f"the file {one.id} was not copied: {error}")
    return _with_ids(source, changed) if changed else source, count, warnings


def save(source: StudyRecords, fetch: Fetch, directory: Path) -> list[str]:
    """Copy all files of the study into a directory, under their ids; returns warnings about those that are missing."""
    directory.mkdir(parents=True, exist_ok=True)
    warnings = []
    with named_folder(directory) as folder:
        for one in named_files(source):
            try:
                with replace_atomically(folder / one.id) as draft:
                    fetch(one.id, draft)
            except KeyError:
                warnings.append(f"the file {one.id}: its bytes are no longer in the store")
    return warnings


def _with_ids(source: StudyRecords, changed: Mapping[str, str]) -> StudyRecords:
    def name(text: str) -> str:
        return OWN_ID.sub(lambda found: changed.get(found[0], found[0]), text)

    def told(system: Mapping[str, str]) -> dict[str, str]:
        return {name(key): name(text) if "artifact" in key else text for key, text in system.items()}

    trials = {
        number: msgspec.structs.replace(record, system=told(record.system)) if record.system else record
        for number, record in source.trials.items()
    }
    settings = msgspec.structs.replace(source.settings, system=told(source.settings.system))
    return source._replace(trials=trials, settings=settings)
